"""Release 5. After all its tables, so that none of its processes starts before they exist."""

from django.db import migrations, models

from registry.release_compatibility import raise_release


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0023_service_logo"),
        ("approvals", "0019_logo_purpose"),
        ("kms", "0006_wider_seals"),
    ]
    # Older code names the release itself when it creates the row.
    beside_older_code = "The default of a column in a row that exists once; release 4 runs beside."

    operations = [
        migrations.AlterField("installation", "release", models.PositiveIntegerField(db_default=5)),
        raise_release(5),
    ]
