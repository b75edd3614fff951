"""Triggers: only the allowed changes of state, and a seal that has ended never counts again."""

from django.db import migrations

from audit.db.trigger_operations import keep_ended, state_machine

_SEALED = ("agent", "human", "serviceprovider", "serviceprovidersecret")


class Migration(migrations.Migration):
    replaces = [
        ("registry", "0002_service_provider_requires_nonce"),
        ("registry", "0003_who_suspended"),
        ("registry", "0004_humans_can_be_deleted"),
        ("registry", "0005_what_ended_is_found_by_index"),
        ("registry", "0006_installation"),
        ("registry", "0007_release"),
        ("registry", "0008_pairwise_subject"),
        ("registry", "0009_restored_cause"),
        ("registry", "0010_whose_suspension"),
        ("registry", "0011_grant_follows_at"),
        ("registry", "0012_grant_given"),
        ("registry", "0013_release_3"),
        ("registry", "0014_seals"),
        ("registry", "0015_expired_suspended"),
        ("registry", "0016_grant_asked"),
        ("registry", "0017_release_4"),
    ]
    dependencies = [
        ("registry", "0001_tables"),
        # By its former name, so that `migrate` refuses a database from before release 4
        # (docs/upgrade.md).
        ("kms", "0005_seals"),
    ]

    operations = [
        state_machine(
            "registry_agent",
            "status",
            initial=["unclaimed", "active"],
            transitions={
                "unclaimed": ["active", "revoked", "expired"],
                "active": ["suspended", "revoked", "expired"],
                "suspended": ["active", "revoked", "expired"],
                # Renewing the manifest brings an expired agent back, unless it is suspended.
                "expired": ["active", "unclaimed", "revoked", "suspended"],
            },
        ),
        state_machine(
            "registry_grant",
            "status",
            initial=["pending"],
            transitions={
                "pending": ["approved", "denied", "withdrawn", "expired"],
                "approved": ["suspended", "revoked", "expired"],
                "suspended": ["approved", "revoked", "expired"],
            },
        ),
        # The row of a deleted human stays, because the rows of others refer to it.
        state_machine(
            "registry_human",
            "status",
            initial=["active"],
            transitions={"active": ["suspended", "deleted"], "suspended": ["active", "deleted"]},
        ),
        state_machine(
            "registry_serviceprovider",
            "status",
            initial=["active"],
            transitions={"active": ["suspended", "revoked"], "suspended": ["active", "revoked"]},
        ),
        *(keep_ended(f"registry_{name}", "seal", into="kms_endedseal") for name in _SEALED),
    ]
