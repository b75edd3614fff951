"""Whether a passkey may be synced, as it said when it was made. Null: not known until its next signature."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("approvals", "0005_release_purpose"),
    ]

    operations = [
        migrations.AddField(
            model_name="passkey",
            name="backup_eligible",
            field=models.BooleanField(null=True),
        ),
    ]
