"""A transaction above a threshold is asked about once, decided once by its human and used once."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, transaction
from django.utils import timezone
from pytest_django import Settings

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.errors import (
    ExpiredError,
    GrantChangedError,
    InvalidStateError,
    NotFoundError,
)
from audit.models import Event
from registry.api.long_poll import LONG_POLLS
from registry.models import Agent, Grant, ServiceProvider
from registry.services.agent_owners import own_agent_ids
from verifier.models import AgentOperation, Confirmation
from verifier.services.confirmation_lifecycle import (
    confirm,
    confirmation_state,
    deny,
    expire_confirmations,
    expire_one,
    find_for_human,
    pending_for,
)
from verifier.stores import database_decisions
from verifier.tests.scene import PAY, SYSTEM, Scene, assert_refused, key, pay, scene

pytestmark = pytest.mark.django_db

HUNDRED = {"value": "100.00", "currency": "EUR"}


@pytest.fixture
def shop(db: None) -> Scene:
    """Payments up to 500.00, above 100.00 only with a human's confirmation."""
    return scene(PAY, confirm_above=HUNDRED)


def asked(
    place: Scene, amount: str = "150.00", operation: str | None = None, **more: Any
) -> dict[str, Any]:
    body = place.body(pay(amount, **more), idempotency_key=operation or key())
    answer = assert_refused(place, body)
    assert (answer["error"], answer["reason"]) == ("step_up_required", "confirm_above")
    return answer


def test_EN_11_above_the_threshold_a_human_says_yes_once(shop: Scene) -> None:
    operation = key()
    assert shop.pay("100.00")["valid"]
    answer = asked(shop, operation=operation)
    row = Confirmation.objects.get()
    assert answer["confirmation_id"] == str(row.pk)
    assert answer["approval_url"] == f"http://localhost:8000/confirmations/{row.pk}/"
    # Asking again while it is pending returns the same confirmation.
    assert asked(shop, operation=operation) == answer
    shop.confirm(answer)
    allowed = shop.pay("150.00", operation)
    assert allowed["valid"]
    row.refresh_from_db()
    assert row.status == "consumed"
    assert Event.objects.get(pk=allowed["decision_id"]).data["confirmation_id"] == str(row.pk)
    # A retry gets the stored answer; a new operation needs a new confirmation.
    assert shop.pay("150.00", operation)["repeated"]
    assert asked(shop)["confirmation_id"] != answer["confirmation_id"]


def test_EN_11_a_yes_is_for_that_amount_that_payee_and_that_key(shop: Scene) -> None:
    operation = key()
    shop.confirm(asked(shop, operation=operation, arguments={"payee": "ACME"}))
    for body in (
        shop.body(pay("150.01", arguments={"payee": "ACME"}), idempotency_key=operation),
        shop.body(pay("150.00", arguments={"payee": "EVIL"}), idempotency_key=operation),
        shop.body(pay("150.00", arguments={"payee": "ACME"}), idempotency_key=key()),
    ):
        assert assert_refused(shop, body)["reason"] == "confirm_above"
    assert shop.ask(pay("150.00", arguments={"payee": "ACME"}), idempotency_key=operation)["valid"]


def test_a_yes_is_good_for_ten_minutes(shop: Scene) -> None:
    operation = key()
    shop.confirm(asked(shop, operation=operation))
    with time_machine.travel(timezone.now() + timedelta(minutes=10, seconds=1)):
        again = shop.body(pay("150.00"), idempotency_key=operation)
        answer = json.loads(shop.post(again).content)
        assert answer["reason"] == "confirm_above"
        assert Confirmation.objects.filter(status="expired").count() == 1
        assert Confirmation.objects.get(pk=answer["confirmation_id"]).status == "pending"


