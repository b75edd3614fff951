"""Seals of keys, the seals that ended, and whether rows of before the first seal are still believed."""

from typing import Any

from django.db import migrations, models

from audit.db.triggers import append_only, keep_ended


def await_seals(apps: Any, _editor: Any) -> None:
    """An installation has keys before it has anything else that is sealed."""
    if apps.get_model("kms", "Key").objects.exists():
        apps.get_model("kms", "SealsPending").objects.create(id=1)


class Migration(migrations.Migration):
    dependencies = [("kms", "0004_certificates"), ("audit", "0011_openings_of_new_events")]
    beside_older_code = (
        "Release 3 writes no seal, so the triggers find nothing to keep; it reads neither table, and until `seal_rows` ran"
        " rows without a seal count as before."
    )

    operations = [
        migrations.CreateModel(
            name="EndedSeal",
            fields=[("seal", models.CharField(max_length=80, primary_key=True, serialize=False))],
        ),
        migrations.CreateModel(
            name="SealsPending",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                )
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)), name="seals_pending_only_one"
                    )
                ]
            },
        ),
        append_only("kms_endedseal", unique=["seal"]),
        migrations.AddField(
            "key", "seal", models.CharField(editable=False, max_length=80, null=True)
        ),
        keep_ended("kms_key", "seal", into="kms_endedseal"),
        migrations.RunPython(await_seals, migrations.RunPython.noop),
    ]
