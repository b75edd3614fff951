"""The SDK against a live registry: example, denial, narrowing, a lost answer, a second process."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth import AgentAuthClient, Capability
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.errors import (
    CooldownActiveError,
    InvalidGrantError,
    InvalidScopeError,
    InvalidStateError,
)
from agentauth.sdk import (
    Action,
    Allowed,
    GrantPendingError,
    NoGrantError,
    RefusedError,
    VerifierClient,
)
from tests.live import LiveRegistry
from tests.time_limits import HANGS_SECONDS

pytestmark = [pytest.mark.flow, pytest.mark.production]

CALENDAR = [Capability.read("calendar")]
# docs/protocol.md section 7: each server refuses a verify that begins later than this.
REVOKED_WITHIN_SECONDS = 1.0


def decide(registry: LiveRegistry, act: str, identifier: str, **wish: Any) -> None:
    """What a user does on a page; see tests/decide.py."""
    registry.act("tests.decide", act, {"id": identifier, **wish})


@pytest.fixture(scope="module")
def provider(sqlite_registry: LiveRegistry) -> dict[str, str]:
    made: dict[str, str] = sqlite_registry.manage(
        "create_service_provider",
        "Acme",
        "--audience",
        f"{sqlite_registry.services}/api",
        "--allow",
        "read:calendar",
    )
    return made


@pytest.fixture
def new_client(sqlite_registry: LiveRegistry, tmp_path: Path) -> Callable[[], AgentAuthClient]:
    """Each call returns the same agent in another process."""
    return lambda: AgentAuthClient(sqlite_registry.url, key_file=tmp_path / "agent.json")


def verify(registry: LiveRegistry, provider: dict[str, str], headers: dict[str, str]) -> Allowed:
    """The service provider's verdict on a request with these headers."""
    with VerifierClient(registry.url, provider["client_id"], provider["client_secret"]) as client:
        return client.verify(**asked(registry, headers))


def asked(
    registry: LiveRegistry, headers: dict[str, str], path: str = "/api/events"
) -> dict[str, Any]:
    return {
        "token": headers["Authorization"].removeprefix("DPoP "),
        "proof": headers["DPoP"],
        "method": "POST",
        "url": f"{registry.services}{path}",
        "action": Action("read", "calendar"),
    }


def test_the_example_runs_as_printed(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")

    async def example() -> dict[str, str]:
        client = AgentAuthClient(sqlite_registry.url)
        await client.request_grant(
            service_provider_id=provider["client_id"],
            capabilities=[Capability.read("calendar")],
        )
        return await client.authenticate_headers(provider["client_id"], "POST", "/api/events")

    with pytest.raises(GrantPendingError) as pending:
        asyncio.run(example())
    assert pending.value.approval_url.startswith(f"{sqlite_registry.url}/claim/")
    assert pending.value.claim_code
    page = httpx.get(pending.value.approval_url, follow_redirects=True, timeout=HANGS_SECONDS)
    assert page.status_code == 200
    decide(sqlite_registry, "approve", pending.value.grant_id)
    headers = asyncio.run(example())
    allowed = verify(sqlite_registry, provider, headers)
    assert allowed.grant_id == pending.value.grant_id
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "agentauth").iterdir()} == {0o600}


def test_a_decision_is_waited_for(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    new_client: Callable[[], AgentAuthClient],
) -> None:
    async def story() -> None:
        client = new_client()
        grant = await client.request_grant(provider["slug"], CALENDAR, reason="To plan the week.")
        waiting = asyncio.create_task(client.wait_for_decision(grant))
        await asyncio.sleep(1)
        assert not waiting.done()
        await asyncio.to_thread(
            decide,
            sqlite_registry,
            "approve",
            grant.grant_id,
            capabilities=[{"type": "read", "resource": "calendar/work"}],
        )
        decided = await asyncio.wait_for(waiting, HANGS_SECONDS)
        assert decided.status == "approved"
        assert decided.narrowed
        headers = await client.authenticate_headers(provider["slug"], "POST", "/api/events")
        with pytest.raises(RefusedError, match="insufficient_scope"):
            verify(sqlite_registry, provider, headers)

    asyncio.run(story())


def test_client_gets_a_denial_with_its_reason(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    new_client: Callable[[], AgentAuthClient],
) -> None:
    async def story() -> None:
        grant = await new_client().request_grant(provider["slug"], CALENDAR)
        await asyncio.to_thread(
            decide, sqlite_registry, "deny", grant.grant_id, reason="Not this week."
        )
        decided = await new_client().wait_for_decision(grant)
        assert (decided.status, decided.deny_reason) == ("denied", "Not this week.")
        with pytest.raises(NoGrantError, match=r"Not this week\."):
            await new_client().get_token(provider["slug"])
        with pytest.raises(CooldownActiveError):
            await new_client().request_grant(provider["slug"], CALENDAR)

    asyncio.run(story())


