"""Each call of a protected tool is decided by verify; everything else is closed."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from mcp import Client, MCPError

from agentauth.mcp.protect import _with_length
from agentauth.mcp.tests.guarded import CONFIRM, ENDPOINT, Site
from agentauth.mcp.tests.sessions import ERAS, Person, body_of
from agentauth.mcp.tool_call_messages import OPERATION_KEY
from agentauth.sdk.tests.fake_registry import (
    AUDIENCE,
    URL,
    grant,
)

EVENT = {"name": "work", "title": "stand-up"}
PAYMENT = {"payee": "ACME", "amount": {"value": "80.00", "currency": "EUR"}}
Story = Callable[[Client], Coroutine[Any, Any, Any]]


def told(site: Site, story: Story, **more: Any) -> Any:
    """The result of `story`, or the error that the client got."""

    async def run() -> Any:
        async with site.session(**more) as client:
            try:
                return await story(client)
            except MCPError as error:
                # Outside the session it would come in exception groups.
                return error

    return asyncio.run(run())


def call(site: Site, name: str, arguments: dict[str, Any], meta: Any = None, **more: Any) -> Any:
    return told(site, lambda client: client.call_tool(name, arguments, meta=meta), **more)


@pytest.mark.parametrize("era", ERAS)
def test_an_allowed_call_reaches_the_tool_with_its_decision(site: Site, era: str) -> None:
    result = call(site, "add_event", EVENT, era=era)
    assert result.content[0].text == "added"
    assert site.ran == [("add_event", ("work", "stand-up", "d"))]
    [question] = site.verify.asked
    assert (question["method"], question["url"]) == ("POST", ENDPOINT)
    assert question["action"] == {
        "type": "write",
        "resource": "calendar/work",
        "arguments": {"name": "work", "title": "stand-up"},
    }


def test_a_verifier_with_coroutines_decides_too(site: Site) -> None:
    site.asynchronous = True
    assert call(site, "add_event", EVENT).content[0].text == "added"
    assert len(site.verify.asked) == 1


@pytest.mark.parametrize("era", ERAS)
def test_the_list_has_only_tools_with_an_act(site: Site, era: str) -> None:
    listed = told(site, lambda client: client.list_tools(), era=era, signed=False)
    assert [tool.name for tool in listed.tools] == ["add_event", "pay"]


@pytest.mark.parametrize("era", ERAS)
def test_a_tool_without_an_act_is_closed(site: Site, era: str) -> None:
    assert "no such tool" in str(call(site, "wipe", {}, era=era))
    assert not site.ran


def test_an_act_without_its_tool_asks_verify_nothing(site: Site) -> None:
    assert "not allowed" in str(call(site, "missing", {}))
    assert not site.verify.asked


@pytest.mark.parametrize("era", ERAS)
def test_resources_of_the_server_are_closed(site: Site, era: str) -> None:
    answer = told(site, lambda client: client.read_resource("note://all"), era=era)
    assert "Only the tools" in str(answer)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (EVENT | {"name": "home"}, "no_capability"),
        (EVENT | {"name": "../work"}, "no_capability"),
        (EVENT | {"name": "work/x"}, "no_capability"),
        (EVENT | {"title": "x" * 21}, "constraint"),
    ],
)
def test_a_call_beyond_the_grant_is_answered_to_the_model(
    site: Site, arguments: dict[str, Any], reason: str
) -> None:
    result = call(site, "add_event", arguments)
    body = body_of(result)
    assert (body["status"], body["error"], body["reason"]) == (
        "refused",
        "insufficient_scope",
        reason,
    )
    assert result.is_error
    assert not site.ran


@pytest.mark.parametrize(
    "arguments",
    [EVENT | {"name": ["work"]}, EVENT | {"Title": "another"}, {"title": "stand-up"}],
)
def test_arguments_that_cannot_be_judged_are_refused(site: Site, arguments: dict[str, Any]) -> None:
    assert body_of(call(site, "add_event", arguments))["error"] == "invalid_request"
    assert not site.ran
    assert not site.verify.asked


@pytest.mark.parametrize("era", ERAS)
def test_a_step_up_parks_the_call_and_the_same_key_resumes_it(site: Site, era: str) -> None:
    parked = body_of(call(site, "pay", PAYMENT, era=era))
    assert parked["status"] == "waiting_for_person"
    assert (parked["confirmation_id"], parked["approval_url"]) == ("c-1", CONFIRM)
    assert not site.ran
    key = parked["idempotency_key"]
    site.verify.confirmed.add(key)
    result = call(site, "pay", PAYMENT, meta={OPERATION_KEY: key}, era=era)
    assert result.content[0].text == "paid"
    assert [question["idempotency_key"] for question in site.verify.asked] == [key, key]
    again = body_of(call(site, "pay", PAYMENT, meta={OPERATION_KEY: key}, era=era))
    assert again["error"] == "already_processed"
    assert site.ran == [("pay", "ACME")]


def test_a_client_that_takes_links_resumes_by_itself(site: Site) -> None:
    person = Person(acts=lambda: site.verify.confirmed.add(site.verify.asked[0]["idempotency_key"]))
    result = call(site, "pay", PAYMENT, person=person)
    assert result.content[0].text == "paid"
    assert [link.url for link in person.links] == [CONFIRM]


def test_a_link_is_brought_once_for_one_call(site: Site) -> None:
    person = Person()
    result = call(site, "pay", PAYMENT, person=person)
    assert body_of(result)["status"] == "waiting_for_person"
    assert len(person.links) == 1


def test_a_declined_link_asks_verify_no_more(site: Site) -> None:
    result = call(site, "pay", PAYMENT, person=Person("decline"))
    assert body_of(result)["status"] == "link_not_opened"
    assert len(site.verify.asked) == 1


def test_a_revoked_token_is_an_http_refusal(site: Site) -> None:
    site.verify.revoked = True
    assert isinstance(call(site, "add_event", EVENT), MCPError)
    assert len(site.verify.asked) == 2, "once more with a new token"
    assert not site.ran


def test_the_nonce_that_is_asked_for_is_sent_at_once(site: Site) -> None:
    site.verify.nonce = "n-1"
    assert call(site, "add_event", EVENT).content[0].text == "added"


def test_a_call_without_a_grant_is_an_error_with_the_link(site: Site) -> None:
    site.registry.grants[:] = [grant(status="pending")]

    async def both(client: Client) -> list[Any]:
        errors = []
        for _ in range(2):
            with pytest.raises(MCPError) as caught:
                await client.call_tool("add_event", EVENT)
            errors.append(caught.value.error)
        return errors

    first, second = told(site, both)
    assert first == second, "the session goes on"
    assert first.data["error"] == "grant_pending"
    assert first.data["approval_url"].startswith(URL)
    assert not site.verify.asked


def test_only_tool_calls_are_signed(site: Site) -> None:
    async def both(client: Client) -> None:
        await client.list_tools()
        await client.call_tool("add_event", EVENT)

    told(site, both)
    signed = {
        (json.loads(request.content)["method"], "DPoP" in request.headers)
        for request in site.sent
        if request.content
    }
    assert ("tools/call", True) in signed
    assert {method for method, proof in signed if proof} == {"tools/call"}


@pytest.mark.parametrize("target", ["https://evil.example/v1/mcp", f"{AUDIENCE}0/mcp"])
def test_a_redirect_out_of_the_audience_gets_no_credentials(site: Site, target: str) -> None:
    site.redirect_to = target
    assert isinstance(call(site, "add_event", EVENT), MCPError)
    assert {str(each.url) for each in site.sent if "DPoP" in each.headers} == {ENDPOINT}
    assert not [each for each in site.sent if str(each.url) == target]


@pytest.mark.parametrize("era", ERAS)
def test_without_the_http_layer_no_protected_tool_runs(site: Site, era: str) -> None:
    server = site.server()
    site.protected(server)

    async def story() -> None:
        async with Client(server, mode=era) as client:
            with pytest.raises(MCPError, match="not checked"):
                await client.call_tool("add_event", EVENT)

    asyncio.run(story())
    assert not site.ran


MODERN = {
    "Mcp-Method": "tools/call",
    "Mcp-Name": "add_event",
    "MCP-Protocol-Version": "2026-07-28",
}


def posted(
    site: Site,
    content: bytes | dict[str, Any],
    headers: Any = (),
    *,
    url: str = ENDPOINT,
    modern: bool = True,
    **settings: Any,
) -> Any:
    """A raw POST; of the handshake's era unless `modern`."""

    async def story() -> Any:
        async with site.http(**{"json_response": True, **settings}) as http:
            usual = {
                "Content-Type": "application/json",
                "Accept": "application/json, text/event-stream",
                **(MODERN if modern else {}),
            }
            sent = json.dumps(content) if isinstance(content, dict) else content
            return await http.post(url, content=sent, headers=[*usual.items(), *headers])

    return asyncio.run(story())


