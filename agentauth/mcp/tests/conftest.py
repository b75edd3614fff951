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
def site(registry: FakeRegistry, tmp_path: Path) -> Site:
    """A protected server, and an agent that is registered and has a grant."""
    registry.grants.append(grant())
    registered(registry, tmp_path)
    return Site(Verify(registry.now), registry, tmp_path)


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