def test_more_than_the_service_provider_allows_is_refused(
    provider: dict[str, str], new_client: Callable[[], AgentAuthClient]
) -> None:
    with pytest.raises(InvalidScopeError):
        asyncio.run(new_client().request_grant(provider["slug"], [Capability.write("calendar")]))


def test_revoking_binds_the_token_at_hand_and_the_next_one(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    new_client: Callable[[], AgentAuthClient],
) -> None:
    async def story() -> None:
        client = new_client()
        grant = await client.request_grant(provider["slug"], CALENDAR)
        await asyncio.to_thread(decide, sqlite_registry, "approve", grant.grant_id)
        headers = await client.authenticate_headers(provider["slug"], "POST", "/api/events")
        verify(sqlite_registry, provider, headers)
        await asyncio.to_thread(decide, sqlite_registry, "revoke", grant.grant_id)
        bound = time.monotonic() + REVOKED_WITHIN_SECONDS

        async def ask_until_the_bound() -> None:
            began = 0.0
            while began <= bound:
                headers = await client.authenticate_headers(provider["slug"], "POST", "/api/events")
                began = time.monotonic()
                verify(sqlite_registry, provider, headers)

        with pytest.raises(RefusedError, match="invalid_token"):
            await ask_until_the_bound()
        with pytest.raises(InvalidGrantError):
            await new_client().get_token(provider["slug"], grant.grant_id)
        with pytest.raises(NoGrantError, match="revoked"):
            await new_client().get_token(provider["slug"])

    asyncio.run(story())


def test_an_agent_withdraws_what_it_asked_and_gives_up_what_it_has(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    new_client: Callable[[], AgentAuthClient],
) -> None:
    async def story() -> None:
        client = new_client()
        first = await client.request_grant(provider["slug"], CALENDAR)
        await client.withdraw_grant(first)
        assert (await client.get_grant(first.grant_id)).status == "withdrawn"
        second = await client.request_grant(provider["slug"], CALENDAR)
        await asyncio.to_thread(decide, sqlite_registry, "approve", second.grant_id)
        await client.get_token(provider["slug"])
        with pytest.raises(InvalidStateError):
            await client.withdraw_grant(second)
        await client.revoke_grant(second.grant_id)
        with pytest.raises(NoGrantError, match="revoked"):
            await client.get_token(provider["slug"])

    asyncio.run(story())


def test_an_enrolment_code_makes_the_agent_its_human_s(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    new_client: Callable[[], AgentAuthClient],
    tmp_path: Path,
) -> None:
    first = asyncio.run(new_client().request_grant(provider["slug"], CALENDAR))
    decide(sqlite_registry, "approve", first.grant_id)
    email = f"alice-{asyncio.run(new_client().register()).agent_id}@example.org"
    code = sqlite_registry.manage("create_enrolment_code", "--human", email)["code"]
    for _ in range(2):  # the same process started again, code and all
        client = AgentAuthClient(
            sqlite_registry.url, key_file=tmp_path / "second.json", enrolment_code=code
        )
        agent = asyncio.run(client.register(CALENDAR))
        assert (agent.status, agent.claim_url) == ("active", None)


@pytest.mark.parametrize("lost", ["answer", "answer twice"])
def test_OG_26_a_lost_reply_has_no_second_effect(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    new_client: Callable[[], AgentAuthClient],
    lost: str,
) -> None:
    """The registry acts, the answer is lost, the client asks again: one grant, one event."""

    class Lossy(httpx.AsyncHTTPTransport):
        left = 2 if lost == "answer twice" else 1

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            if request.url.path == "/v1/grants" and self.left:
                self.left -= 1
                await response.aread()
                raise httpx.ReadTimeout("lost", request=request)
            return response

    async def story() -> None:
        client = new_client()
        await client.register(CALENDAR)
        client._registry.transport = Lossy()
        grant = await client.request_grant(provider["slug"], CALENDAR)
        client._registry.transport = None
        assert [known.grant_id for known in await client.list_grants()] == [grant.grant_id]
        events = await client.audit_events()
        assert [event["kind"] for event in events].count("registry.grant.requested") == 1

    asyncio.run(story())


def test_wrong_provider_credentials_are_not_the_agents_fault(
    sqlite_registry: LiveRegistry,
    provider: dict[str, str],
    new_client: Callable[[], AgentAuthClient],
) -> None:
    signer = new_client()._life.signer
    url = f"{sqlite_registry.services}/api"
    proof = make_proof(signer, method="POST", url=url, iat=0, jti="x")
    with (
        VerifierClient(sqlite_registry.url, provider["client_id"], "wrong") as wrong,
        pytest.raises(Exception, match="401 invalid_client") as raised,
    ):
        wrong.verify(token="t", proof=proof, method="POST", url=url)
    assert not isinstance(raised.value, RefusedError)
