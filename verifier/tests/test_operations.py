"""Steps 8 and 9: what the capabilities cover, and that an agent's operation is done once."""

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from audit.models import Event
from audit.tests.event_openings import opened
from registry.models import Grant
from registry.services.agents import suspend_agent
from tests import receipts
from verifier.models import AgentOperation, GrantLedger
from verifier.services.expiry import expire_everything
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, assert_refused, key, pay, scene

pytestmark = pytest.mark.django_db


def test_VB_8_reading_is_not_writing(place: Scene) -> None:
    answer = assert_refused(place, place.body({"type": "write", "resource": "calendar/work"}))
    assert (answer["error"], answer["reason"]) == ("insufficient_scope", "no_capability")
    assert "violations" not in answer
    other = assert_refused(place, place.body({"type": "read", "resource": "calendars"}))
    assert other["reason"] == "no_capability"


def test_a_broken_limit_is_named() -> None:
    place = scene({**PAY, "constraints": {"payee": {"in": ["ACME"]}}})
    answer = assert_refused(
        place, place.body(pay("500.01", arguments={"payee": "EVIL"}), idempotency_key=key())
    )
    assert (answer["error"], answer["reason"]) == ("insufficient_scope", "constraint")
    assert answer["violations"] == [
        {"argument": "payee", "operator": "in", "limit": ["ACME"]},
        {
            "argument": "amount",
            "operator": "max_amount",
            "limit": {"value": "500.00", "currency": "EUR"},
        },
    ]
    # Arguments are the service provider's data, so the log does not contain them.
    assert place.denial is not None
    assert "EVIL" not in str(place.denial.data)


@pytest.mark.parametrize(
    ("constraint", "good", "bad"), [({"eq": 1}, 1, True), ({"eq": False}, False, 0)]
)
def test_one_is_not_true_however_often_one_token_asks(
    constraint: dict[str, Any], good: Any, bad: Any
) -> None:
    place = scene({**READ, "constraints": {"n": constraint}})
    token = place.token()
    told = [
        place.ask({**LOOK, "arguments": {"n": n}}, token=token)["valid"]
        for n in (bad, good, bad, good)
    ]
    assert told == [False, True, False, True]


def test_another_currency_is_a_broken_limit() -> None:
    place = scene(PAY)
    action = {
        "type": "transact",
        "resource": "payments",
        "amount": {"value": "1.00", "currency": "USD"},
    }
    assert (
        assert_refused(place, place.body(action, idempotency_key=key()))["reason"] == "constraint"
    )


def test_long_limits_never_make_a_long_answer() -> None:
    names = {
        name: {"in": [f"{name}-{n}-" + "y" * 60 for n in range(9)]} for name in ("first", "second")
    }
    place = scene({**READ, "constraints": names})
    answer = assert_refused(place, place.body(LOOK))
    assert [violation["argument"] for violation in answer["violations"]] == ["first", "second"]
    assert "limit" in answer["violations"][0]
    assert "limit" not in answer["violations"][1]


def test_as_many_violations_are_returned_as_fit() -> None:
    names = [f"argument-{number:02d}-{'x' * 50}" for number in range(16)]
    place = scene({**READ, "constraints": {name: {"min": 1} for name in names}})
    told = [
        violation["argument"] for violation in assert_refused(place, place.body(LOOK))["violations"]
    ]
    assert 5 < len(told) < 16
    assert told == names[: len(told)]


def test_an_act_of_the_providers_own_is_on_record_by_its_name() -> None:
    own = {"type": "custom", "namespace": "acme.crm", "name": "merge", "resource": "contacts"}
    place = scene(own)
    allowed = place.ask({**own, "resource": "contacts/7"})
    assert allowed["valid"]
    data = opened(Event.objects.get(pk=allowed["decision_id"]))
    assert data["action"] == {"type": "custom"}
    named = {"namespace": "acme.crm", "name": "merge", "resource": "contacts/7"}
    assert data["details"] == named | {"capability": "custom:acme.crm.merge:contacts"}
    other = assert_refused(place, place.body({**own, "name": "split"}))
    assert other["reason"] == "no_capability"


def test_an_operation_is_done_once_and_answered_again(place: Scene) -> None:
    operation = key()
    first = place.ask(LOOK, idempotency_key=operation)
    again = place.ask(LOOK, idempotency_key=operation)
    assert again.pop("repeated") is True
    assert again | {"expires_in": 0} == first | {"expires_in": 0}
    assert GrantLedger.objects.get().uses == 1
    event = Event.objects.get(kind="verifier.decision.repeated")
    assert event.data["repeats"] == first["decision_id"]


def test_EN_5_the_same_key_for_another_amount_is_a_mismatch() -> None:
    place, operation = scene(PAY), key()
    assert place.pay("10.00", operation)["valid"]
    body = place.body(pay("11.00"), idempotency_key=operation)
    answer = assert_refused(place, body, status=409)
    assert answer["error"] == "idempotency_mismatch"
    # Its proof is spent all the same.
    assert assert_refused(place, body)["reason"] == "replayed"
    assert assert_refused(
        place,
        place.body(pay("10.00", arguments={"payee": "X"}), idempotency_key=operation),
        status=409,
    )


