import asyncio
import time

import pytest

from agentauth.sdk.tests.fake_registry import FakeRegistry


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry(now=int(time.time()))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait of the client, taken at once."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits
