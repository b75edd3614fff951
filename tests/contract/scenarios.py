"""One small scenario per API refusal: those any operation can give, then those of one operation."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from psycopg.errors import LockNotAvailable

from agentauth.middleware import MAX_BODY_BYTES
from agentauth.openapi.operation_types import FORM
from agentauth.protocol.keys import LocalSigner
from audit.checkpoints import proofs_and_tiles
from registry import caller_limits
from registry.caller_limits import Limit
from registry.models import ServiceProvider
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.grant_requests import MAX_PENDING_PER_AGENT, MAX_PENDING_PER_HUMAN
from registry.services.grants import deny_grant
from registry.services.humans import create_human
from registry.services.idempotency import IdempotentAnswer, run_once
from registry.tests.cast import PAY, READ_CALENDAR, TESTER, AgentClient, enrolled, pending
from tests.contract.stage import AGENT, NOBODY, PROVIDER, Call, Stage, form, of

UNKNOWN = "01980000-0000-7000-8000-000000000000"
Scenario = Callable[[Stage, Call], Any]


@contextmanager
def database_fails(where: str = "", cause: Exception | None = None) -> Iterator[None]:
    """Statements that contain `where` fail as if the server were away, or with `cause`."""

    def away(execute: Any, sql: str, *rest: Any) -> object:
        if where in sql:
            raise OperationalError("no answer") from cause
        return execute(sql, *rest)

    with connection.execute_wrapper(away):
        yield


@contextmanager
def one_call_a_minute() -> Iterator[None]:
    """One call a minute, and the minute never ends however slow the test is."""
    sorts = (
        caller_limits.ADDRESS,
        caller_limits.ENTRY,
        caller_limits.STRANGERS,
        caller_limits.AGENT,
        caller_limits.HUMAN,
        caller_limits.SERVICE_PROVIDER,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "RATE_LIMITED", True)
        patch.setattr(settings, "WEB_CONCURRENCY", 1)
        patch.setattr(caller_limits, "time", SimpleNamespace(monotonic=lambda: 1_000.0))
        patch.setattr(caller_limits, "limits", lambda: {sort: Limit(1, 1) for sort in sorts})
        caller_limits.limiter.cache_clear()
        yield
    caller_limits.limiter.cache_clear()


def with_something_unknown(stage: Stage, call: Call) -> Any:
    # Most public operations read nothing but the host name.
    if call.by == NOBODY and not call.path.startswith("/v1/audit/"):
        return stage.send(call, host="elsewhere.example")
    return stage.send(call, query="?unknown=1")


def too_large(stage: Stage, call: Call) -> Any:
    # Public operations read no body, and meet only the limit of all addresses.
    wide = call.by == NOBODY or call.path.endswith("/batch")
    most = MAX_BODY_BYTES if wide else settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    assert most is not None
    return stage.send(call, body=b" " * (most + 1))


def by_a_stranger(stage: Stage, call: Call) -> Any:
    if call.by == PROVIDER:
        return stage.send(call, secret="not-the-secret")
    return stage.send(call, signer=AgentClient())


def too_often(stage: Stage, call: Call) -> Any:
    before = (
        of("GET", "/v1/agents/me")
        if call.by == AGENT and not call.signer
        else replace(call, body=b"")
    )
    with one_call_a_minute():
        stage.send(before)
        return stage.send(call)


def without_a_database(stage: Stage, call: Call) -> Any:
    with database_fails():
        return stage.send(call)


def key_of_another_body(stage: Stage, call: Call) -> Any:
    if call.by == PROVIDER:
        # A named call is decided in the database, which has its own name for it.
        body = json.dumps(stage.question(idempotency_key="mine")).encode()
        stage.send(call, body=body, key="k-1")
        return stage.send(call, body=body + b" ", key="k-1")
    run_once(
        caller=call.signer.jkt if call.signer else str(stage.agent.agent().pk),
        route=f"{call.method} {call.path}",
        key="k-1",
        body_sha256=hashlib.sha256(b"another").digest(),
        now=stage.now,
        act=lambda: IdempotentAnswer(200),
    )
    return stage.send(call, key="k-1")


def while_the_first_runs(stage: Stage, call: Call) -> Any:
    """As when PostgreSQL's lock_timeout ends the wait for the row the first call has locked."""
    row = (
        "verifier_providercall AS held"
        if call.by == PROVIDER
        else "INSERT INTO registry_idempotencyrecord"
    )
    with database_fails(row, LockNotAvailable()):
        return stage.send(call, key="k-1")


