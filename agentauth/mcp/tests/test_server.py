"""The four tools: what they ask the registry, and what the client sees."""

import asyncio
import functools
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import MCPError

from agentauth.mcp.tests.sessions import ERAS, Person, body_of, session
from agentauth.sdk.tests.fake_registry import (
    AUDIENCE,
    GRANT_ID,
    URL,
    FakeRegistry,
    error,
    grant,
    registered,
)

ASK = {"service": "sp", "capabilities": ["read:calendar"], "reason": "To plan the week."}
READ = {"service": "sp", "method": "GET", "path": "/v1/calendar"}
PAY = {
    "service": "sp",
    "method": "POST",
    "path": "/v1/payments",
    "body": {"payee": "ACME"},
    "idempotency_key": "pay-1",
}


def approve(registry: FakeRegistry) -> None:
    registry.grants[:] = [grant(requested=each["requested"]) for each in registry.grants]


def called(registry: FakeRegistry, tmp_path: Path, *calls: Any, **more: Any) -> list[Any]:
    """The results of tool calls in one session."""

    async def story() -> list[Any]:
        async with session(registry, tmp_path, **more) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(story())


@pytest.mark.parametrize("era", ERAS)
def test_four_tools_are_listed(registry: FakeRegistry, tmp_path: Path, era: str) -> None:
    async def story() -> set[str]:
        async with session(registry, tmp_path, era=era) as client:
            return {tool.name for tool in (await client.list_tools()).tools}

    names = {"request_access", "access_status", "call_service", "revoke_access"}
    assert asyncio.run(story()) == names


@pytest.mark.parametrize("era", ERAS)
def test_a_client_without_links_gets_link_and_code_as_text(
    registry: FakeRegistry, tmp_path: Path, era: str
) -> None:
    registry.agent_status = "unclaimed"
    [result] = called(registry, tmp_path, ("request_access", ASK), era=era)
    body = body_of(result)
    assert body["status"] == "waiting_for_person"
    assert body["approval_url"].startswith(URL)
    assert body["claim_code"] == "ABCD2345"
    assert "ABCD2345" in result.content[0].text
    assert not result.is_error


@pytest.mark.parametrize("era", ERAS)
def test_an_opened_link_and_an_approval_end_the_same_call(
    registry: FakeRegistry, tmp_path: Path, era: str
) -> None:
    person = Person(acts=lambda: approve(registry))
    [result] = called(registry, tmp_path, ("request_access", ASK), era=era, person=person)
    assert body_of(result)["status"] == "approved"
    assert [link.url for link in person.links] == [f"{URL}/approvals/{GRANT_ID}/"]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("answer", ["decline", "cancel"])
def test_a_link_that_is_not_opened_leaves_the_request_pending(
    registry: FakeRegistry, tmp_path: Path, era: str, answer: str
) -> None:
    person = Person(answer)
    [result] = called(registry, tmp_path, ("request_access", ASK), era=era, person=person)
    assert body_of(result)["status"] == "link_not_opened"
    assert result.is_error
    assert registry.grants[0]["status"] == "pending"


def test_a_call_with_access_returns_the_answer(registry: FakeRegistry, tmp_path: Path) -> None:
    def first(request: httpx.Request) -> None:
        approve(registry)

    registry.script = first
    results = called(registry, tmp_path, ("request_access", ASK), ("call_service", READ))
    assert body_of(results[1]) == {
        "status": "answered",
        "http_status": 200,
        "content_type": "application/json",
        "body": {"ok": True},
    }
    assert registry.requests[-1].url == f"{AUDIENCE}/calendar"


def ending(registry: FakeRegistry) -> None:
    """The registry ends a grant at the agent's request."""

    def script(request: httpx.Request) -> httpx.Response | None:
        way = request.url.path.rsplit("/", 1)[1]
        if way not in {"revoke", "withdraw"}:
            return None
        status = {"revoke": "revoked", "withdraw": "withdrawn"}[way]
        registry.grants[:] = [each | {"status": status} for each in registry.grants]
        return httpx.Response(204)

    registry.script = script


@pytest.mark.parametrize(("status", "way"), [("approved", "revoke"), ("pending", "withdraw")])
def test_access_that_is_given_back_is_revoked_or_withdrawn(
    registry: FakeRegistry, tmp_path: Path, status: str, way: str
) -> None:
    registered(registry, tmp_path)
    registry.grants.append(grant(status=status))
    ending(registry)
    told = {"service": "sp"}
    results = called(registry, tmp_path, ("revoke_access", told), ("revoke_access", told))
    assert body_of(results[0]) == {"status": "revoked", "grant_ids": [GRANT_ID]}
    assert len(registry.sent("POST", f"/v1/grants/{GRANT_ID}/{way}")) == 1
    assert results[1].is_error, "there is nothing left"


