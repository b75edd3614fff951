"""The official Python MCP client uses the demo service through `python -m agentauth.mcp`.

The demo service starts beside the test, so these flows run on a registry of their own.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from tests.live import ROOT, LiveRegistry
from tests.mcp_story import (
    CAPABILITIES,
    LIMITS,
    Person,
    arguments,
    body_of,
    demo_service,
    payment,
)
from tests.sampling import one_in

pytestmark = pytest.mark.flow

ERAS = ["2026-07-28", "legacy"]


@pytest.fixture(scope="module")
def service(sqlite_registry: LiveRegistry) -> Iterator[str]:
    with demo_service(sqlite_registry) as slug:
        yield slug


def server(registry: LiveRegistry, key_file: Path) -> StdioServerParameters:
    told = arguments(registry, key_file)
    return StdioServerParameters(command=sys.executable, args=told, cwd=str(ROOT))


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    return body_of(await client.call_tool(tool, arguments))


@pytest.mark.parametrize("era", one_in(2, ERAS))
def test_links_are_opened_and_each_call_goes_on_by_itself(
    sqlite_registry: LiveRegistry, service: str, tmp_path: Path, era: str
) -> None:
    person: Any = Person(sqlite_registry, ["approve", "confirm"])
    asked = {"service": service, "capabilities": CAPABILITIES, "limits": LIMITS}

    async def story() -> None:
        process = server(sqlite_registry, tmp_path / "agent.json")
        async with Client(process, mode=era, elicitation_callback=person) as client:
            assert len((await client.list_tools()).tools) == 4
            assert (await call(client, "request_access", **asked))["status"] == "approved"
            read = await call(
                client, "call_service", service=service, method="GET", path="/calendar/work"
            )
            assert (read["http_status"], read["body"]["calendar"]) == (200, "work")
            beyond = await call(
                client, "call_service", service=service, method="GET", path="/files/x"
            )
            assert (beyond["http_status"], beyond["body"]["error"]) == (403, "insufficient_scope")
            paid = await call(client, "call_service", **payment(service, "80.00"))
            assert paid["http_status"] == 201
            assert (await call(client, "revoke_access", service=service))["status"] == "revoked"
            after = await call(
                client, "call_service", service=service, method="GET", path="/calendar/work"
            )
            assert after["error"] == "no_grant"

    asyncio.run(story())
    assert person.kinds == ["claim", "confirmations"]


def test_a_client_without_links_shows_them_and_repeats_under_the_same_key(
    sqlite_registry: LiveRegistry, service: str, tmp_path: Path
) -> None:
    person = Person(sqlite_registry, ["approve", "confirm"])
    asked = {"service": service, "capabilities": CAPABILITIES, "limits": LIMITS}

    async def story() -> str:
        async with Client(server(sqlite_registry, tmp_path / "agent.json")) as client:
            waiting = await call(client, "request_access", **asked)
            assert waiting["status"] == "waiting_for_person"
            assert waiting["claim_code"]
            early = await call(
                client, "call_service", service=service, method="GET", path="/calendar/work"
            )
            assert early["status"] == "waiting_for_person"
            await asyncio.to_thread(person.decide, waiting["approval_url"])
            state = await call(client, "access_status", service=service, wait_seconds=20)
            assert [each["status"] for each in state["access"]] == ["approved"]
            parked = await call(client, "call_service", **payment(service, "70.00"))
            assert parked["status"] == "waiting_for_person"
            key = parked["idempotency_key"]
            await asyncio.to_thread(person.decide, parked["approval_url"])
            again = {**payment(service, "70.00"), "idempotency_key": key}
            assert (await call(client, "call_service", **again))["http_status"] == 201
            twice = await call(client, "call_service", **again)
            assert (twice["http_status"], twice["body"]["error"]) == (409, "already_processed")
            return json.dumps([waiting, state, parked, twice])

    shown = asyncio.run(story())
    assert "eyJ" not in shown, "no token, proof or key"


def test_a_denial_reaches_the_client_and_is_not_asked_again(
    sqlite_registry: LiveRegistry, service: str, tmp_path: Path
) -> None:
    person: Any = Person(sqlite_registry, ["deny"])
    asked = {"service": service, "capabilities": ["read:calendar/work"]}

    async def story() -> list[dict[str, Any]]:
        process = server(sqlite_registry, tmp_path / "agent.json")
        async with Client(process, elicitation_callback=person) as client:
            return [
                await call(client, "request_access", **asked),
                await call(client, "access_status"),
                await call(client, "request_access", **asked),
            ]

    denied, state, again = asyncio.run(story())
    assert denied["status"] == "denied"
    assert [each["status"] for each in state["access"]] == ["denied"]
    assert again["status"] == "denied"
    assert len(person.links) == 1
