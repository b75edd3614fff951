"""What a decision reads to know the counters: the agent's grants at the service provider, and none of its requests."""

import secrets

import pytest
from django.db import connection
from django.utils import timezone

from audit.tests.tampering import execute
from registry.models import Grant
from verifier.models import GrantLedger
from verifier.stores.work import Work
from verifier.tests.scene import PAY, Scene, scene
from verifier.tests.test_store_contract import payment
from verifier.tests.test_two_grants import second

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

MANY = 2_000


def requests(place: Scene, number: int, **more: object) -> list[Grant]:
    """So many requests of this agent at this service provider; with `capabilities`, as if they had been approved."""
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


def rows_read() -> int:
    """How many rows of grants this transaction has read, by whatever way."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'registry_grant'"
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
    before = rows_read()
    work = Work([call])
    assert set(work._rows[call.queue]) == {place.grant.pk, again.pk}
    assert rows_read() - before <= 10
