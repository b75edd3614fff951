"""Seals of the rows that give a right (kms/seals.py)."""

from django.db import migrations, models

from audit.db.triggers import keep_ended

_SEALED = ("agent", "human", "serviceprovider", "serviceprovidersecret")


class Migration(migrations.Migration):
    dependencies = [("registry", "0013_release_3"), ("kms", "0005_seals")]
    beside_older_code = "Release 3 writes no seal, so the triggers find nothing to keep."

    operations = [
        *(
            migrations.AddField(
                name, "seal", models.CharField(editable=False, max_length=80, null=True)
            )
            for name in _SEALED
        ),
        *(keep_ended(f"registry_{name}", "seal", into="kms_endedseal") for name in _SEALED),
    ]