def test_a_key_without_an_action_is_not_a_key_for_one(place: Scene) -> None:
    operation = key()
    assert place.ask(idempotency_key=operation)["valid"]
    assert place.ask(idempotency_key=operation)["repeated"]
    assert assert_refused(place, place.body(LOOK, idempotency_key=operation), status=409)


def test_a_key_belongs_to_its_grant(place: Scene) -> None:
    other, operation = scene(), key()
    assert place.ask(LOOK, idempotency_key=operation)["valid"]
    assert "repeated" not in other.ask(
        {"type": "read", "resource": "calendar/home"}, idempotency_key=operation
    )


def test_only_an_allowed_decision_is_remembered() -> None:
    place, operation = scene(PAY, max_requests_per_minute=1), key()
    assert place.pay("1.00")["valid"]
    assert place.pay("1.00", operation)["reason"] == "rate"
    with time_machine.travel(timezone.now() + timedelta(seconds=61)):
        answer = place.pay("1.00", operation)
        assert answer["valid"]
        assert "repeated" not in answer


def test_a_repeat_needs_a_fresh_proof_and_a_living_grant(place: Scene) -> None:
    operation = key()
    body = place.body(LOOK, idempotency_key=operation)
    place.post(body)
    assert assert_refused(place, body)["reason"] == "replayed"
    token = place.token()
    suspend_agent(agent=place.agent, actor=SYSTEM, now=timezone.now())
    assert (
        assert_refused(place, place.body(LOOK, token=token, idempotency_key=operation))["error"]
        == "invalid_token"
    )


def test_a_repeat_passes_where_the_limits_are_used_up() -> None:
    place, operation = scene(PAY, max_uses=1), key()
    assert place.pay("5.00", operation)["limits"]["uses_remaining"] == 0
    assert place.pay("5.00")["reason"] == "max_uses"
    assert place.pay("5.00", operation)["repeated"] is True


@pytest.mark.parametrize(
    ("capability", "action", "repeated"), [(READ, LOOK, False), (PAY, pay("1.00"), True)]
)
def test_payment_is_remembered_for_its_grant_and_others_for_a_day(
    capability: dict[str, Any], action: dict[str, Any], repeated: bool
) -> None:
    place, operation = scene(capability), key()
    assert place.ask(action, idempotency_key=operation)["valid"]
    with time_machine.travel(timezone.now() + timedelta(hours=24, seconds=1)):
        answer = place.ask(action, idempotency_key=operation)
        assert answer["valid"]
        assert ("repeated" in answer) is repeated
    assert AgentOperation.objects.count() == 1


def test_EN_16_a_hundred_dry_runs_consume_nothing() -> None:
    """tests/faults/test_races.py sends a thousand to all servers at once."""
    place = scene(
        PAY,
        max_uses=3,
        max_requests_per_minute=10,
        budgets=[{"value": "100.00", "currency": "EUR", "period": "day", "zone": "UTC"}],
    )
    operation, token = key(), place.token()
    limits: list[Any] = []
    for _ in range(
        10
    ):  # A new proof for each ten, because one may expire before a slow machine has sent all.
        body = place.body(pay("60.00"), token=token, idempotency_key=operation, dry_run=True)
        now = timezone.now()
        limits += [place.post(body).json()["limits"] for _ in range(10)]  # type: ignore[attr-defined]
    before = limits[0]
    assert limits == [before] * 100
    assert before == {
        "rate_remaining": 1,
        "budgets": [{"currency": "EUR", "period": "day", "remaining": "100.00"}],
        "uses_remaining": 3,
    }
    assert not AgentOperation.objects.exists()
    assert not GrantLedger.objects.exclude(uses=0).exists()
    # The proof is still unspent. Go back in time, because it may have expired on a slow machine.
    with time_machine.travel(now):
        spent = place.post(body | {"dry_run": False}).json()  # type: ignore[attr-defined]
    assert spent["limits"]["uses_remaining"] == 2


def test_counters_outlive_a_change_of_the_grant() -> None:
    budget = {"value": "100.00", "currency": "EUR", "period": "total", "zone": "UTC"}
    place = scene(PAY, budgets=[budget], max_uses=5)
    assert place.pay("60.00")["valid"]
    Grant.objects.filter(pk=place.grant.pk).update(
        version=2, envelope={"budgets": [budget | {"value": "80.00"}], "max_uses": 5}
    )
    receipts.sign(Grant.objects.get(pk=place.grant.pk), now=timezone.now())
    assert place.pay("30.00")["reason"] == "budget"
    answer = place.pay("20.00")
    assert answer["limits"]["budgets"][0]["remaining"] == "0.00"
    assert answer["limits"]["uses_remaining"] == 3


def test_operations_that_can_no_longer_be_used_are_deleted() -> None:
    place = scene(READ, PAY)
    assert place.ask(LOOK, idempotency_key=key())["valid"]
    assert place.pay("1.00")["valid"]
    later = timezone.now() + timedelta(hours=24, seconds=1)
    assert expire_everything(now=timezone.now())["operations"] == 0
    assert expire_everything(now=later)["operations"] == 1
    # The operation is remembered as long as its grant.
    assert AgentOperation.objects.get().expires_at is None
