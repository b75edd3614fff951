"""Trouble of the agent's side: outages, many calls at once, and hostile answers."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth import Capability
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from agentauth.sdk import AgentAuthClient, NoGrantError, RegistryError
from agentauth.sdk.registry_answers import Grant
from agentauth.sdk.tests.fake_registry import (
    CALENDAR,
    GRANT_ID,
    SP_ID,
    TERMS,
    URL,
    FakeRegistry,
    error,
    grant,
    registered,
    run,
)

STALE = {"WWW-Authenticate": 'DPoP error="invalid_token", algs="EdDSA"'}
MANY = 100


async def at_once(client: AgentAuthClient) -> list[int]:
    calls = (client.call(SP_ID, "GET", "/v1/x") for _ in range(MANY))
    return [response.status_code for response in await asyncio.gather(*calls)]


# ---- outages


def test_a_registry_that_is_down_is_named(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float]
) -> None:
    registry.script = lambda _request: httpx.ConnectError("refused")
    with pytest.raises(
        TemporarilyUnavailableError, match=r"registry.example.com cannot be reached"
    ):
        run(client.ensure_grant(SP_ID, CALENDAR))


def test_a_registry_that_flaps_costs_only_retries(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    turn = itertools.count()
    registry.script = lambda _request: httpx.ReadTimeout("lost") if next(turn) % 2 == 0 else None
    client = registry.client(tmp_path)
    asked = run(client.ensure_grant(SP_ID, CALENDAR))
    assert asked.status == "pending"

    def approve(_: Grant) -> None:
        registry.grants = [grant()]

    decided = run(client.wait_for_decision(asked, on_pending=approve))
    assert decided.status == "approved"
    assert run(client.call(SP_ID, "POST", "/v1/x")).status_code == 200
    keys = {request.headers["Idempotency-Key"] for request in registry.sent("POST", "/v1/grants")}
    assert len(keys) == 1


def test_a_covered_need_survives_an_outage(
    registry: FakeRegistry, client: AgentAuthClient, slept: list[float]
) -> None:
    run(client.ensure_grant(SP_ID, CALENDAR))
    registry.script = lambda _request: httpx.ConnectError("refused")
    assert run(client.ensure_grant(SP_ID, CALENDAR)).grant_id == GRANT_ID


def test_a_wait_for_a_decision_can_go_on_in_another_process(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant("pending")]

    async def interrupted(_: Grant) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(client.wait_for_decision(GRANT_ID, on_pending=interrupted))
    registry.grants = [grant()]
    again = registry.client(tmp_path)
    assert run(again.wait_for_decision(GRANT_ID)).status == "approved"


# ---- many calls at once


def test_many_calls_share_one_renewal(registry: FakeRegistry, client: AgentAuthClient) -> None:
    registry.interleaved(client)
    assert set(run(at_once(client))) == {200}
    assert len(registry.sent("POST", "/v1/tokens")) == 1


def test_many_calls_whose_token_was_revoked_share_one_renewal(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    run(client.get_token(SP_ID))
    registry.script = lambda request: (
        error(401, "invalid_token", STALE)
        if request.headers.get("Authorization") == "DPoP token-1"
        else None
    )
    registry.interleaved(client)
    assert set(run(at_once(client))) == {200}
    assert len(registry.sent("POST", "/v1/tokens")) == 2
    # Each was sent once with each token: FakeRegistry refuses a proof that it saw before.
    assert len({proof.jti for proof in registry.proofs}) == len(registry.proofs)


def test_a_grant_revoked_in_mid_use_ends_in_its_error(
    registry: FakeRegistry, client: AgentAuthClient
) -> None:
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    registry.grants = [grant("revoked")]

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "api.sp.example":
            return error(401, "invalid_token", STALE)
        return error(400, "invalid_grant") if request.url.path == "/v1/tokens" else None

    registry.script = script
    # The answer in hand is final; the next call has none, and says what happened.
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 401
    with pytest.raises(NoGrantError, match="revoked"):
        run(client.call(SP_ID, "GET", "/v1/x"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_call_follows_no_redirect(
    registry: FakeRegistry, client: AgentAuthClient, status: int
) -> None:
    registry.script = lambda request: (
        httpx.Response(status, headers={"Location": "https://evil.example/"})
        if request.url.host == "api.sp.example"
        else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == status
    assert "evil.example" not in {request.url.host for request in registry.requests}


# ---- hostile answers

WRONG: list[dict[str, Any]] = [
    {"requested": None},
    {"requested": []},
    {"requested": {"capabilities": "all", "envelope": {}}},
    {"requested": {"capabilities": [{"type": "read"}, 7, None], "envelope": {}}},
    {"requested": {"capabilities": [], "envelope": {"max_uses": "many"}}},
    {"granted": {"capabilities": {"read": "calendar"}}},
    {"granted": "everything", "requested": "everything"},
    {"decided_at": 7, "status": "denied"},
    {"decided_at": "9" * 10_000, "status": "denied", "granted": None},
    {"status": "sleeping"},
    {"deny_reason": {"x": 1}, "status": "denied"},
    {"service_provider": 9},
    {"approval_url": ["https://evil.example/"], "status": "suspended"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize("envelope", [None, {"max_uses": 3}], ids=["none", "some"])
def test_a_malformed_grant_is_never_taken_for_a_yes(
    registry: FakeRegistry,
    client: AgentAuthClient,
    wrong: dict[str, Any],
    envelope: dict[str, Any] | None,
) -> None:
    other = {"capabilities": [Capability.read("mail").to_json()], "envelope": {}}
    registry.grants = [grant(**({"granted": other, "requested": other} | wrong))]
    try:
        found = run(client.ensure_grant(SP_ID, CALENDAR, envelope=envelope))
    except AgentAuthError:
        return
    assert found.status == "pending"


@pytest.mark.parametrize("wrong", [None, "", 7, [], {}, {"results": {}}, {"results": [7, None]}])
def test_a_malformed_list_is_never_taken_for_a_yes(
    registry: FakeRegistry, client: AgentAuthClient, wrong: Any
) -> None:
    registry.script = lambda request: (
        httpx.Response(200, json=wrong)
        if (request.method, request.url.path) == ("GET", "/v1/grants")
        else None
    )
    try:
        found = run(client.ensure_grant(SP_ID, CALENDAR))
    except AgentAuthError:
        return
    assert found.status == "pending"


REFUSALS: list[httpx.Response] = [
    httpx.Response(403, content=b"\xff\xfe"),
    httpx.Response(403, html="<h1>no</h1>"),
    httpx.Response(403, json=[]),
    httpx.Response(403, json={"error": ["step_up_required"]}),
    httpx.Response(403, json={"error": "step_up_required", "confirmation_id": ["x"]}),
    httpx.Response(403, content=b'{"error":"step_up_required","error":"x"}'),
    httpx.Response(403, content=b'{"error":"step_up_required","x":"' + b"x" * 70_000 + b'"}'),
    httpx.Response(429, json={"reason": "rate"}, headers={"Retry-After": "9" * 400}),
    httpx.Response(429, json={"reason": "rate"}, headers={"Retry-After": "-1"}),
    httpx.Response(401, json={}, headers={"WWW-Authenticate": "DPoP " + "x" * 9_000}),
    httpx.Response(
        401,
        json={"reason": "iat"},
        headers={"WWW-Authenticate": 'DPoP error="invalid_dpop_proof"', "Date": "x" * 500},
    ),
]


@pytest.mark.parametrize(
    "link",
    ["https://evil.example/", f"{URL}.evil.example/", f"{URL}@evil.example/", "javascript:x"],
)
def test_a_link_for_a_person_leads_to_the_registry(
    registry: FakeRegistry, client: AgentAuthClient, link: str
) -> None:
    registry.grants = [grant("pending", approval_url=link)]
    for ask in (client.get_grant(GRANT_ID), client.list_grants(), client.get_token(SP_ID)):
        with pytest.raises(RegistryError, match=f"approval_url must begin with {URL}/"):
            run(ask)
    body = {"agent_id": "a", "status": "unclaimed", "claim_url": link, "claim_code": "ABCD2345"}
    registry.script = lambda _request: httpx.Response(200, json=body)
    with pytest.raises(RegistryError, match=f"claim_url must begin with {URL}/"):
        run(client.register())


@pytest.mark.parametrize("index", range(len(REFUSALS)))
def test_a_hostile_refusal_is_the_answer_after_one_try(
    registry: FakeRegistry, client: AgentAuthClient, index: int
) -> None:
    rate = {"envelope": {"max_requests_per_minute": 6_000, "max_burst": 100}}
    registry.grants = [grant(granted=TERMS | rate)]
    said = REFUSALS[index]
    registry.script = lambda request: said if request.url.host == "api.sp.example" else None
    response = run(
        client.call(SP_ID, "POST", "/v1/x", ask_for=CALENDAR, on_pending=print, on_step_up=print)
    )
    assert response.status_code == said.status_code
    assert len([each for each in registry.requests if each.url.host == "api.sp.example"]) == 1
