"""The four tools: what they ask the registry, and what the client sees."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.mcp.tests.sessions import ERAS, Person, body_of, session
from agentauth.sdk.tests.fake_registry import AUDIENCE, GRANT_ID, URL, FakeRegistry, grant

ASK = {"service": "sp", "capabilities": ["read:calendar"], "reason": "To plan the week."}
READ = {"service": "sp", "method": "GET", "path": "/v1/calendar"}
PAY = {"service": "sp", "method": "POST", "path": "/v1/payments", "body": {"payee": "ACME"}}


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
