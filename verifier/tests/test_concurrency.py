"""Concurrent requests: each proof is spent once, and no limit is exceeded.

tests/flows runs rounds with several processes.
"""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from audit.models import Event
from tests import receipts
from verifier.models import AgentOperation, Confirmation, GrantLedger
from verifier.tests.scene import LOOK, PAY, SYSTEM, Scene, key, pay, scene

pytestmark = pytest.mark.django_db(transaction=True)


def together(place: Scene, bodies: list[dict[str, Any]]) -> "Counter[str]":
    """Send all requests at once from eight threads with a connection each; count the verdicts."""

    def ask(body: dict[str, Any]) -> str:
        try:
            answer = json.loads(place.post(body).content)
            assert "valid" in answer, answer
            return (
                ("repeated" if answer.get("repeated") else "valid")
                if answer["valid"]
                else answer["reason"]
            )
        finally:
            connection.close()

    work: Callable[[dict[str, Any]], str] = ask
    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(work, bodies))


def test_fifty_identical_proofs_have_one_winner() -> None:
    place = scene()
    assert together(place, [place.body(LOOK)] * 50) == {"valid": 1, "replayed": 49}
    assert Event.objects.filter(outcome="denied").count() == 49


def test_EN_3_forty_payments_of_three_under_a_hundred_are_thirty_three() -> None:
    place = scene(
        PAY, budgets=[{"value": "100.00", "currency": "EUR", "period": "total", "zone": "UTC"}]
    )
    token = place.token()
    bodies = [place.body(pay("3.00"), token=token, idempotency_key=key()) for _ in range(40)]
    assert together(place, bodies) == {"valid": 33, "budget": 7}
    debits = [
        Decimal(event.data["action"]["amount"]["value"])
        for event in Event.objects.filter(kind="verifier.decision.allowed")
    ]
    row = GrantLedger.objects.get()
    assert sum(debits) == Decimal("99.00")
    assert row.spent["EUR/total/UTC"][1] == 9900
    assert row.uses == len(debits) == 33


def test_EN_1_twenty_at_once_pass_the_burst_only() -> None:
    place = scene(max_requests_per_minute=10, max_burst=3)
    token = place.token()
    assert together(place, [place.body(LOOK, token=token) for _ in range(20)]) == {
        "valid": 3,
        "rate": 17,
    }


def test_one_operation_sent_twenty_times_debits_once() -> None:
    place, operation = scene(PAY, max_uses=5), key()
    token = place.token()
    bodies = [place.body(pay("3.00"), token=token, idempotency_key=operation) for _ in range(20)]
    assert together(place, bodies) == {"valid": 1, "repeated": 19}
    assert GrantLedger.objects.get().uses == 1
    assert AgentOperation.objects.count() == 1


def test_EN_11_twenty_calls_share_one_confirmation_and_use_it_once() -> None:
    place, operation = scene(PAY, confirm_above={"value": "1.00", "currency": "EUR"}), key()
    token = place.token()

    def bodies() -> list[dict[str, Any]]:
        return [place.body(pay("3.00"), token=token, idempotency_key=operation) for _ in range(20)]

    assert together(place, bodies()) == {"confirm_above": 20}
    row = Confirmation.objects.get()
    receipts.confirm(row, place.human, actor=SYSTEM, now=timezone.now())
    assert together(place, bodies()) == {"valid": 1, "repeated": 19}


def test_never_more_than_five_questions_wait() -> None:
    place = scene(PAY, confirm_above={"value": "1.00", "currency": "EUR"})
    token = place.token()
    bodies = [place.body(pay("3.00"), token=token, idempotency_key=key()) for _ in range(20)]
    assert together(place, bodies) == {"confirm_above": 20}
    assert Confirmation.objects.filter(status="pending").count() == 5
