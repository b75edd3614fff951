"""What the official SDK refuses is refused before verify counts the operation."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from mcp.server.mcpserver import MCPServer
from pydantic import Field

from agentauth.mcp.signing import SigningTransport
from agentauth.mcp.tests.guarded import ENDPOINT, Site
from agentauth.mcp.tool_call_messages import OPERATION_KEY
from agentauth.sdk.tests.fake_registry import FakeRegistry, grant, registered

PAY = {"payee": "ACME", "amount": {"value": "20.00", "currency": "EUR"}}
USUAL = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2025-11-25",
}


def message(**changes: Any) -> dict[str, Any]:
    params = {"name": "pay", "arguments": PAY, "_meta": {OPERATION_KEY: "k-1"}}
    told = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params} | changes
    return {name: value for name, value in told.items() if value is not ...}


def posted(
    site: Site,
    *calls: tuple[dict[str, Any], dict[str, str]],
    more: Sequence[tuple[str, str]] = (),
    **settings: Any,
) -> list[Any]:
    """The answers to signed calls, each a message and what differs in its headers.

    `more`: further header lines of the first call.
    """

    async def story() -> list[Any]:
        async with site.http(signed=True, **settings) as http:
            return [
                await http.post(
                    ENDPOINT,
                    content=json.dumps(body),
                    headers=[*(USUAL | headers).items(), *(() if number else more)],
                )
                for number, (body, headers) in enumerate(calls)
            ]

    return asyncio.run(story())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Accept": "text/html"}, 406),
        ({"Accept": "application/json"}, 406),
        ({"Accept": "text/event-stream"}, 406),
        ({"Accept": ""}, 406),
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Type": "application/jsonx"}, 415),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
    ],
    ids=str,
)
def test_a_call_with_refused_headers_can_be_corrected_under_its_key(
    site: Site, headers: dict[str, str], status: int
) -> None:
    refused, corrected = posted(site, (message(), headers), (message(), {}))
    assert (refused.status_code, refused.json()["error"]) == (status, "invalid_request")
    assert (corrected.status_code, site.ran) == (200, [("pay", "ACME")])
    assert len(site.verify.asked) == 1


MODERN = {
    "MCP-Protocol-Version": "2026-07-28",
    "MCP-Method": "tools/call",
    "MCP-Name": "pay",
}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def enveloped(**changes: Any) -> dict[str, Any]:
    """The call as MCP 2026-07-28 has it."""
    told = message()
    told["params"]["_meta"] = {OPERATION_KEY: "k-1"} | ENVELOPE | changes
    return told


@pytest.mark.parametrize(
    ("refused", "headers"),
    [
        (message(), {"MCP-Protocol-Version": "1999-01-01"}),
        (message(), {"MCP-Protocol-Version": ""}),
        (message(), {"MCP-Protocol-Version": "2025-11-25, 2025-11-25"}),
        (message(), MODERN),
        (enveloped(), MODERN | {"MCP-Protocol-Version": "2099-01-01"}),
        (enveloped(), MODERN | {"MCP-Method": "tools/list"}),
        (enveloped(), MODERN | {"MCP-Name": "wipe"}),
        (enveloped(), {"MCP-Protocol-Version": "2026-07-28"}),
        (enveloped(**{"io.modelcontextprotocol/protocolVersion": "2025-11-25"}), MODERN),
        (enveloped(**{"io.modelcontextprotocol/clientCapabilities": 5}), MODERN),
        (enveloped(progressToken=[]), {}),
        (enveloped(progressToken={}), MODERN),
    ],
)
def test_call_that_the_sdk_refuses_for_its_version_is_not_counted(
    site: Site, refused: dict[str, Any], headers: dict[str, str]
) -> None:
    first, corrected, again = posted(
        site, (refused, headers), (message(), {}), (enveloped(), MODERN)
    )
    # The SDK's own error, with the versions that it takes.
    assert '"error":{"code":-32' in first.text.replace(" ", "")
    if headers.get("MCP-Protocol-Version", "").startswith(("1999", "2099")):
        assert first.status_code == 400
    assert (corrected.status_code, site.ran) == (200, [("pay", "ACME")])
    # Under the same key, so that is the second time.
    assert "already_processed" in again.text
    assert len(site.verify.asked) == 2


@pytest.mark.parametrize("name", MODERN)
def test_call_with_two_routing_headers_is_not_counted(site: Site, name: str) -> None:
    first, corrected = posted(
        site, (enveloped(), MODERN), (enveloped(), MODERN), more=[(name, MODERN[name])]
    )
    assert first.status_code == 400
    assert "more than once" in first.text
    assert (corrected.status_code, site.ran) == (200, [("pay", "ACME")])
    assert len(site.verify.asked) == 1


class Mirroring(Site):
    """Its tool wants the payee in a header too."""

    def server(self) -> MCPServer[Any]:
        server = MCPServer[Any]("calendar", log_level="WARNING")
        mirrored = Field(json_schema_extra={"x-mcp-header": "Payee"})

        def pay(payee: Annotated[str, mirrored], amount: dict[str, str]) -> str:
            self.ran.append(("pay", payee))
            return "paid"

        server.add_tool(pay, structured_output=False)
        return server


@pytest.mark.parametrize("sent", [{}, {"Mcp-Param-Payee": "EVIL"}])
def test_call_whose_mirrored_argument_differs_is_not_counted(
    site: Site, sent: dict[str, str]
) -> None:
    mirroring = Mirroring(site.verify, site.registry, site.tmp_path)
    whole = MODERN | {"Mcp-Param-Payee": "ACME"}
    first, corrected = posted(mirroring, (enveloped(), MODERN | sent), (enveloped(), whole))
    assert first.status_code == 400
    assert "Mcp-Param-Payee" in first.text
    assert (corrected.status_code, mirroring.ran) == (200, [("pay", "ACME")])
    assert len(site.verify.asked) == 1


@pytest.mark.parametrize(
    "changes",
    [{"id": ...}, {"id": None}, {"id": True}, {"id": 1.5}, {"id": [1]}, {"jsonrpc": "1.0"}],
    ids=str,
)
def test_a_call_that_gets_no_answer_is_not_counted(site: Site, changes: dict[str, Any]) -> None:
    refused, corrected = posted(site, (message(**changes), {}), (message(), {}))
    assert refused.status_code == 400
    assert (corrected.status_code, site.ran) == (200, [("pay", "ACME")])
    assert len(site.verify.asked) == 1


@pytest.mark.parametrize(
    "arguments", [{"amount": PAY["amount"]}, PAY | {"payee": 5}, PAY | {"payee": None}, {}]
)
def test_a_call_with_wrong_arguments_can_be_corrected_under_its_key(
    site: Site, arguments: dict[str, Any]
) -> None:
    wrong = message()
    wrong["params"] = wrong["params"] | {"arguments": arguments}
    refused, corrected = posted(site, (wrong, {}), (message(), {}))
    assert "invalid_request" in refused.text
    assert (corrected.status_code, site.ran) == (200, [("pay", "ACME")])
    assert len(site.verify.asked) == 1


@pytest.mark.parametrize(
    "accept", ["*/*", "application/*, text/*;q=0.5", "TEXT/EVENT-STREAM, Application/JSON"]
)
def test_a_call_that_accepts_both_kinds_is_run(site: Site, accept: str) -> None:
    [answer] = posted(site, (message(), {"Accept": accept}))
    assert (answer.status_code, len(site.ran)) == (200, 1)


def test_a_server_that_answers_json_needs_no_other_kind(site: Site) -> None:
    [answer] = posted(site, (message(), {"Accept": "application/json"}), json_response=True)
    assert (answer.status_code, len(site.ran)) == (200, 1)


@pytest.mark.parametrize("name", [["pay"], {"pay": 1}, 5, None])
def test_a_tool_name_that_is_no_text_is_not_signed_and_not_run(site: Site, name: object) -> None:
    wrong = message()
    wrong["params"] = wrong["params"] | {"name": name}
    [answer] = posted(site, (wrong, {}))
    assert "error" in answer.text
    assert "Internal" not in answer.text
    assert not [each for each in site.sent if "DPoP" in each.headers]
    assert not site.ran


@pytest.mark.parametrize("nonce", ["n" * 513, 'a"b', "a, b", ""])
def test_a_nonce_of_another_form_is_in_no_proof(
    registry: FakeRegistry, tmp_path: Path, nonce: str
) -> None:
    registry.grants.append(grant())
    registered(registry, tmp_path)
    sent: list[httpx2.Request] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        headers = {"DPoP-Nonce": nonce, "WWW-Authenticate": 'DPoP error="use_dpop_nonce"'}
        return httpx2.Response(401, headers=headers)

    async def story() -> None:
        agent = registry.client(tmp_path)
        signing = SigningTransport(agent, "sp", inner=httpx2.MockTransport(answer))
        async with httpx2.AsyncClient(transport=signing) as http:
            await http.post(ENDPOINT, json=message())
        assert signing._nonce is None

    asyncio.run(story())
    assert len(sent) == 1
