"""An agent whose manifest has ended can be suspended, so that it does not come back by renewing it."""

from django.db import migrations
from django.db.migrations import RunPython

from audit.db.triggers import state_machine, when_undone


def _steps(*after_expired: str) -> RunPython:
    return state_machine(
        "registry_agent",
        "status",
        initial=["unclaimed", "active"],
        transitions={
            "unclaimed": ["active", "revoked", "expired"],
            "active": ["suspended", "revoked", "expired"],
            "suspended": ["active", "revoked", "expired"],
            "expired": ["active", "unclaimed", "revoked", *after_expired],
        },
    )


class Migration(migrations.Migration):
    dependencies = [("registry", "0014_seals")]
    beside_older_code = "The trigger allows one more step. Release 3 never takes it, and resumes and refuses a suspended agent as any."

    operations = [when_undone(_steps()), _steps("suspended")]