def test_only_the_named_grant_is_given_back(registry: FakeRegistry, tmp_path: Path) -> None:
    registered(registry, tmp_path)
    registry.grants.append(grant())
    ending(registry)
    told = {"service": "sp", "grant_id": GRANT_ID[:-1] + "9"}
    [result] = called(registry, tmp_path, ("revoke_access", told))
    assert result.is_error
    assert registry.grants[0]["status"] == "approved"


def test_grants_that_ended_before_a_failure_are_named(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    first, second = GRANT_ID[:-1] + "9", GRANT_ID
    registered(registry, tmp_path)
    registry.grants += [grant(grant_id=second, status="pending"), grant(grant_id=first)]
    ending(registry)
    script = registry.script
    registry.script = lambda request: (
        error(409, "invalid_state") if request.url.path.endswith("withdraw") else script(request)
    )
    [result] = called(registry, tmp_path, ("revoke_access", {"service": "sp"}))
    assert body_of(result) == {"status": "failed", "error": "invalid_state", "grant_ids": [first]}
    assert result.is_error
    assert "Ended one grant at sp, then this failed: A sentence." in result.content[0].text


def test_a_withdrawn_request_is_not_told_as_the_end_of_all_access(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registered(registry, tmp_path)
    registry.grants += [grant(), grant(grant_id=GRANT_ID[:-1] + "9", status="pending")]
    ending(registry)
    told = {"service": "sp", "grant_id": GRANT_ID[:-1] + "9"}
    [result] = called(registry, tmp_path, ("revoke_access", told))
    assert result.content[0].text.startswith("Ended one grant at sp.")


def test_a_request_beyond_the_manifest_widens_it_and_keeps_the_rest(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    more = ASK | {"capabilities": [{"type": "write", "resource": "files"}]}
    called(registry, tmp_path, ("request_access", ASK), ("request_access", more))
    assert registry.manifest is not None
    assert [each.label for each in registry.manifest.capabilities] == [
        "read:calendar",
        "write:files",
    ]
    assert len(registry.sent("POST", "/v1/grants")) == 2


def test_the_status_waits_for_a_pending_decision(registry: FakeRegistry, tmp_path: Path) -> None:
    registered(registry, tmp_path)
    registry.grants.append(grant(status="pending"))

    def script(request: httpx.Request) -> None:
        if "wait" in request.url.params:
            approve(registry)

    registry.script = script
    told = {"service": "sp", "wait_seconds": 5}
    [result] = called(registry, tmp_path, ("access_status", told))
    assert [row["status"] for row in body_of(result)["access"]] == ["approved"]


def test_the_status_waits_for_a_grant_to_be_signed_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    """`call_service` says so: "Then call access_status"."""
    registered(registry, tmp_path)
    again = f"{URL}/approvals/{GRANT_ID}/"
    registry.grants.append(grant(status="suspended", approval_url=again))

    def script(request: httpx.Request) -> None:
        if "wait" in request.url.params:
            approve(registry)

    registry.script = script
    told = {"service": "sp", "wait_seconds": 5}
    results = called(registry, tmp_path, ("call_service", READ), ("access_status", told))
    assert body_of(results[0])["status"] == "waiting_for_person"
    assert [row["status"] for row in body_of(results[1])["access"]] == ["approved"]


def test_the_status_of_an_agent_without_requests_is_empty(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    [result] = called(registry, tmp_path, ("access_status", {}))
    assert body_of(result) == {"status": "ok", "access": []}
    assert not registry.requests


def test_a_call_before_any_request_says_what_to_do(registry: FakeRegistry, tmp_path: Path) -> None:
    [result] = called(registry, tmp_path, ("call_service", READ))
    assert (body_of(result)["error"], result.is_error) == ("no_grant", True)
    assert "request_access" in result.content[0].text


@pytest.mark.parametrize(("reason", "known"), [("Not today.", True), (None, False)])
def test_a_denial_is_told_with_its_reason(
    registry: FakeRegistry, tmp_path: Path, reason: str | None, *, known: bool
) -> None:
    def deny() -> None:
        asked = registry.grants[0]["requested"]
        registry.grants[:] = [grant(status="denied", requested=asked, deny_reason=reason)]

    [result] = called(registry, tmp_path, ("request_access", ASK), person=Person(acts=deny))
    assert body_of(result)["status"] == "denied"
    assert ("Not today." in result.content[0].text) == known


def test_a_denied_request_is_refused_in_the_cool_down(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.script = lambda request: (
        error(429, "cooldown_active", retry_after=3_600)
        if (request.method, request.url.path) == ("POST", "/v1/grants")
        else None
    )
    [result] = called(registry, tmp_path, ("request_access", ASK))
    body = body_of(result)
    assert (body["status"], body["error"]) == ("denied", "cooldown_active")
    assert body["retry_after"] == 3_600


def test_suspended_access_is_not_told_as_a_denial(registry: FakeRegistry, tmp_path: Path) -> None:
    registered(registry, tmp_path)
    registry.grants.append(grant(status="suspended"))
    results = called(registry, tmp_path, ("request_access", ASK), ("call_service", READ))
    assert body_of(results[0])["status"] == body_of(results[1])["reason"] == "suspended"
    assert "A person suspended the access to this at sp." in results[0].content[0].text


def test_access_that_the_agent_gave_back_is_not_told_as_a_persons_decision(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registered(registry, tmp_path)
    registry.grants.append(grant())
    ending(registry)
    told = {"service": "sp"}
    results = called(registry, tmp_path, ("revoke_access", told), ("call_service", READ))
    text = results[1].content[0].text
    assert text.startswith("The access to sp for this call is revoked.\n")


def test_a_refusal_of_the_registry_says_when_to_ask_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.script = lambda request: (
        error(429, "too_many_pending_grants", retry_after=3_600)
        if (request.method, request.url.path) == ("POST", "/v1/grants")
        else None
    )
    [result] = called(registry, tmp_path, ("request_access", ASK))
    assert body_of(result) == {
        "status": "failed",
        "error": "too_many_pending_grants",
        "retry_after": 3_600,
    }


def test_an_unreachable_registry_is_a_failure_with_its_code(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    registry.script = lambda _request: error(503, "temporarily_unavailable")
    [result] = called(registry, tmp_path, ("request_access", ASK))
    assert body_of(result)["error"] == "temporarily_unavailable"
    assert slept


@pytest.mark.parametrize("era", ERAS)
def test_a_call_that_waited_goes_on_under_the_same_key(
    registry: FakeRegistry, tmp_path: Path, era: str
) -> None:
    registered(registry, tmp_path)
    registry.grants.append(grant())
    confirmed: list[bool] = []
    keys: list[str] = []
    confirmation = "01900000-0000-7000-8000-000000000009"

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path == f"/v1/confirmations/{confirmation}":
            status = "confirmed" if confirmed else "pending"
            return httpx.Response(200, json={"confirmation_id": confirmation, "status": status})
        if str(request.url).startswith(URL):
            return None
        keys.append(request.headers["Idempotency-Key"])
        if confirmed:
            return httpx.Response(201, json={"paid": True})
        refused = {"error": "step_up_required", "reason": "confirm_above"}
        return httpx.Response(403, json=refused | {"confirmation_id": confirmation})

    registry.script = script
    person = Person(acts=lambda: confirmed.append(True))
    [result] = called(registry, tmp_path, ("call_service", PAY), era=era, person=person)
    body = body_of(result)
    assert (body["http_status"], body["body"]) == (201, {"paid": True})
    assert keys == [body["idempotency_key"]] * 2 == ["pay-1"] * 2
    assert len(person.links) == 1


@pytest.mark.parametrize("era", ERAS)
def test_a_link_that_led_to_no_decision_is_brought_once(
    registry: FakeRegistry, tmp_path: Path, era: str
) -> None:
    person = Person()
    told = {"era": era, "person": person, "wait_seconds": 0}
    [result] = called(registry, tmp_path, ("request_access", ASK), **told)
    assert body_of(result)["status"] == "waiting_for_person"
    assert len(person.links) == 1


def test_the_state_of_a_round_is_only_for_the_same_call(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    async def story() -> tuple[Any, Any, list[str]]:
        async with session(registry, tmp_path, person=Person()) as client:
            ask = functools.partial(client.session.call_tool, allow_input_required=True)
            first: Any = await ask("request_access", ASK)
            state = first.request_state
            again = await ask("request_access", ASK, request_state=state)
            errors = []
            for changed, sent in ((ASK, state[:-2]), (ASK | {"reason": "Another."}, state)):
                with pytest.raises(MCPError) as caught:
                    await ask("request_access", changed, request_state=sent)
                errors.append(caught.value.error.message)
            return first, again, errors

    first, again, errors = asyncio.run(story())
    assert URL not in first.request_state, "sealed"
    assert body_of(again)["status"] == "waiting_for_person"
    assert errors == ["Invalid or expired requestState"] * 2
    assert len(registry.sent("POST", "/v1/grants")) == 1
