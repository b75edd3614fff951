from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.cli.agent_options import Connection
from agentauth.sdk.tests.conftest import registry, slept
from agentauth.sdk.tests.fake_registry import URL, FakeRegistry

__all__ = ["registry", "slept"]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, registry: FakeRegistry, tmp_path: Path) -> FakeRegistry:
    """The commands, which call the fake registry with a key file of their own."""
    made = Connection.client

    def client(connection: Connection, **options: Any) -> Any:
        result = made(connection, **options)
        result._registry.transport = httpx.MockTransport(registry)
        return result

    monkeypatch.setattr(Connection, "client", client)
    monkeypatch.setenv("AGENTAUTH_REGISTRY", URL)
    monkeypatch.setenv("AGENTAUTH_KEY_FILE", str(tmp_path / "agent.json"))
    return registry
