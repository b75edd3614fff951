import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentauth.sdk import AgentAuthClient
from agentauth.sdk.tests.fake_registry import FakeRegistry, grant, registered


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry(now=int(time.time()))


@pytest.fixture
def client(registry: FakeRegistry, tmp_path: Path) -> AgentAuthClient:
    """The client of an agent with a grant."""
    made = registered(registry, tmp_path)
    registry.grants = [grant()]
    return made


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait of the client, which ends at once."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits


@dataclass
class Clock:
    """A clock for the verifier's client only, which advances by each wait; `waits` without what
    spreads them.
    """

    now: float = 1000.0
    waits: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(int(seconds))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every wait of the verifier's client, which ends at once."""
    made = Clock()

    async def sleep(seconds: float) -> None:
        made.sleep(seconds)

    monkeypatch.setattr("agentauth.sdk.verifier.time", made)
    monkeypatch.setattr("agentauth.sdk.async_verifier.time", made)
    monkeypatch.setattr("agentauth.sdk.async_verifier.asyncio", SimpleNamespace(sleep=sleep))
    return made