def test_a_no_is_for_good(shop: Scene) -> None:
    operation = key()
    row = Confirmation.objects.get(pk=asked(shop, operation=operation)["confirmation_id"])
    deny(confirmation=row, human=shop.human, actor=SYSTEM, now=timezone.now())
    for amount in ("150.00", "151.00"):
        answer = assert_refused(shop, shop.body(pay(amount), idempotency_key=operation))
        assert (answer["error"], answer["reason"]) == ("step_up_required", "confirmation_denied")
    Grant.objects.filter(pk=shop.grant.pk).update(version=2)
    answer = assert_refused(shop, shop.body(pay("150.00"), idempotency_key=operation))
    assert answer["reason"] == "confirmation_denied"


def test_no_question_is_put_that_a_yes_could_not_help() -> None:
    budget = {"value": "120.00", "currency": "EUR", "period": "total", "zone": "UTC"}
    place = scene(PAY, confirm_above=HUNDRED, budgets=[budget])
    answer = assert_refused(place, place.body(pay("150.00"), idempotency_key=key()))
    assert answer["reason"] == "budget"
    assert not Confirmation.objects.exists()


def test_a_yes_does_not_lift_another_limit() -> None:
    budget = {"value": "200.00", "currency": "EUR", "period": "total", "zone": "UTC"}
    place, operation = scene(PAY, confirm_above=HUNDRED, budgets=[budget]), key()
    place.confirm(asked(place, operation=operation))
    assert place.pay("100.00")["valid"]
    answer = assert_refused(place, place.body(pay("150.00"), idempotency_key=operation))
    assert answer["reason"] == "budget"
    # The refusal did not consume it.
    assert Confirmation.objects.get().status == "confirmed"
    assert AgentOperation.objects.count() == 1


def test_at_most_five_wait_per_grant(shop: Scene) -> None:
    for _ in range(5):
        assert "confirmation_id" in asked(shop)
    answer = asked(shop)
    assert "confirmation_id" not in answer
    assert "approval_url" not in answer
    assert 3500 < answer["retry_after"] <= 3600
    assert Confirmation.objects.count() == 5
    with time_machine.travel(timezone.now() + timedelta(hours=1, seconds=1)):
        answer = json.loads(shop.post(shop.body(pay("150.00"), idempotency_key=key())).content)
        assert "confirmation_id" in answer


def test_dry_run_requests_no_confirmation_and_uses_none(shop: Scene) -> None:
    operation = key()
    answer = asked_dry(shop, operation)
    assert "confirmation_id" not in answer
    assert not Confirmation.objects.exists()
    shop.confirm(asked(shop, operation=operation))
    assert shop.pay("150.00", operation, dry_run=True)["valid"]
    assert Confirmation.objects.get().status == "confirmed"


def asked_dry(place: Scene, operation: str) -> dict[str, Any]:
    return assert_refused(place, place.body(pay("150.00"), idempotency_key=operation, dry_run=True))


def test_new_grant_version_requires_a_new_confirmation(shop: Scene) -> None:
    operation = key()
    row = Confirmation.objects.get(pk=asked(shop, operation=operation)["confirmation_id"])
    Grant.objects.filter(pk=shop.grant.pk).update(version=2)
    with pytest.raises(GrantChangedError):
        confirm(confirmation=row, human=shop.human, actor=SYSTEM, now=timezone.now())
    assert asked(shop, operation=operation)["confirmation_id"] != str(row.pk)
    assert list(
        pending_for(own_agent_ids(shop.human), timezone.now()).values_list(
            "grant_version", flat=True
        )
    ) == [2]


