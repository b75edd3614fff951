"""docs/mcp.md: the server of the page on a live registry, and the official client that signs."""

import asyncio
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import jwt
import pytest
import uvicorn
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from agentauth import AgentAuthClient, Capability
from agentauth.mcp.signing import SigningTransport
from agentauth.mcp.tool_call_messages import OPERATION_KEY
from tests.live import ROOT, START_SECONDS, LiveRegistry
from tests.mcp_story import Person, body_of
from tests.postgres import free_port
from tests.time_limits import within

pytestmark = pytest.mark.flow

PAGE = ROOT / "docs/mcp.md"
GRANTED = [
    Capability.write("calendar/work", constraints={"title": {"max_length": 20}}),
    Capability.transact("payments", max_amount=("100.00", "EUR")),
]
LIMITS = {"confirm_above": {"value": "50.00", "currency": "EUR"}}
EVENT = {"calendar": "work", "title": "Lunch"}
PAYMENT = {"payee": "ACME", "amount": {"value": "80.00", "currency": "EUR"}}


def block(number: int, **replaced: str) -> dict[str, Any]:
    """Run one Python block of the page with real addresses; its names."""
    source = re.findall(r"```python\n(.+?)```", PAGE.read_text(), re.DOTALL)[number]
    for placeholder, real in replaced.items():
        assert placeholder in source
        source = source.replace(placeholder, real)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(source, str(PAGE), "exec"), names)  # noqa: S102 — our own page, run as a reader would
    return names


@dataclass
class Place:
    registry: LiveRegistry
    endpoint: str
    slug: str

    def client(self, key_file: Path) -> AgentAuthClient:
        return AgentAuthClient(self.registry.url, key_file=key_file)

    def approved(self, key_file: Path) -> tuple[AgentAuthClient, str]:
        """An agent with the grant, and the grant's id."""
        client = self.client(key_file)
        grant = asyncio.run(client.request_grant(self.slug, GRANTED, LIMITS))
        self.registry.act("tests.decide", "approve", {"id": grant.grant_id})
        return client, grant.grant_id


@pytest.fixture(scope="module")
def place(sqlite_registry: LiveRegistry) -> Iterator[Place]:
    """The page's server, served by uvicorn in a thread."""
    port = free_port()
    audience = f"http://127.0.0.1:{port}"
    told = ["Calendar", "--audience", audience]
    for entry in ("write:calendar", "transact:payments"):
        told += ["--allow", entry]
    made = sqlite_registry.manage("create_service_provider", *told)
    credentials = {"CLIENT_ID": made["client_id"], "CLIENT_SECRET": made["client_secret"]}
    os.environ.update(credentials)
    names = block(
        0,
        **{
            "https://mcp.example.com": audience,
            "https://registry.example.com": sqlite_registry.url,
        },
    )
    for name in credentials:
        del os.environ[name]
    running = uvicorn.Server(uvicorn.Config(names["app"], port=port, log_level="warning"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not running.started and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running.started
    yield Place(sqlite_registry, f"{audience}/mcp", made["slug"])
    running.should_exit = True
    thread.join()
    names["verifier"].close()


def called(
    place: Place,
    agent: AgentAuthClient,
    tool: str,
    arguments: dict[str, Any],
    *,
    person: Any = None,
    key: str | None = None,
) -> Any:
    """The tool's result, or the error that the client got."""

    async def story() -> Any:
        signing = SigningTransport(agent, place.slug)
        async with httpx2.AsyncClient(transport=signing, timeout=START_SECONDS) as http:
            transport = streamable_http_client(place.endpoint, http_client=http)
            async with Client(transport, elicitation_callback=person) as session:
                meta: Any = {OPERATION_KEY: key} if key else None
                try:
                    return await session.call_tool(tool, arguments, meta=meta)
                except MCPError as error:
                    return error

    return asyncio.run(story())


def test_the_client_of_the_page_adds_an_event(place: Place, tmp_path: Path) -> None:
    agent, _ = place.approved(tmp_path / "agent.json")
    names = block(
        1, **{"https://mcp.example.com/mcp": place.endpoint, '"calendar")': f'"{place.slug}")'}
    )
    assert asyncio.run(names["add"](agent)).endswith("added Lunch to work.")


def test_a_protected_tool_is_allowed_limited_and_refused_after_revocation(
    place: Place, tmp_path: Path
) -> None:
    agent, grant_id = place.approved(tmp_path / "agent.json")
    assert not called(place, agent, "add_event", EVENT).is_error
    long = body_of(called(place, agent, "add_event", EVENT | {"title": "x" * 21}))
    assert (long["error"], long["reason"]) == ("insufficient_scope", "constraint")
    other = body_of(called(place, agent, "add_event", EVENT | {"calendar": "home"}))
    assert (other["error"], other["reason"]) == ("insufficient_scope", "no_capability")
    assert isinstance(called(place, agent, "reset", {}), MCPError)
    place.registry.act("tests.decide", "revoke", {"id": grant_id})
    # The registry may take a second to tell all of its processes.
    deadline = time.monotonic() + within(1)
    while not isinstance(called(place, agent, "add_event", EVENT), MCPError):
        assert time.monotonic() < deadline


def test_a_payment_is_parked_confirmed_and_made_once(place: Place, tmp_path: Path) -> None:
    agent, _ = place.approved(tmp_path / "agent.json")
    person = Person(place.registry, ["confirm"])
    parked = body_of(called(place, agent, "pay", PAYMENT))
    assert parked["status"] == "waiting_for_person"
    key = parked["idempotency_key"]
    person.decide(parked["approval_url"])
    paid = called(place, agent, "pay", PAYMENT, key=key)
    assert paid.content[0].text == "Paid 80.00 EUR to ACME."
    assert body_of(called(place, agent, "pay", PAYMENT, key=key))["error"] == "already_processed"


def test_a_payment_goes_on_by_itself_once_the_link_led_to_a_yes(
    place: Place, tmp_path: Path
) -> None:
    agent, _ = place.approved(tmp_path / "agent.json")
    person = Person(place.registry, ["confirm"])
    paid = called(place, agent, "pay", PAYMENT, person=person)
    assert paid.content[0].text == "Paid 80.00 EUR to ACME."
    assert person.kinds == ["confirmations"]


def test_a_stock_check_takes_our_bound_token_for_a_bearer_token(
    place: Place, tmp_path: Path
) -> None:
    """What the page warns of: the claim `cnf` means nothing to it."""
    agent, _ = place.approved(tmp_path / "agent.json")
    token = asyncio.run(agent.get_token(place.slug))
    told = httpx.get(f"{place.registry.url}/.well-known/jwks.json", timeout=START_SECONDS).json()
    keys = jwt.PyJWKSet(told["keys"])
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(
        token,
        key,
        algorithms=["EdDSA", "ES256"],
        audience=place.endpoint.removesuffix("/mcp"),
        issuer=place.registry.url,
    )
    assert claims["cnf"].keys() == {"jkt"}


def test_our_token_under_bearer_is_refused_by_a_protected_server(
    place: Place, tmp_path: Path
) -> None:
    agent, _ = place.approved(tmp_path / "agent.json")
    token = asyncio.run(agent.get_token(place.slug))
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "add_event", "arguments": EVENT},
    }
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.post(place.endpoint, json=message, headers=headers, timeout=START_SECONDS)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")
    assert answer.headers["WWW-Authenticate"].startswith("DPoP ")
