"""If the database fails, no caller is told yes or no, and nothing is half written."""

import json
from collections.abc import Callable
from math import inf

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError

from audit.models import Event
from registry.models import SpentProof
from verifier.models import AgentOperation, GrantLedger
from verifier.services import clock_readings, freshness
from verifier.services.clock_readings import ClockReading
from verifier.stores import database_decisions, decision_audit_events
from verifier.tests.scene import PAY, Scene, key, pay, scene

pytestmark = pytest.mark.django_db(transaction=True)


def failing(error: type[Exception]) -> Callable[..., object]:
    def fail(*_args: object, **_kwargs: object) -> object:
        raise error("connection to database.internal failed")

    return fail


@pytest.fixture
def shop() -> Scene:
    return scene(PAY, max_uses=10)


@pytest.mark.parametrize("error", [DatabaseError, OperationalError, InterfaceError])
@pytest.mark.parametrize("place_of_fault", ["spend_proofs", "DecisionBatch", "decide"])
def test_a_fault_is_503_and_leaves_nothing(
    shop: Scene, monkeypatch: pytest.MonkeyPatch, place_of_fault: str, error: type[Exception]
) -> None:
    body, events = shop.body(pay("5.00"), idempotency_key=key()), Event.objects.count()
    with monkeypatch.context() as patch:
        patch.setattr(database_decisions, place_of_fault, failing(error))
        response = shop.post(body)
    assert response.status_code == 503
    assert response["Retry-After"]
    assert response["Cache-Control"] == "no-store"
    answer = json.loads(response.content)
    assert answer["error"] == "temporarily_unavailable"
    assert "database.internal" not in response.content.decode()
    assert Event.objects.count() == events
    assert not AgentOperation.objects.exists()
    assert not GrantLedger.objects.exclude(uses=0).exists()
    # All of it was rolled back, the spent proof too, so the same call passes afterwards.
    assert json.loads(shop.post(body).content)["valid"]


def test_decision_whose_state_went_stale_is_503_and_leaves_nothing(
    shop: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stopped after it read the state, so it may have missed a revocation."""
    body, events = shop.body(pay("5.00"), idempotency_key=key()), Event.objects.count()
    with monkeypatch.context() as patch:
        patch.setattr(freshness, "STALE_SECONDS", 0.0)
        assert shop.post(body).status_code == 503
    assert Event.objects.count() == events
    assert not GrantLedger.objects.exclude(uses=0).exists()
    again = shop.body(pay("5.00"), idempotency_key=body["idempotency_key"])
    assert json.loads(shop.post(again).content)["valid"]


def test_of_two_clocks_the_one_that_says_more_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspension stops the monotonic clock; after a wall clock was set back, the age is unknown."""
    monkeypatch.setattr(clock_readings, "monotonic", lambda: 1_000.0)
    monkeypatch.setattr(clock_readings, "time", lambda: 5_000.0)
    then = ClockReading.now()
    for monotonic, wall, age in (
        (1_002.0, 5_001.0, 2.0),
        (1_000.5, 5_600.0, 600.0),
        (1_001.0, 4_996.0, 1.0),
        (1_001.0, 4_000.0, inf),
    ):
        monkeypatch.setattr(clock_readings, "monotonic", lambda monotonic=monotonic: monotonic)
        monkeypatch.setattr(clock_readings, "time", lambda wall=wall: wall)
        assert then.age() == age


def test_a_refusal_whose_event_cannot_be_written_is_503(
    shop: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, spent = shop.body(pay("501.00"), idempotency_key=key()), SpentProof.objects.count()
    with monkeypatch.context() as patch:
        patch.setattr(decision_audit_events, "refusal", failing(OperationalError))
        assert shop.post(body).status_code == 503
    assert SpentProof.objects.count() == spent
    with monkeypatch.context() as patch:
        patch.setattr(decision_audit_events, "early_refusal", failing(OperationalError))
        assert shop.post(body | {"proof": None}).status_code == 503


def test_a_decision_written_but_reported_failed_is_503_and_then_a_repeat(
    shop: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = key()
    with monkeypatch.context() as patch:
        # After the commit: the answer is lost, the debit stays.
        patch.setattr(
            database_decisions,
            "fault_point",
            lambda name: failing(OperationalError)() if name == "verify.after_commit" else None,
        )
        assert shop.post(shop.body(pay("5.00"), idempotency_key=operation)).status_code == 503
    assert shop.pay("5.00", operation)["repeated"] is True
    assert GrantLedger.objects.get().uses == 1
