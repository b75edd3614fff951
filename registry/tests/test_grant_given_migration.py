"""An index is built without blocking writers, so its migration may be interrupted and run again."""

import pytest
from django.db import connection

from audit.tests.tampering import execute
from tests.test_triggers import migrate


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("before", "name", "built"),
    [
        (
            "0011_grant_follows_at",
            "grant_given",
            "(agent_id, service_provider_id) WHERE (capabilities IS NOT NULL)",
        ),
        ("0015_expired_suspended", "grant_asked", "(agent_id, created_at)"),
    ],
)
def test_index_left_by_an_interrupted_migration_is_rebuilt(
    before: str, name: str, built: str
) -> None:
    migrate(("registry", before))
    try:
        # The name of an index that was not finished.
        execute(f"CREATE INDEX {name} ON registry_grant (status)")
    finally:
        migrate()
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [name])
        [(definition,)] = cursor.fetchall()
    assert built in definition