def raw(**params: Any) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    told = {"name": "add_event", "arguments": EVENT, "_meta": meta}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": told | params}


async def signed(site: Site, url: str = ENDPOINT, method: str = "POST") -> list[tuple[str, str]]:
    client = site.registry.client(site.tmp_path)
    return [*(await client.authenticate_headers("sp", method, url)).items()]


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("json_response", [True, False])
def test_a_signed_call_is_kept_from_caches(
    site: Site, *, modern: bool, json_response: bool
) -> None:
    site.verify.next_nonce = "n-2"
    lines = asyncio.run(signed(site))
    answer = posted(site, raw(), lines, modern=modern, json_response=json_response)
    assert answer.status_code == 200, answer.text
    assert answer.headers.get_list("Cache-Control") == ["private, no-store"]
    assert answer.headers["DPoP-Nonce"] == "n-2"
    assert site.ran


def test_routes_of_the_server_itself_are_left_alone(site: Site) -> None:
    answer = posted(site, b"no JSON", url="https://api.sp.example/own")
    assert (answer.status_code, answer.content) == (200, b"no JSON")


def test_no_session_is_opened_for_a_caller(site: Site) -> None:
    message = raw() | {"method": "initialize"}
    message["params"] = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    answer = posted(site, message, modern=False)
    assert answer.status_code == 200
    assert "Mcp-Session-Id" not in answer.headers


