"""A decision reads only the counters of the agent's grants here, and the operation it repeats."""

import re
import secrets
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from audit.db.prebuilt_sql import select
from audit.tests.tampering import execute
from registry.models import Grant
from verifier.models import AgentOperation, GrantLedger
from verifier.services.short_timeout_connection import STATEMENT_SECONDS
from verifier.stores.transaction_batch import DecisionBatch
from verifier.tests.scene import PAY, Scene, scene
from verifier.tests.test_store_contract import payment
from verifier.tests.test_two_grants import second

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

MANY = 2_000


def requests(place: Scene, number: int, **more: object) -> list[Grant]:
    """Requests of this agent at this service provider; with `capabilities`, as if approved."""
    now = timezone.now()
    return Grant.objects.bulk_create(
        Grant(
            agent=place.agent,
            service_provider=place.provider,
            requested_capabilities=[],
            requested_envelope={},
            requested_seconds=60,
            request_digest=secrets.token_bytes(32),
            created_at=now,
            expires_at=now,
            **more,
        )
        for _ in range(number)
    )


def remember(place: Scene, *keys: str) -> None:
    """Allowed operations of the grant under these keys."""
    now, grant = timezone.now(), place.grant
    AgentOperation.objects.bulk_create(
        AgentOperation(grant=grant, key=key, action_digest=bytes(32), answer={}, created_at=now)
        for key in keys
    )


def rows_read(table: str) -> int:
    """Rows of the table that this transaction has read, by index or sequential scan."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = %s",
            [table],
        )
        return int(cursor.fetchone()[0])


def test_a_decision_reads_no_request_of_the_agent() -> None:
    place, other = scene(PAY), scene(PAY)
    again = second(place, PAY)
    call = payment(place)
    for grant in (place.grant, again, *requests(other, MANY, capabilities=[])):
        GrantLedger.objects.create(grant=grant)
    requests(place, MANY)
    execute("ANALYZE registry_grant, verifier_grantledger")
    before = rows_read("registry_grant")
    work = DecisionBatch([call], waits=False)
    assert set(work._rows[call.queue]) == {place.grant.pk, again.pk}
    assert rows_read("registry_grant") - before <= 10


def use_options_of_requests() -> None:
    """For this transaction, the server's settings of a connection that answers requests."""
    own: Any = connection
    options = str(own.short_options(STATEMENT_SECONDS)["options"])
    for name, value in re.findall(r"-c (\w+)=(\w+)", options):
        select("SELECT set_config(%s, %s, true)", name, value)


@pytest.mark.parametrize("is_analyzed_later", [False, True])
@pytest.mark.parametrize("first", ["TRUNCATE", "ANALYZE"])
def test_a_decision_reads_no_operations_but_those_it_may_repeat(
    first: str, is_analyzed_later: bool
) -> None:
    """Even with a plan made while the table was new or tiny, which PostgreSQL keeps until ANALYZE.

    For a table that ANALYZE has found tiny, PostgreSQL prefers a sequential scan.
    """
    execute("DELETE FROM verifier_agentoperation")
    places = [scene(PAY), scene(PAY)]
    remember(places[0], "an early one")
    execute("SET CONSTRAINTS ALL IMMEDIATE")
    # Both end the plans that earlier tests have made.
    execute(f"{first} verifier_agentoperation")
    calls = [payment(place) for place in places]
    use_options_of_requests()
    select("SELECT set_config('plan_cache_mode', 'force_generic_plan', true)")
    assert DecisionBatch(calls, waits=False).operation(calls[0]) is None
    keys = [str(call.operation_key) for call in calls]
    for place in places:
        remember(place, *keys, *map(str, range(MANY)))
    if is_analyzed_later:
        execute("ANALYZE verifier_agentoperation")
    before = rows_read("verifier_agentoperation")
    work = DecisionBatch(calls, waits=False)
    assert all(work.operation(call) for call in calls)
    assert rows_read("verifier_agentoperation") - before == len(calls)
