"""Without the index by the grant alone, which PostgreSQL asked instead of the one by grant and key: each payment read all others."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0016_grant_asked"),
        ("verifier", "0010_guards_by_table"),
    ]
    beside_older_code = (
        "One index less; older code asks the one by grant and key, which begins with the grant."
    )

    operations = [
        migrations.AlterField(
            "agentoperation",
            "grant",
            models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="registry.grant",
            ),
        ),
    ]
