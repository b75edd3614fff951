"""A decision reads only the counters of the agent's grants here, and the operation it repeats."""

import secrets

import pytest
from django.db import connection
from django.utils import timezone

from audit.tests.tampering import execute
from registry.models import Grant
from verifier.models import AgentOperation, GrantLedger
from verifier.stores.decision_batch import DecisionBatch
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


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_a_decision_reads_no_operations_but_those_it_may_repeat(is_analyzed: bool) -> None:
    """Even with a plan made while the table was new, which PostgreSQL keeps until ANALYZE."""
    # As new: autovacuum may have analyzed rows of earlier tests here, and for a table known to be
    # tiny PostgreSQL plans a sequential scan.
    execute("TRUNCATE verifier_agentoperation")
    places = [scene(PAY), scene(PAY)]
    calls = [payment(place) for place in places]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    assert DecisionBatch(calls, waits=False).operation(calls[0]) is None
    keys, now = [str(call.operation_key) for call in calls], timezone.now()
    AgentOperation.objects.bulk_create(
        AgentOperation(
            grant=place.grant, key=key, action_digest=bytes(32), answer={}, created_at=now
        )
        for place in places
        for key in (*keys, *map(str, range(MANY)))
    )
    if is_analyzed:
        execute("ANALYZE verifier_agentoperation")
    before = rows_read("verifier_agentoperation")
    work = DecisionBatch(calls, waits=False)
    assert all(work.operation(call) for call in calls)
    assert rows_read("verifier_agentoperation") - before == len(calls)
