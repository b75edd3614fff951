"""Idempotency-Key: the same answer for the same call, and no answer for another."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from psycopg.errors import AdminShutdown, LockNotAvailable

from agentauth.protocol.errors import (
    IdempotencyMismatchError,
    InvalidRequestError,
    InvalidStateError,
)
from audit.models import Event
from registry.models import Grant, Human, IdempotencyRecord, ServiceProvider
from registry.services import idempotency
from registry.services.grants import deny_grant
from registry.services.idempotency import KEPT_FOR, IdempotentAnswer, run_once
from registry.tests.cast import TESTER, AgentClient, assert_refused, enrolled

pytestmark = pytest.mark.django_db


def test_the_same_call_gets_the_same_answer_whatever_happened_since(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    first = agent.ask(service_provider, key="a")
    grant = Grant.objects.select_related("agent").get()
    deny_grant(grant=grant, human=alice, reason="", actor=TESTER, now=now)
    second = agent.ask(service_provider, key="a")
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert second.json()["status"] == "pending"
    assert Grant.objects.count() == 1


def test_the_same_key_with_another_body_is_a_mismatch(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    agent.ask(service_provider, key="a")
    assert_refused(
        agent.ask(service_provider, key="a", reason="other"), 409, "idempotency_mismatch"
    )


def test_a_key_is_of_one_caller_and_one_route(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    agent.ask(service_provider, key="a")
    assert enrolled(alice, now=now).ask(service_provider, key="a").status_code == 201
    grant = Grant.objects.earliest("id")
    assert agent.call("POST", f"/v1/grants/{grant.id}/withdraw", {}, key="a").status_code == 204
    assert IdempotencyRecord.objects.count() == 3


def test_the_proof_is_checked_before_the_key(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    agent.ask(service_provider, key="a")
    answer = agent.call("POST", "/v1/grants", {"x": 1}, key="a", proof=None)
    assert_refused(answer, 401, "invalid_dpop_proof")


def test_U1_a_long_path_with_a_key_is_not_found_and_no_fault_of_ours(agent: AgentClient) -> None:
    assert_refused(
        agent.call("POST", f"/v1/grants/{'a' * 200}/revoke", {}, key="a"), 404, "not_found"
    )


@pytest.mark.parametrize("key", ["x" * 256, "with space", "ü", "\x7f"])
def test_a_key_is_short_and_plain(
    agent: AgentClient, service_provider: ServiceProvider, key: str
) -> None:
    with pytest.raises(InvalidRequestError):
        run_once(
            caller="c",
            route="r",
            key=key,
            body_sha256=b"",
            now=datetime.now().astimezone(),
            act=lambda: IdempotentAnswer(200),
        )
    assert agent.ask(service_provider, key="x" * 255).status_code == 201


def test_a_refusal_is_not_remembered_and_leaves_nothing(now: datetime) -> None:
    def fails() -> IdempotentAnswer:
        raise InvalidStateError("no")

    with pytest.raises(InvalidStateError):
        run_once(caller="c", route="r", key="k", body_sha256=b"1", now=now, act=fails)
    assert not IdempotencyRecord.objects.exists()
    assert (
        run_once(
            caller="c",
            route="r",
            key="k",
            body_sha256=b"1",
            now=now,
            act=lambda: IdempotentAnswer(204),
        ).status
        == 204
    )


@pytest.mark.parametrize(
    ("cause", "status", "error"),
    [
        (LockNotAvailable(), 409, "idempotency_in_progress"),
        (AdminShutdown(), 503, "temporarily_unavailable"),
    ],
)
def test_running_first_call_is_distinguished_from_a_database_timeout(
    agent: AgentClient, service_provider: ServiceProvider, cause: Exception, status: int, error: str
) -> None:
    def waits(execute: Any, sql: str, *rest: Any) -> object:
        if "INTO registry_idempotencyrecord" in sql:
            raise OperationalError from cause
        return execute(sql, *rest)

    with connection.execute_wrapper(waits):
        assert_refused(agent.ask(service_provider, key="a"), status, error)
    assert agent.ask(service_provider, key="a").status_code == 201


def test_an_answer_is_kept_for_a_day(now: datetime) -> None:
    seen: list[int] = []

    def act() -> IdempotentAnswer:
        seen.append(1)
        return IdempotentAnswer(200, {"run": len(seen)})

    for at, expected in ((now, 1), (now + KEPT_FOR - timedelta(seconds=1), 1), (now + KEPT_FOR, 2)):
        answer = run_once(caller="c", route="r", key="k", body_sha256=b"1", now=at, act=act)
        assert answer.body == {"run": expected}


def test_idempotency_row_cleaned_up_during_a_retry_is_not_a_500(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_once(
        caller="c",
        route="r",
        key="k",
        body_sha256=b"1",
        now=now,
        act=lambda: IdempotentAnswer(200, {"run": 1}),
    )
    claim = idempotency._claim

    def beside_the_cleaner(*arguments: Any) -> bool:
        claimed = claim(*arguments)
        IdempotencyRecord.objects.filter(expires_at__lte=now + KEPT_FOR).exclude(status=0).delete()
        return claimed

    monkeypatch.setattr(idempotency, "_claim", beside_the_cleaner)
    later: dict[str, Any] = {
        "caller": "c",
        "route": "r",
        "key": "k",
        "body_sha256": b"1",
        "now": now + KEPT_FOR,
    }
    assert run_once(**later, act=lambda: IdempotentAnswer(200, {"run": 2})).body == {"run": 2}


def test_the_act_and_its_answer_live_or_die_together(now: datetime) -> None:
    def act() -> IdempotentAnswer:
        assert transaction.get_connection().in_atomic_block
        return IdempotentAnswer(200)

    run_once(caller="c", route="r", key=None, body_sha256=b"", now=now, act=act)
    run_once(caller="c", route="r", key="k", body_sha256=b"1", now=now, act=act)
    with pytest.raises(IdempotencyMismatchError):
        run_once(caller="c", route="r", key="k", body_sha256=b"2", now=now, act=act)


def test_a_repeated_withdrawal_is_one_event(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    grant_id = agent.ask(service_provider).json()["grant_id"]
    for _ in range(2):
        assert agent.call("POST", f"/v1/grants/{grant_id}/withdraw", {}, key="w").status_code == 204
    assert Event.objects.filter(kind="registry.grant.withdrawn").count() == 1
