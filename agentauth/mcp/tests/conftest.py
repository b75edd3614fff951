import asyncio
import time

import pytest

from agentauth.sdk.tests.fake_registry import FakeRegistry


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry(now=int(time.time()))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait of the agent's client, which ends at once."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def short(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("agentauth.sdk.registry_client.asyncio.sleep", short)
    return waits
