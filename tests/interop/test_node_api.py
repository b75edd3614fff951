"""Our Python agent calls an API in Node.js that validates with the unmodified oauth4webapi."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agentauth import AgentAuthClient, Capability
from tests.flows.test_sdk_client import decide
from tests.interop.test_npm_clients import HERE
from tests.live import LiveRegistry
from tests.postgres import free_port

pytestmark = [pytest.mark.node, pytest.mark.usefixtures("npm_packages")]


@pytest.fixture
def audience(sqlite_registry: LiveRegistry) -> Iterator[str]:
    address = f"http://127.0.0.1:{free_port()}"
    api = subprocess.Popen(
        ["node", "api.mjs", sqlite_registry.url, address], cwd=HERE, stdout=subprocess.PIPE
    )
    assert api.stdout is not None
    try:
        assert api.stdout.readline() == b"listening\n"
        yield address
    finally:
        api.terminate()
        api.wait(60)
        api.stdout.close()


def test_python_agent_calls_a_node_api_that_validates_with_oauth4webapi(
    sqlite_registry: LiveRegistry, audience: str, tmp_path: Path
) -> None:
    made = sqlite_registry.manage(
        "create_service_provider", "Node", "--audience", audience, "--allow", "read:calendar"
    )
    client = AgentAuthClient(sqlite_registry.url, key_file=tmp_path / "agent.json")

    async def story() -> None:
        grant = await client.ensure_grant(made["slug"], [Capability.read("calendar")])
        await asyncio.to_thread(decide, sqlite_registry, "approve", grant.grant_id)
        answer = await client.call(made["slug"], "GET", "/calendar/work?day=1")
        assert answer.status_code == 200
        assert answer.json() == {
            "agent": client.identity().agent_id,
            "url": "/calendar/work?day=1",
        }
        headers = await client.authenticate_headers(made["slug"], "GET", "/calendar/work")
        async with httpx.AsyncClient(base_url=audience, trust_env=False, timeout=60) as other:
            assert (await other.get("/calendar/work", headers=headers)).status_code == 200
            # A proof for another URL, and a token without its proof.
            assert (await other.get("/calendar/home", headers=headers)).status_code == 401
            del headers["DPoP"]
            assert (await other.get("/calendar/work", headers=headers)).status_code == 401

    asyncio.run(story())
