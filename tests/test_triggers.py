"""After all migrations, every trigger the guarantees rely on exists, on either database."""

import pytest
from django.db import connection

from kms.seal_backfill import sealed_models

STATE_MACHINES = {
    "registry_agent_status",
    "registry_grant_status",
    "registry_human_status",
    "registry_serviceprovider_status",
    "registry_catalogueversion_status",
    "kms_key_state",
    "kms_keycertificate_state",
    "verifier_confirmation_status",
}
APPEND_ONLY = {
    *("audit_event", "audit_leaf", "audit_opening", "audit_node"),
    *(
        "audit_checkpoint",
        "audit_cosignature",
        "audit_checkpointcopy",
        "audit_segment",
        "audit_droppedmonth",
        "audit_logbreak",
    ),
    "approvals_receipt",
    "kms_endedseal",
    "verifier_statechange",
}
QUERIES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
}


def found() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(QUERIES[connection.vendor])
        return {name for (name,) in cursor.fetchall()}


@pytest.mark.django_db
def test_no_migration_dropped_a_trigger() -> None:
    # SQLite rebuilds a table to alter it, which drops its triggers.
    wanted = {f"{table}_{moment}" for table in STATE_MACHINES for moment in ("birth", "step")}
    wanted |= {
        f"{model.table()}_seal_ended_{end}"
        for model in sealed_models()
        for end in ("change", "delete")
    }
    assert wanted | {f"{table}_kept" for table in APPEND_ONLY} <= found()