def of_an_unknown_id(stage: Stage, call: Call) -> Any:
    if call.path.startswith("/v1/audit/proof/"):
        return stage.send(call, query=f"?event={UNKNOWN}")
    if call.path.startswith("/v1/audit/tile/"):
        return stage.send(call, path=call.path.replace("000.p/1", "999"))
    if call.path == "/v1/grants":
        return stage.send(
            of(
                "POST",
                "/v1/grants",
                {"service_provider": "nobody", "capabilities": [READ_CALENDAR]},
            )
        )
    parts = call.path.split("/")
    parts[3] = UNKNOWN
    return stage.send(call, path="/".join(parts))


def before_it_is_signed(stage: Stage, call: Call) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs_and_tiles, "newest_signed", lambda **_: None)
        return stage.send(call)


def when_suspended(stage: Stage, call: Call) -> Any:
    suspend_agent(agent=stage.agent.agent(), actor=TESTER, now=stage.now)
    return stage.send(call)


def only_as_a_page(stage: Stage, call: Call) -> Any:
    return stage.send(call, accept="text/html")


# For any operation that documents the code; the call would succeed otherwise.
SHARED: dict[str, Scenario] = {
    "": lambda stage, call: stage.send(call),
    "invalid_request": with_something_unknown,
    "request_too_large": too_large,
    "unsupported_media_type": lambda stage, call: stage.send(
        call, body=call.body or b"{}", media_type="text/plain"
    ),
    "not_acceptable": only_as_a_page,
    "invalid_dpop_proof": lambda stage, call: stage.send(call, proof="not.a.proof"),
    "use_dpop_nonce": lambda stage, call: stage.send(call, nonce="nobody-gave-this"),
    "invalid_client": by_a_stranger,
    "not_found": of_an_unknown_id,
    "not_yet_logged": before_it_is_signed,
    "agent_inactive": when_suspended,
    "rate_limited": too_often,
    "temporarily_unavailable": without_a_database,
    "idempotency_mismatch": key_of_another_body,
    "idempotency_in_progress": while_the_first_runs,
}


def twice(stage: Stage, call: Call) -> Any:
    stage.send(call)
    return stage.send(call)


def by_a_revoked_key(stage: Stage, _: Call) -> Any:
    revoke_agent(agent=stage.agent.agent(), actor=TESTER, now=stage.now)
    return stage.agent.register()


def with_a_code_of_another(stage: Stage, _: Call) -> Any:
    bob = create_human(email="bob@example.org", name="Bob", actor=TESTER, now=stage.now)
    _row, code = create_enrolment_code(human=bob, actor=TESTER, now=stage.now)
    return stage.agent.register(code)


