"""The service provider's Idempotency-Key: a lost answer is returned again, always the first one."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import OperationalError, connection
from django.utils import timezone
from psycopg.errors import AdminShutdown, LockNotAvailable

from audit.models import Event
from kms.models import Key
from kms.services import disable_key
from registry.models import Agent, Grant, Human, ServiceProvider, SpentProof
from registry.services.agents import suspend_agent
from registry.services.grants import revoke_grant
from registry.services.nonces import STEP_SECONDS, nonces_of
from registry.services.tokens import revoke_token
from verifier.models import AgentOperation, GrantLedger, ProviderCall
from verifier.requests import parse_delivery, parse_verify_request
from verifier.services.expiry import expire_everything
from verifier.services.web_verification import verify
from verifier.stores import database_decisions, transaction_batch
from verifier.tests.scene import LOOK, PAY, SYSTEM, Scene, assert_refused, counters, key, pay, scene

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop(db: None) -> Scene:
    return scene(PAY, max_uses=10)


def fails(*_args: object, **_kwargs: object) -> object:
    raise OperationalError("connection to database.internal failed")


def test_the_same_call_gets_the_same_answer_and_nothing_happens_twice(shop: Scene) -> None:
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    first = shop.post(body, call_key=call_key)
    assert json.loads(first.content)["valid"]
    known, used = Event.objects.count(), counters()
    again = shop.post(body, call_key=call_key)
    # Identical bytes, without `repeated`: the service provider missed the first answer and acts
    # now.
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again["Cache-Control"] == "no-store"
    assert counters() == used
    # It is not a new decision, so it writes no event.
    assert Event.objects.count() == known


def test_without_the_key_the_same_call_is_a_replay(shop: Scene) -> None:
    body = shop.body(pay("5.00"), idempotency_key=key())
    assert json.loads(shop.post(body).content)["valid"]
    assert assert_refused(shop, body, call_key=key())["reason"] == "replayed"


@pytest.mark.parametrize(
    "change",
    [
        {"proof": None},
        {"proof": "x"},
        {"method": "GET"},
        {"action": pay("501.00")},
    ],
)
def test_a_refusal_is_given_again_as_well(shop: Scene, change: dict[str, Any]) -> None:
    body, call_key = {**shop.body(pay("5.00"), idempotency_key=key()), **change}, key()
    answer = assert_refused(shop, body, call_key=call_key)
    known = Event.objects.count()
    assert json.loads(shop.post(body, call_key=call_key).content) == answer
    assert Event.objects.count() == known


def test_the_agents_mismatch_is_given_again_as_well(shop: Scene) -> None:
    operation, call_key = key(), key()
    shop.pay("5.00", operation)
    body = shop.body(pay("6.00"), idempotency_key=operation)
    answer = assert_refused(shop, body, status=409, call_key=call_key)
    assert answer["error"] == "idempotency_mismatch"
    known = Event.objects.count()
    again = shop.post(body, call_key=call_key)
    assert (again.status_code, json.loads(again.content)) == (409, answer)
    assert Event.objects.count() == known


def test_the_key_with_another_body_is_a_mismatch(shop: Scene) -> None:
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    shop.post(body, call_key=call_key)
    # One more space is another body, because the digest covers the bytes.
    spaced = json.dumps(body, indent=1).encode()
    spent_by_nobody = shop.body(pay("5.00"), idempotency_key=key())
    for other in (spent_by_nobody, spaced):
        assert (
            assert_refused(shop, other, status=409, call_key=call_key)["error"]
            == "idempotency_mismatch"
        )
    assert GrantLedger.objects.get().uses == 1
    # The other call was not decided. If proofs are in Redis, its proof is spent all the same.
    assert shop.ask(pay("5.00"), idempotency_key=spent_by_nobody["idempotency_key"])["valid"]


@pytest.mark.parametrize("call_key", ["", "with space", "x" * 256, "schlüssel", "\x7f"])
def test_the_key_is_short_and_plain(shop: Scene, call_key: str) -> None:
    body = shop.body(pay("5.00"), idempotency_key=key())
    assert assert_refused(shop, body, status=400, call_key=call_key)["error"] == "invalid_request"
    assert not SpentProof.objects.exists()
    assert json.loads(shop.post(body, call_key="x" * 255).content)["valid"]


def test_the_key_is_never_the_agents(shop: Scene) -> None:
    operation = key()
    body = shop.body(pay("5.00"), idempotency_key=operation)
    assert assert_refused(shop, body, status=400, call_key=operation)["error"] == "invalid_request"
    assert not SpentProof.objects.exists()


def test_a_key_is_of_one_service_provider(shop: Scene) -> None:
    other, call_key = scene(PAY), key()
    for place in (shop, other):
        body = place.body(pay("5.00"), idempotency_key=key())
        assert json.loads(place.post(body, call_key=call_key).content)["valid"]
    assert ProviderCall.objects.count() == 2


def test_only_an_authenticated_service_provider_gets_an_answer_again(shop: Scene) -> None:
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    shop.post(body, call_key=call_key)
    assert shop.post(body, call_key=call_key, secret="wrong").status_code == 401


def test_an_answer_is_kept_for_a_minute(shop: Scene) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
        first = shop.post(body, call_key=call_key).content
        clock.shift(59.9)
        assert shop.post(body, call_key=call_key).content == first
        assert expire_everything(now=timezone.now())["calls"] == 0
        clock.shift(0.1)
        # Now it is a new call: its proof was spent, and that answer is kept instead.
        assert assert_refused(shop, body, call_key=call_key)["reason"] == "replayed"
        assert json.loads(shop.post(body, call_key=call_key).content)["reason"] == "replayed"
        assert expire_everything(now=timezone.now() + timedelta(seconds=60))["calls"] == 1
        assert not ProviderCall.objects.exists()


def test_neither_key_nor_token_nor_proof_is_kept(shop: Scene) -> None:
    operation, call_key = key(), key()
    body = shop.body(pay("5.00"), idempotency_key=operation)
    shop.post(body, call_key=call_key)
    kept = str(list(ProviderCall.objects.values()))
    assert all(secret not in kept for secret in (operation, call_key, body["token"], body["proof"]))


# ---- a yes that would be wrong by now


def jti_of(place: Scene) -> str:
    return str(Event.objects.get(kind="verifier.decision.allowed").token_jti)


def disable_signing_key(_place: Scene) -> None:
    disable_key(
        kid=Key.objects.get(purpose="token").kid, actor=SYSTEM, now=timezone.now(), even_last=True
    )


CHANGES: dict[str, tuple[Callable[[Scene], object], str]] = {
    "token": (
        lambda place: revoke_token(jti=jti_of(place), actor=SYSTEM, now=timezone.now()),
        "revoked",
    ),
    "grant": (
        lambda place: revoke_grant(grant=place.grant, actor=SYSTEM, now=timezone.now()),
        "grant_inactive",
    ),
    "version": (lambda _place: Grant.objects.update(version=2), "grant_inactive"),
    "agent": (
        lambda place: suspend_agent(agent=place.agent, actor=SYSTEM, now=timezone.now()),
        "agent_inactive",
    ),
    "key": (lambda _place: Agent.objects.update(jkt="another"), "revoked"),
    "human": (lambda _place: Human.objects.update(status="suspended"), "human_inactive"),
    "signing key": (disable_signing_key, "unknown"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_stored_yes_is_not_repeated_once_it_is_no_longer_true(shop: Scene, what: str) -> None:
    change, reason = CHANGES[what]
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    first = shop.post(body, call_key=call_key).content
    change(shop)
    answer = assert_refused(shop, body, call_key=call_key)
    assert (answer["error"], answer["reason"]) == ("invalid_token", reason)
    # The first answer stays kept, since it was true when it was given.
    assert ProviderCall.objects.get().answer.encode() == json.dumps(json.loads(first)).encode()


def test_a_yes_is_not_given_again_once_the_token_has_ended() -> None:
    place = scene(PAY, max_session_seconds=60)
    with time_machine.travel(timezone.now(), tick=False) as clock:
        token = place.token()
        clock.shift(30)
        body, call_key = place.body(pay("5.00"), token=token, idempotency_key=key()), key()
        assert json.loads(place.post(body, call_key=call_key).content)["valid"]
        clock.shift(31)
        assert assert_refused(place, body, call_key=call_key)["reason"] == "expired"


def test_a_yes_is_given_again_though_its_proof_is_too_old_by_now(shop: Scene) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
        clock.shift(30)
        first = shop.post(body, call_key=call_key).content
        clock.shift(45)
        # Judged again, the proof would be refused for its age.
        assert shop.post(body, call_key=call_key).content == first
        suspend_agent(agent=shop.agent, actor=SYSTEM, now=timezone.now())
        assert assert_refused(shop, body, call_key=call_key)["reason"] == "agent_inactive"


def test_a_yes_given_again_brings_the_nonce_of_now(shop: Scene) -> None:
    server = str(shop.provider.pk)
    ServiceProvider.objects.update(require_nonce=True)
    edge = (int(timezone.now().timestamp()) // STEP_SECONDS + 2) * STEP_SECONDS
    with time_machine.travel(edge - 10, tick=False) as clock:
        token, call_key = shop.token(), key()
        proof = shop.proof(token, nonce=nonces_of(server, timezone.now()).current)
        body = shop.body(pay("5.00"), token=token, proof=proof, idempotency_key=key())
        first = json.loads(shop.post(body, call_key=call_key).content)
        assert "nonce" not in first
        clock.shift(20)
        again = json.loads(shop.post(body, call_key=call_key).content)
        assert again == first | {"nonce": nonces_of(server, timezone.now()).current}


# ---- trouble


FAULTS = [
    (database_decisions, "spend_proofs"),
    (database_decisions, "DecisionBatch"),
    (database_decisions, "decide"),
    (database_decisions, "body_of"),
    (transaction_batch, "record_drafts"),
    (database_decisions, "fault_point"),
]


@pytest.mark.parametrize(("module", "place_of_fault"), FAULTS)
def test_503_is_never_stored_and_the_retry_is_judged_again(
    shop: Scene, monkeypatch: pytest.MonkeyPatch, module: Any, place_of_fault: str
) -> None:
    """The last two fail after the decision: before its answer is kept, and before the commit."""
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    with monkeypatch.context() as patch:
        patch.setattr(module, place_of_fault, fails)
        assert shop.post(body, call_key=call_key).status_code == 503
    assert not ProviderCall.objects.exists()
    assert not SpentProof.objects.exists()
    answer = json.loads(shop.post(body, call_key=call_key).content)
    assert answer["valid"]
    assert "repeated" not in answer
    assert GrantLedger.objects.get().uses == 1


@pytest.mark.parametrize(("module", "place_of_fault"), FAULTS[1:])
def test_fault_after_spending_a_proof_does_not_make_a_retry_a_replay(
    db: None, monkeypatch: pytest.MonkeyPatch, module: Any, place_of_fault: str
) -> None:
    """In every replay cache. The failed tries do not use up the only use of the rate either."""
    place = scene(PAY, max_uses=10, max_requests_per_minute=6, max_burst=1)
    body, call_key = place.body(pay("5.00"), idempotency_key=key()), key()
    with monkeypatch.context() as patch:
        patch.setattr(module, place_of_fault, fails)
        for _ in range(2):
            assert place.post(body, call_key=call_key).status_code == 503
    assert not ProviderCall.objects.exists()
    first = place.post(body, call_key=call_key)
    assert json.loads(first.content)["valid"], first.content
    assert place.post(body, call_key=call_key).content == first.content
    assert GrantLedger.objects.get().uses == 1
    assert Event.objects.filter(kind__startswith="verifier.decision.").count() == 1
    # For any other call, the proof is spent and the use is taken.
    assert assert_refused(place, body, call_key=key())["reason"] == "replayed"
    assert assert_refused(place, place.body(pay("5.00"), idempotency_key=key()))["reason"] == "rate"


def test_an_answer_committed_but_reported_lost_is_had_again(
    shop: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    with monkeypatch.context() as patch:
        patch.setattr(
            database_decisions,
            "fault_point",
            lambda name: fails() if name == "verify.after_commit" else None,
        )
        assert shop.post(body, call_key=call_key).status_code == 503
    answer = json.loads(shop.post(body, call_key=call_key).content)
    assert answer["valid"]
    assert "repeated" not in answer
    assert GrantLedger.objects.get().uses == 1
    assert AgentOperation.objects.count() == 1


def test_a_refusal_whose_answer_cannot_be_kept_is_503_and_no_event(
    shop: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [shop.body(pay("501.00"), idempotency_key=key()), shop.body(pay("5.00"), proof=None)]
    known = Event.objects.count()
    for body in (bodies[0], {**bodies[1], "idempotency_key": key()}):
        with monkeypatch.context() as patch:
            patch.setattr(database_decisions, "body_of", fails)
            assert shop.post(body, call_key=key()).status_code == 503
    assert Event.objects.count() == known


@pytest.mark.django_db(transaction=True)
def test_sixteen_at_once_are_one_decision_and_one_answer() -> None:
    shop = scene(PAY, max_uses=10)
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    raw = json.dumps(body).encode()
    asked = parse_verify_request(body)
    provider_key = parse_delivery(
        call_key, service_provider_id=shop.provider.pk, body=raw, operation_key=asked.operation_key
    )

    def ask(_number: int) -> str:
        try:
            return json.dumps(
                verify(
                    service_provider=shop.provider,
                    request=asked,
                    provider_key=provider_key,
                    actor=SYSTEM,
                    now=timezone.now(),
                ).body
            )
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(ask, range(16)))
    assert len(answers) == 1
    assert json.loads(answers.pop())["valid"]
    assert GrantLedger.objects.get().uses == 1
    assert Event.objects.filter(kind__startswith="verifier.decision.").count() == 1


@pytest.mark.parametrize(
    ("cause", "status", "error"),
    [
        # lock_timeout, while the first call holds the row; and a database that shuts down.
        (LockNotAvailable(), 409, "idempotency_in_progress"),
        (AdminShutdown(), 503, "temporarily_unavailable"),
    ],
)
def test_a_call_that_still_runs_is_said_to_and_a_fault_is_none(
    shop: Scene, cause: Exception, status: int, error: str
) -> None:
    def waits(execute: Any, sql: str, *rest: Any) -> object:
        if "verifier_providercall AS held" in sql:
            raise OperationalError from cause
        return execute(sql, *rest)

    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    with connection.execute_wrapper(waits):
        answer = shop.post(body, call_key=call_key)
    assert (answer.status_code, json.loads(answer.content)["error"]) == (status, error)
    assert json.loads(shop.post(body, call_key=call_key).content)["valid"]


def test_an_answer_that_came_there_since_it_was_looked_for_is_503(
    shop: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, call_key = shop.body(pay("5.00"), idempotency_key=key()), key()
    with monkeypatch.context() as patch:
        patch.setattr(transaction_batch.DecisionBatch, "kept_answer", lambda *_: None)
        assert shop.post(body, call_key=call_key).status_code == 200
        again = shop.body(pay("5.00"), idempotency_key=key())
        assert shop.post(again, call_key=call_key).status_code == 503
    assert GrantLedger.objects.get().uses == 1


@pytest.mark.parametrize("counted", [True, False])
def test_a_dry_run_is_judged_again_and_keeps_nothing(shop: Scene, counted: bool) -> None:
    """Whatever its key: it may be of another body, too."""
    place = shop if counted else scene()
    ask = {"idempotency_key": key()} if counted else {}
    dry = place.body(pay("5.00") if counted else LOOK, dry_run=True, **ask)
    call_key, given = key(), []
    for body in (dry, dry, dry | {"idempotency_key": key()}):
        answer = json.loads(place.post(body, call_key=call_key).content)
        assert answer["valid"]
        given.append(answer["decision_id"])
    assert len(set(given)) == 3
    for kept in (SpentProof, AgentOperation, ProviderCall, GrantLedger):
        assert not kept.objects.exists()
    # Its refusals are not kept either.
    assert not json.loads(
        place.post(dry | {"url": "https://x.example/"}, call_key=call_key).content
    )["valid"]
    assert not ProviderCall.objects.exists()
    revoke_grant(grant=place.grant, actor=SYSTEM, now=timezone.now())
    assert assert_refused(place, dry, call_key=call_key)["reason"] == "grant_inactive"
