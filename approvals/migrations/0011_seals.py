"""Seals of passkeys and of what becomes one (kms/seals.py)."""

from django.db import migrations, models

from audit.db.triggers import keep_ended

_SEALED = ("passkey", "setupcode", "recovery")


class Migration(migrations.Migration):
    dependencies = [("approvals", "0010_receipt_kid"), ("kms", "0005_seals")]
    beside_older_code = "Release 3 writes no seal, so the triggers find nothing to keep."

    operations = [
        *(
            migrations.AddField(
                name, "seal", models.CharField(editable=False, max_length=80, null=True)
            )
            for name in _SEALED
        ),
        *(keep_ended(f"approvals_{name}", "seal", into="kms_endedseal") for name in _SEALED),
    ]
