"""Hostile arguments of the tools, and hostile answers of a service provider."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.mcp.argument_checks import MAX_BODY_BYTES
from agentauth.mcp.tests.sessions import Person, body_of
from agentauth.mcp.tests.test_server import READ, called
from agentauth.protocol.encoding import b64u_encode
from agentauth.sdk.redacted_response import MAX_SHOWN
from agentauth.sdk.tests.fake_registry import (
    AUDIENCE,
    URL,
    FakeRegistry,
    error,
)

POST = {**READ, "method": "POST", "idempotency_key": "k-1"}


@pytest.mark.parametrize("method", ["POST", "post", "PUT", "PATCH", "DELETE"])
def test_an_operation_without_a_name_reaches_no_service(
    agent: FakeRegistry, tmp_path: Path, method: str
) -> None:
    [result] = called(agent, tmp_path, ("call_service", READ | {"method": method}))
    assert (result.is_error, body_of(result)["error"]) == (True, "invalid_request")
    assert f"idempotency_key: is required for {method.upper()}" in result.content[0].text
    assert not to_service(agent)


def answering(registry: FakeRegistry, response: httpx.Response) -> None:
    """The service provider answers with `response`."""

    def script(request: httpx.Request) -> httpx.Response | None:
        return None if str(request.url).startswith(URL) else response

    registry.script = script


def to_service(registry: FakeRegistry) -> list[httpx.Request]:
    return [each for each in registry.requests if not str(each.url).startswith(URL)]


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "https://evil.example/v1/calendar"},
        {"path": "//evil.example/v1"},
        {"path": "/v10/calendar"},
        {"path": "/v1/../admin"},
        {"path": "/v1/%2e%2e/admin"},
        {"path": f"{AUDIENCE}@evil.example/"},
        {"path": "/v1/calendar#fragment"},
        {"path": "/v1/cal endar"},
        {"path": "/v1/a\r\nX-Evil: 1"},
        {"path": "/v1/" + "a" * 3_000},
        {"path": ""},
        {"method": "CONNECT"},
        {"method": "GET /v1 HTTP/1.1\r\n"},
        {"idempotency_key": "a,b", "method": "POST"},
        {"idempotency_key": "a\r\nX-Evil: 1", "method": "POST"},
        {"idempotency_key": "", "method": "POST"},
        {"action": {"type": "fly", "resource": "moon"}},
        {"action": {"type": "read"}},
        {"action": {"type": "read", "resource": 5}},
        {"body": "x" * MAX_BODY_BYTES, "method": "POST"},
        {"body": "\ud800", "method": "POST"},
        {"service": "../agents/me"},
        {"service": "s" * 10_000},
        {"service": ""},
    ],
    ids=lambda changes: "-".join(f"{n}={str(v)[:30]!r}" for n, v in changes.items()),
)
def test_a_call_with_hostile_arguments_reaches_no_service(
    agent: FakeRegistry, tmp_path: Path, changes: dict[str, Any]
) -> None:
    [result] = called(agent, tmp_path, ("call_service", READ | {"idempotency_key": "k"} | changes))
    assert result.is_error
    assert body_of(result)["status"] == "failed"
    assert len(result.content[0].text) < 3_000
    assert not to_service(agent)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("call_service", {"service": ["sp"], "method": "GET", "path": "/v1"}),
        ("call_service", {"service": "sp", "method": {}, "path": "/v1"}),
        ("call_service", READ | {"action": "read"}),
        ("request_access", {"service": "sp", "capabilities": {"type": "read"}}),
        ("request_access", {"service": "sp", "capabilities": []}),
        ("request_access", {"service": "sp", "capabilities": [5]}),
        ("request_access", {"service": "sp", "capabilities": ["transact:payments"]}),
        ("request_access", {"service": "sp", "capabilities": ["read:*"]}),
        ("request_access", {"service": "sp", "capabilities": ["read:calendar"] * 5_000}),
        ("request_access", {"service": "sp", "capabilities": ["read:c"], "limits": {"x": 1}}),
        ("request_access", {"service": "sp", "capabilities": ["read:c"], "reason": "x" * 501}),
        ("access_status", {"service": "sp", "wait_seconds": 10_000}),
        ("revoke_access", {"service": 5}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:40],
)
def test_arguments_of_wrong_types_are_one_short_error(
    agent: FakeRegistry, tmp_path: Path, tool: str, arguments: dict[str, Any]
) -> None:
    [result] = called(agent, tmp_path, (tool, arguments))
    assert result.is_error
    assert len(result.content[0].text) < 3_000
    assert not agent.sent("POST", "/v1/grants")
    assert not to_service(agent)


def test_a_transact_without_its_ceiling_is_told_the_right_form(
    agent: FakeRegistry, tmp_path: Path
) -> None:
    asked = {"service": "sp", "capabilities": ["transact:payments"]}
    [result] = called(agent, tmp_path, ("request_access", asked))
    assert '"max_amount": {"value": "100.00", "currency": "EUR"}' in result.content[0].text


def test_an_unknown_service_is_named_as_such(agent: FakeRegistry, tmp_path: Path) -> None:
    agent.script = lambda request: (
        error(404, "not_found") if "service-providers" in request.url.path else None
    )
    [result] = called(agent, tmp_path, ("call_service", READ | {"service": "other"}))
    assert "There is no service 'other' here" in result.content[0].text


def test_a_service_that_is_not_named_in_the_options_is_closed(
    agent: FakeRegistry, tmp_path: Path
) -> None:
    result, state = called(
        agent, tmp_path, ("call_service", READ), ("access_status", {}), services=("another",)
    )
    assert "There is no service 'sp' here" in result.content[0].text
    assert body_of(state)["access"] == []
    assert not to_service(agent)


def test_a_service_that_is_named_in_the_options_may_be_used(
    agent: FakeRegistry, tmp_path: Path
) -> None:
    result, state = called(
        agent, tmp_path, ("call_service", READ), ("access_status", {}), services=("sp",)
    )
    assert body_of(result)["http_status"] == 200
    assert len(body_of(state)["access"]) == 1


@pytest.mark.parametrize("target", ["https://evil.example/", f"{AUDIENCE}/elsewhere"])
def test_a_redirect_is_shown_and_not_followed(
    agent: FakeRegistry, tmp_path: Path, target: str
) -> None:
    answering(agent, httpx.Response(307, headers={"Location": target}))
    [result] = called(agent, tmp_path, ("call_service", READ))
    assert (body_of(result)["status"], result.is_error) == ("redirected", True)
    assert [str(each.url) for each in to_service(agent)] == [f"{AUDIENCE}/calendar"]


@pytest.mark.parametrize("status", [300, 304])
def test_an_answer_without_a_location_is_no_redirect(
    agent: FakeRegistry, tmp_path: Path, status: int
) -> None:
    answering(agent, httpx.Response(status))
    [result] = called(agent, tmp_path, ("call_service", READ))
    assert (body_of(result)["status"], result.is_error) == ("answered", False)


@pytest.mark.parametrize(
    ("reason", "need"),
    [("human_offline", "needs you to be present"), ("confirm_above", "needs your confirmation")],
)
def test_a_step_up_without_an_id_says_what_it_needs(
    agent: FakeRegistry, tmp_path: Path, reason: str, need: str
) -> None:
    answering(agent, httpx.Response(403, json={"error": "step_up_required", "reason": reason}))
    [result] = called(agent, tmp_path, ("call_service", POST))
    assert body_of(result)["approval_url"] == f"{URL}/"
    assert f"A call to sp {need} at the registry." in result.content[0].text


def test_a_service_cannot_send_the_person_to_its_own_page(
    agent: FakeRegistry, tmp_path: Path
) -> None:
    refused = {
        "error": "step_up_required",
        "reason": "confirm_above",
        "confirmation_id": "01900000-0000-7000-8000-000000000009",
        "approval_url": "https://evil.example/confirm",
    }
    answering(agent, httpx.Response(403, json=refused))
    person = Person("decline")
    [result] = called(agent, tmp_path, ("call_service", POST), person=person)
    link = f"{URL}/confirmations/01900000-0000-7000-8000-000000000009/"
    assert [each.url for each in person.links] == [link]
    assert body_of(result)["approval_url"] == link
    assert "evil" not in result.content[0].text


def test_a_confirmation_id_that_is_a_path_is_no_link(agent: FakeRegistry, tmp_path: Path) -> None:
    refused = {
        "error": "step_up_required",
        "reason": "confirm_above",
        "confirmation_id": "../approvals/x",
    }
    answering(agent, httpx.Response(403, json=refused))
    person = Person()
    [result] = called(agent, tmp_path, ("call_service", POST), person=person)
    assert body_of(result)["status"] == "refused"
    assert not person.links


def test_an_echoed_token_or_proof_is_removed(agent: FakeRegistry, tmp_path: Path) -> None:
    rest = ".eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    token = b64u_encode(b'{"typ": "at+jwt"}') + rest
    other = b64u_encode(b'{"typ": "other"}') + rest

    def script(request: httpx.Request) -> httpx.Response | None:
        if str(request.url).startswith(URL):
            return None
        return httpx.Response(200, json={"echo": [token, request.headers["DPoP"], other]})

    agent.script = script
    [result] = called(agent, tmp_path, ("call_service", READ))
    assert body_of(result)["body"]["echo"] == ["[removed]", "[removed]", other]


@pytest.mark.parametrize(
    "content",
    [b"x" * (MAX_SHOWN + 1), json.dumps(["x" * 100] * 1_000).encode()],
    ids=["text", "JSON"],
)
def test_a_long_answer_is_cut(agent: FakeRegistry, tmp_path: Path, content: bytes) -> None:
    answering(agent, httpx.Response(200, content=content))
    [result] = called(agent, tmp_path, ("call_service", READ))
    body = body_of(result)
    assert body["truncated"] is True
    assert len(body["body"]) == MAX_SHOWN


@pytest.mark.parametrize(
    "content", [b"[" * 1_000 + b"]" * 1_000, b"\xff\xfe", b'{"a": 1, "a": 2}', b"NaN"]
)
def test_an_answer_that_is_no_strict_json_is_shown_as_text(
    agent: FakeRegistry, tmp_path: Path, content: bytes
) -> None:
    answering(
        agent, httpx.Response(200, content=content, headers={"Content-Type": "application/json"})
    )
    [result] = called(agent, tmp_path, ("call_service", READ))
    assert isinstance(body_of(result)["body"], str)