@pytest.mark.parametrize(
    ("model", "change", "why"),
    [
        (Agent, {"status": "suspended", "suspended_by_owner": True}, "The agent is suspended"),
        (Agent, {"status": "suspended", "suspended_by_admin": True}, "The agent is suspended"),
        (Agent, {"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}, "registration has ended"),
        (ServiceProvider, {"status": "suspended"}, "The service is suspended"),
    ],
)
def test_a_human_confirms_nothing_that_may_not_be_done_and_can_deny_it(
    shop: Scene, model: Any, change: dict[str, Any], why: str
) -> None:
    row = Confirmation.objects.get(pk=asked(shop)["confirmation_id"])
    model.objects.update(**change)
    with pytest.raises(GrantChangedError, match=why):
        confirm(confirmation=row, human=shop.human, actor=SYSTEM, now=timezone.now())
    row.refresh_from_db()
    assert row.status == "pending"
    assert (
        deny(confirmation=row, human=shop.human, actor=SYSTEM, now=timezone.now()).status
        == "denied"
    )


def test_only_its_human_decides_and_only_once(shop: Scene) -> None:
    mallory = scene().human
    row = Confirmation.objects.get(pk=asked(shop)["confirmation_id"])
    with pytest.raises(NotFoundError):
        confirm(confirmation=row, human=mallory, actor=SYSTEM, now=timezone.now())
    with pytest.raises(NotFoundError):
        find_for_human(row.pk, mallory, timezone.now())
    assert [each.pk for each in pending_for(own_agent_ids(shop.human), timezone.now())] == [row.pk]
    assert not pending_for(own_agent_ids(mallory), timezone.now()).exists()
    confirm(confirmation=row, human=shop.human, actor=SYSTEM, now=timezone.now())
    for act in (confirm, deny):
        with pytest.raises(InvalidStateError):
            act(confirmation=row, human=shop.human, actor=SYSTEM, now=timezone.now())
    assert Event.objects.filter(kind="verifier.confirmation.confirmed").count() == 1
    assert not pending_for(own_agent_ids(shop.human), timezone.now()).exists()


def test_confirmation_expires_once_for_two_readers(shop: Scene) -> None:
    row = Confirmation.objects.get(pk=asked(shop)["confirmation_id"])
    with transaction.atomic():
        assert expire_one(row, actor=SYSTEM, now=timezone.now())
        assert not expire_one(row, actor=SYSTEM, now=timezone.now())
    assert Event.objects.filter(kind="verifier.confirmation.expired").count() == 1


def test_a_question_lives_an_hour(shop: Scene) -> None:
    row = Confirmation.objects.get(pk=asked(shop)["confirmation_id"])
    later = timezone.now() + timedelta(hours=1, seconds=1)
    with pytest.raises(ExpiredError):
        confirm(confirmation=row, human=shop.human, actor=SYSTEM, now=later)
    assert not pending_for(own_agent_ids(shop.human), later).exists()
    assert expire_confirmations(now=later) == 1
    assert expire_confirmations(now=later) == 0
    assert Event.objects.filter(kind="verifier.confirmation.expired").count() == 1


@pytest.mark.parametrize(
    ("before", "after"), [("denied", "confirmed"), ("expired", "pending"), ("pending", "consumed")]
)
def test_the_database_holds_the_states(shop: Scene, before: str, after: str) -> None:
    row = Confirmation.objects.filter(pk=asked(shop)["confirmation_id"])
    now = timezone.now()
    row.update(status=before, human=shop.human, decided_at=now, usable_until=now)
    with pytest.raises(IntegrityError, match="cannot go there"), transaction.atomic():
        row.update(status=after, consumed_at=now if after == "consumed" else None)


def test_the_database_holds_one_question_per_operation(shop: Scene) -> None:
    row = Confirmation.objects.get(pk=asked(shop)["confirmation_id"])
    row.pk = None
    row.id = Confirmation().id
    row._state.adding = True
    with pytest.raises(IntegrityError), transaction.atomic():
        row.save(force_insert=True)


def look(place: Scene, path: str, query: str = "") -> Any:
    proof = make_proof(
        place.signer,
        method="GET",
        url=f"http://localhost:8000{path}",
        iat=int(timezone.now().timestamp()),
        jti=key(),
    )
    return place.client.get(path + query, headers={"DPoP": proof})


def test_the_agent_sees_what_became_of_it(shop: Scene) -> None:
    operation = key()
    answer = asked(shop, operation=operation)
    path = f"/v1/confirmations/{answer['confirmation_id']}"
    seen = look(shop, path).json()
    assert seen["status"] == "pending"
    assert seen["approval_url"] == answer["approval_url"]
    assert seen["action"] == {**pay("150.00"), "arguments": {}}
    assert seen["idempotency_key"] == operation
    assert look(shop, path, "?wait=1").json()["status"] == "pending"
    shop.confirm(answer)
    assert look(shop, path, "?wait=30").json()["status"] == "confirmed"
    with time_machine.travel(timezone.now() + timedelta(minutes=10, seconds=1)):
        assert look(shop, path).json()["status"] == "expired"


def test_the_agent_lists_what_was_asked_for_it_newest_first_in_pages(shop: Scene) -> None:
    asked_ids = [asked(shop)["confirmation_id"] for _ in range(3)]
    newest_first = asked_ids[::-1]
    everything = look(shop, "/v1/confirmations").json()
    assert [row["confirmation_id"] for row in everything["results"]] == newest_first
    assert everything["next"] is None
    assert everything["results"][0] == look(shop, f"/v1/confirmations/{newest_first[0]}").json()
    first = look(shop, "/v1/confirmations", "?limit=2").json()
    rest = look(shop, "/v1/confirmations", f"?limit=2&after={first['next']}").json()
    assert [row["confirmation_id"] for row in first["results"] + rest["results"]] == newest_first
    assert rest["next"] is None
    assert look(scene(), "/v1/confirmations").json() == {"results": [], "next": None}
    assert shop.client.get("/v1/confirmations").status_code == 401
    for query in ("?limit=0", "?limit=101", "?after=x", "?grant=1"):
        assert look(shop, "/v1/confirmations", query).status_code == 400


def test_confirmation_during_a_retry_is_seen_by_the_next_call(
    shop: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = key()
    answer = asked(shop, operation=operation)
    read = confirmation_state

    def just_before(**given: Any) -> Any:
        state = read(**given)
        shop.confirm(answer)
        return state

    with monkeypatch.context() as patch:
        patch.setattr(database_decisions, "confirmation_state", just_before)
        again = shop.ask(pay("150.00"), idempotency_key=operation)
    assert (again["reason"], again["confirmation_id"]) == (
        "confirm_above",
        answer["confirmation_id"],
    )
    assert (
        look(shop, f"/v1/confirmations/{answer['confirmation_id']}").json()["status"] == "confirmed"
    )
    assert shop.ask(pay("150.00"), idempotency_key=operation)["valid"]


def test_confirmation_is_404_for_any_other_provider(shop: Scene) -> None:
    path = f"/v1/confirmations/{asked(shop)['confirmation_id']}"
    theirs = look(scene(), path)
    unknown = look(shop, f"/v1/confirmations/{shop.agent.pk}")
    garbage = look(shop, "/v1/confirmations/nonsense")
    assert [answer.status_code for answer in (theirs, unknown, garbage)] == [404, 404, 404]
    assert theirs.json() == unknown.json() == garbage.json()
    assert shop.client.get(path).status_code == 401
    assert look(shop, path, "?wait=31").status_code == 400
    assert look(shop, path, "?x=1").status_code == 400


def test_waiting_grants_and_confirmations_share_a_quarter_of_threads(
    shop: Scene, settings: Settings
) -> None:
    path = f"/v1/confirmations/{asked(shop)['confirmation_id']}"
    taken = 0
    try:
        while LONG_POLLS.acquire(blocking=False):
            taken += 1
        begun = time.monotonic()
        assert look(shop, path, "?wait=30").json()["status"] == "pending"
        assert time.monotonic() - begun < 15
        assert 0 < 4 * taken <= settings.WEB_THREADS
    finally:
        for _ in range(taken):
            LONG_POLLS.release()
