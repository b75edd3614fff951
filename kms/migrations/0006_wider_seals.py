"""Whether rows with the narrower seals of release 4 are still accepted (ADR 49)."""

from typing import Any

from django.db import migrations, models


def await_wider_seals(apps: Any, _editor: Any) -> None:
    """An installation has keys before it has anything else that is sealed."""
    if apps.get_model("kms", "Key").objects.exists():
        apps.get_model("kms", "WiderSealsPending").objects.create(id=1)


class Migration(migrations.Migration):
    # By its former name, so that `migrate` refuses a database from before release 4.
    dependencies = [("kms", "0005_seals")]
    beside_older_code = (
        "Release 4 does not read the table. Until `seal_rows` ran, release 5 accepts its seals."
    )

    operations = [
        migrations.CreateModel(
            name="WiderSealsPending",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)), name="wider_seals_pending_only_one"
                    )
                ],
            },
        ),
        migrations.RunPython(await_wider_seals, migrations.RunPython.noop),
    ]
