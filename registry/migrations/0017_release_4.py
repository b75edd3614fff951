"""Release 4. After all tables of this release, so that none of its processes starts before they are there."""

from django.db import migrations, models

from registry.release import raise_release


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0016_grant_asked"),
        ("approvals", "0011_seals"),
        ("audit", "0011_openings_of_new_events"),
        ("kms", "0005_seals"),
        ("verifier", "0011_operations_by_grant_and_key"),
    ]
    # Older code names the release itself where it makes the row.
    beside_older_code = "The default of a column in a row that exists once; code of release 3 runs beside release 4."

    operations = [
        migrations.AlterField("installation", "release", models.PositiveIntegerField(db_default=4)),
        raise_release(4),
    ]
