"""Whether an admin suspended an agent or a grant; and one more cause for which a grant waits for a new signature."""

from django.db import migrations, models

from audit.db.triggers import state_machine, when_undone

AGENT = state_machine(
    "registry_agent",
    "status",
    initial=["unclaimed", "active"],
    transitions={
        "unclaimed": ["active", "revoked", "expired"],
        "active": ["suspended", "revoked", "expired"],
        "suspended": ["active", "revoked", "expired"],
        "expired": ["active", "unclaimed", "revoked"],
    },
)
GRANT = state_machine(
    "registry_grant",
    "status",
    initial=["pending"],
    transitions={
        "pending": ["approved", "denied", "withdrawn", "expired"],
        "approved": ["suspended", "revoked", "expired"],
        "suspended": ["approved", "revoked", "expired"],
    },
)


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0002_service_provider_requires_nonce"),
    ]

    operations = [
        when_undone(AGENT),
        when_undone(GRANT),
        migrations.AddField(
            model_name="agent",
            name="suspended_by_admin",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="grant",
            name="suspended_by_admin",
            field=models.BooleanField(default=False),
        ),
        migrations.AlterField(
            model_name="grant",
            name="suspension_cause",
            field=models.CharField(
                blank=True,
                choices=[
                    ("person", "Person"),
                    ("key_rotated", "Key Rotated"),
                    ("manifest_changed", "Manifest Changed"),
                    ("audience_changed", "Audience Changed"),
                    ("allowed_changed", "Allowed Changed"),
                    ("recovery", "Recovery"),
                ],
                max_length=32,
            ),
        ),
        # SQLite rebuilt the tables without their triggers.
        AGENT,
        GRANT,
    ]