def bringing_one_too_many(stage: Stage, _: Call) -> Any:
    """An agent waiting for its answer is enrolled for a user who already has twenty waiting."""
    for _number in range(MAX_PENDING_PER_HUMAN // MAX_PENDING_PER_AGENT):
        other = enrolled(stage.alice, now=stage.now)
        for each in range(MAX_PENDING_PER_AGENT):
            wanted = READ_CALENDAR | {"resource": f"calendar/{each}"}
            pending(other, stage.provider, now=stage.now, capabilities=[wanted])
    stray = AgentClient()
    stray.register()
    pending(stray, stage.provider, now=stage.now)
    _row, code = create_enrolment_code(human=stage.alice, actor=TESTER, now=stage.now)
    return stray.register(code)


def onto_a_key_in_use(stage: Stage, call: Call) -> Any:
    other = AgentClient()
    assert other.register().status_code == 201
    body = {"new_key": stage.agent.key_change(LocalSigner(other.private))}
    return stage.send(of("POST", call.path, body))


def beyond_the_manifest(stage: Stage, call: Call) -> Any:
    wanted = {"type": "read", "resource": "mail"}
    return stage.send(
        of("POST", call.path, {"service_provider": stage.provider.slug, "capabilities": [wanted]})
    )


def more_than_a_token_holds(stage: Stage, call: Call) -> Any:
    wanted = [
        READ_CALENDAR
        | {"constraints": {"who": {"in": [f"{row:02}-{n:03}-{'x' * 20}" for n in range(64)]}}}
        for row in range(4)
    ]
    return stage.send(
        of("POST", call.path, {"service_provider": stage.provider.slug, "capabilities": wanted})
    )


def with_five_waiting(stage: Stage, call: Call) -> Any:
    for number in range(MAX_PENDING_PER_AGENT):
        stage.pending(capabilities=[READ_CALENDAR | {"resource": f"calendar/{number}"}])
    return stage.send(call)


def after_a_no(stage: Stage, call: Call) -> Any:
    deny_grant(grant=stage.pending(), human=stage.alice, reason="", actor=TESTER, now=stage.now)
    return stage.send(call)


def when_approved(stage: Stage, call: Call) -> Any:
    return stage.send(call, path=f"/v1/grants/{stage.approved(capabilities=[PAY]).pk}/withdraw")


def when_pending(stage: Stage, call: Call) -> Any:
    return stage.send(call, path=f"/v1/grants/{stage.pending(capabilities=[PAY]).pk}/revoke")


def of_a_revoked_token(stage: Stage, call: Call) -> Any:
    token = stage.send(call, key="k-1").json()["access_token"]
    stage.send(Call("POST", "/v1/revoke", form(token=token), FORM))
    return stage.send(call, key="k-1")


def by_a_row_that_no_service_wrote(stage: Stage, call: Call) -> Any:
    ServiceProvider.objects.filter(pk=stage.provider.pk).update(name="Another")
    return stage.send(call)


# For one operation: (operation, code), with the status where one code has several.
OWN: dict[tuple[str, str], Scenario] = {
    ("POST /v1/agents", "200"): twice,
    ("POST /v1/agents", "invalid_client"): by_a_revoked_key,
    ("POST /v1/agents", "invalid_manifest"): lambda s, c: s.send(
        of("POST", c.path, {"manifest": "a.b.c"})
    ),
    ("POST /v1/agents", "invalid_enrolment_code"): lambda *_: AgentClient().register("wrong"),
    ("POST /v1/agents", "manifest_conflict"): lambda s, _: s.agent.register(
        manifest=s.agent.manifest(name="Somebody Else")
    ),
    ("POST /v1/agents", "key_in_use"): with_a_code_of_another,
    ("POST /v1/agents", "too_many_pending_grants"): bringing_one_too_many,
    ("POST /v1/agents/me/manifest", "invalid_manifest"): lambda s, c: s.send(
        of("POST", c.path, {"manifest": AgentClient().manifest(later=5)})
    ),
    ("POST /v1/agents/me/manifest", "invalid_state"): lambda s, _: s.agent.replace(later=-3600),
    ("POST /v1/agents/me/key", "key_in_use"): onto_a_key_in_use,
    ("POST /v1/catalogue", "200"): twice,
    ("POST /v1/catalogue", "invalid_state"): by_a_row_that_no_service_wrote,
    ("POST /v1/grants", "200"): twice,
    ("POST /v1/grants", "invalid_scope"): beyond_the_manifest,
    ("POST /v1/grants", "grant_too_large"): more_than_a_token_holds,
    ("POST /v1/grants", "too_many_pending_grants"): with_five_waiting,
    ("POST /v1/grants", "cooldown_active"): after_a_no,
    ("GET /v1/grants/{grant_id}", "slow_down"): twice,
    ("POST /v1/grants/{grant_id}/withdraw", "invalid_state"): when_approved,
    ("POST /v1/grants/{grant_id}/revoke", "invalid_state"): when_pending,
    ("POST /v1/tokens", "invalid_grant"): lambda s, c: s.send(
        of("POST", c.path, {"grant_id": UNKNOWN})
    ),
    ("POST /v1/tokens", "idempotency_expired"): of_a_revoked_token,
    ("GET /v1/audit/events", "permission_denied"): lambda s, c: s.send(c, by=PROVIDER),
}
