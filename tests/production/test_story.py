"""From an invitation link to a revoked grant on the installed system, over https with passkeys."""

import asyncio
import contextlib
import secrets
import time
from pathlib import Path

import pytest

from agentauth import AgentAuthClient, Capability
from agentauth.sdk import Action, Allowed, RefusedError, VerifierClient
from tests.actors import LivePerson
from tests.flows.test_sdk_client import REVOKED_WITHIN_SECONDS
from tests.production.registry import ProductionRegistry

pytestmark = pytest.mark.production

AUDIENCE = "https://api.example.com"


def test_an_agent_is_claimed_approved_verified_and_revoked(
    production: ProductionRegistry, tmp_path: Path
) -> None:
    name = secrets.token_hex(4)
    person = LivePerson(production, f"alice-{name}@example.org")
    provider = production.manage(
        "create_service_provider",
        name,
        "--audience",
        f"{AUDIENCE}/{name}",
        "--allow",
        "read:calendar",
    )
    url = f"{AUDIENCE}/{name}/events"
    client = AgentAuthClient(
        production.url, key_file=tmp_path / "agent.json", name="Research Assistant"
    )

    async def story() -> None:
        wanted = [Capability.read("calendar")]
        agent = await client.register(wanted)
        assert agent.claim_url
        assert agent.claim_code
        person.claim(agent.claim_url, agent.claim_code)
        grant = await client.request_grant(
            service_provider_id=provider["slug"], capabilities=wanted
        )
        assert person.decide(grant.grant_id, person.sign(grant.grant_id)).status_code == 200
        assert (await client.wait_for_decision(grant)).status == "approved"
        assert (await verified()).grant_id == grant.grant_id
        assert person.revoke_grant(grant.grant_id).is_redirect

    async def verified() -> Allowed:
        headers = await client.authenticate_headers(provider["slug"], "GET", url)
        token = headers["Authorization"].removeprefix("DPoP ")
        with VerifierClient(
            production.url, provider["client_id"], provider["client_secret"]
        ) as service:
            return service.verify(
                token=token,
                proof=headers["DPoP"],
                method="GET",
                url=url,
                action=Action("read", "calendar"),
            )

    with contextlib.closing(person.http):
        asyncio.run(story())
    bound = time.monotonic() + REVOKED_WITHIN_SECONDS

    async def ask_until_the_bound() -> None:
        began = 0.0
        while began <= bound:
            began = time.monotonic()
            await verified()

    with pytest.raises(RefusedError) as refused:
        asyncio.run(ask_until_the_bound())
    assert refused.value.reason == "grant_inactive"
