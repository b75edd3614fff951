"""The promises the database keeps by trigger are all there once every migration ran, on either database."""

import pytest
from django.db import connection

STATE_MACHINES = {
    "registry_agent_status",
    "registry_grant_status",
    "registry_human_status",
    "registry_serviceprovider_status",
    "kms_key_state",
    "verifier_confirmation_status",
}
APPEND_ONLY = {"audit_event", "audit_leaf", "audit_opening", "approvals_receipt", "verifier_statechange"}
QUERIES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
}


@pytest.mark.django_db
def test_no_migration_dropped_a_trigger() -> None:
    # SQLite rebuilds a table to change it, and forgets its triggers.
    with connection.cursor() as cursor:
        cursor.execute(QUERIES[connection.vendor])
        found = {name for (name,) in cursor.fetchall()}
    wanted = {f"{table}_{moment}" for table in STATE_MACHINES for moment in ("birth", "step")}
    assert wanted | {f"{table}_kept" for table in APPEND_ONLY} <= found
