"""The index of grants that were approved is built beside writers, so its migration may be cut off: it is run again."""

import pytest
from django.db import connection

from audit.tests.tampering import execute
from tests.test_triggers import migrate


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_what_a_migration_that_was_cut_off_left_is_built_anew() -> None:
    migrate(("registry", "0011_grant_follows_at"))
    try:
        # As a name is taken by an index that was not finished.
        execute("CREATE INDEX grant_given ON registry_grant (status)")
    finally:
        migrate()
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'grant_given'")
        [(definition,)] = cursor.fetchall()
    assert "(agent_id, service_provider_id) WHERE (capabilities IS NOT NULL)" in definition