def test_the_message_that_is_passed_on_has_its_own_length() -> None:
    headers = [(b"Content-Length", b"9"), (b"transfer-encoding", b"chunked"), (b"a", b"b")]
    assert _with_length({"headers": headers}, b"four")["headers"] == [
        (b"a", b"b"),
        (b"content-length", b"4"),
    ]


def test_a_tool_of_another_server_has_no_decision(site: Site) -> None:
    async def story() -> Any:
        async with Client(site.server()) as client:
            return await client.call_tool("add_event", EVENT)

    assert asyncio.run(story()).is_error
    assert not site.ran


def test_a_question_that_verify_cannot_answer_is_told_to_the_model(site: Site) -> None:
    site.verify.status, site.verify.error = 400, "invalid_request"
    body = body_of(call(site, "add_event", EVENT))
    assert (body["status"], body["error"]) == ("refused", "invalid_request")
    assert not site.ran


def test_an_application_below_a_prefix_is_checked_too(site: Site) -> None:
    answer = posted(site, raw(), asyncio.run(signed(site)), prefix="/v1")
    assert answer.status_code == 200, answer.text
    assert len(site.verify.asked) == len(site.ran) == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda lines: lines[:0], 401),
        (lambda lines: lines[:1], 401),
        (lambda lines: lines + lines[1:], 401),
        (lambda lines: lines + lines[:1], 400),
        (lambda lines: [(lines[0][0], "Bearer" + lines[0][1][4:]), lines[1]], 401),
    ],
    ids=["none", "no proof", "two proofs", "two tokens", "bearer"],
)
def test_credentials_of_another_form_are_refused(site: Site, change: Any, status: int) -> None:
    answer = posted(site, raw(), change(asyncio.run(signed(site))))
    assert answer.status_code == status
    assert ("DPoP" in answer.headers.get("WWW-Authenticate", "")) == (status == 401)
    assert not site.verify.asked
    assert not site.ran


def test_a_replayed_proof_is_refused_with_a_challenge(site: Site) -> None:
    lines = asyncio.run(signed(site))
    assert posted(site, raw(), lines).status_code == 200
    answer = posted(site, raw(), lines)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_dpop_proof")
    assert len(site.ran) == 1


def test_an_unreachable_verify_is_503_and_the_tool_does_not_run(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentauth.sdk.verifier.time.sleep", lambda _seconds: None)
    site.verify.status = 503
    answer = posted(site, raw(), asyncio.run(signed(site)))
    assert answer.status_code == 503
    assert not site.ran
    assert "could not be checked" in caplog.text
    assert "eyJ" not in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        b'{"method": "tools/call", "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"a": NaN}}',
        b"[" * 100_000,
        b'{"a": "' + b"x" * 1_048_577 + b'"}',
    ],
    ids=["list", "cut", "two methods", "NaN", "deep", "huge"],
)
def test_a_body_that_two_readers_may_read_differently_is_400(site: Site, content: bytes) -> None:
    assert posted(site, content, asyncio.run(signed(site))).status_code == 400
    assert not site.ran


@pytest.mark.parametrize(
    "params",
    [{"arguments": "text"}, {"arguments": [1]}, {"name": 5}, {"name": None}, {"_meta": 5}],
    ids=str,
)
def test_parameters_of_wrong_types_run_nothing(site: Site, params: dict[str, Any]) -> None:
    answer = posted(site, raw(**params), asyncio.run(signed(site)))
    assert "error" in answer.json()
    assert not site.ran


def test_a_host_header_does_not_choose_the_url_that_is_checked(site: Site) -> None:
    answer = posted(site, raw(), [*asyncio.run(signed(site)), ("Host", "evil.example")])
    assert answer.status_code == 421
    assert [question["url"] for question in site.verify.asked] in ([], [ENDPOINT])
    assert not site.ran


def test_two_different_keys_of_one_operation_are_refused(site: Site) -> None:
    meta = raw()["params"]["_meta"] | {OPERATION_KEY: "one"}
    lines = [*asyncio.run(signed(site)), ("Idempotency-Key", "two")]
    assert posted(site, raw(_meta=meta), lines).status_code == 400
