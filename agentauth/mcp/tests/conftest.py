import asyncio
import time
from pathlib import Path

import pytest

from agentauth.mcp.tests.guarded import Site, Verify
from agentauth.sdk.tests.fake_registry import FakeRegistry, grant, registered


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry(now=int(time.time()))


@pytest.fixture
def agent(registry: FakeRegistry, tmp_path: Path) -> FakeRegistry:
    """A registry whose agent may use the service."""
    registry.grants.append(grant())
    registered(registry, tmp_path)
    return registry


@pytest.fixture
def site(agent: FakeRegistry, tmp_path: Path) -> Site:
    """A service whose tools are protected, and an agent that may use it."""
    return Site(Verify(agent.now), agent, tmp_path)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait of the agent's client, which ends at once."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def short(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("agentauth.sdk.registry_http.asyncio.sleep", short)
    return waits
