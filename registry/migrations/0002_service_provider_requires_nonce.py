"""Whether a service provider asks for server nonces in proofs."""

from django.db import migrations, models

from audit.db.triggers import state_machine, when_undone

PROVIDER = state_machine(
    "registry_serviceprovider",
    "status",
    initial=["active"],
    transitions={"active": ["suspended", "revoked"], "suspended": ["active", "revoked"]},
)


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0001_initial"),
    ]

    operations = [
        when_undone(PROVIDER),
        migrations.AddField(
            model_name="serviceprovider",
            name="require_nonce",
            field=models.BooleanField(default=False),
        ),
        # SQLite rebuilt the table without its triggers.
        PROVIDER,
    ]
