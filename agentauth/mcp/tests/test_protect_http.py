"""Raw HTTP requests to a protected server: credentials, bodies, caches, the message passed on."""

import asyncio
import json
from typing import Any

import pytest

from agentauth.mcp.protect import _with_length
from agentauth.mcp.tests.guarded import ENDPOINT, EVENT, Site
from agentauth.mcp.tool_call_messages import OPERATION_KEY

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
