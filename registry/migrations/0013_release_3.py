"""Release 3. After all tables of this release, so that none of its processes starts before they are there."""

from django.db import migrations, models

from registry.release import raise_release


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0012_grant_given"),
        ("approvals", "0009_recoveries"),
        ("audit", "0010_openings_by_function"),
    ]
    # Older code names the release itself where it makes the row.
    beside_older_code = "The default of a column in a row that exists once; code of release 2 runs beside release 3."

    operations = [
        migrations.AlterField("installation", "release", models.PositiveIntegerField(db_default=3)),
        raise_release(3),
    ]
