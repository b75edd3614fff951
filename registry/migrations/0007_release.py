"""The release the database is at: raised by `migrate` of each release that changes what processes share, and never lowered."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0006_installation")]

    operations = [
        migrations.AddField("installation", "release", models.PositiveIntegerField(db_default=2)),
    ]
