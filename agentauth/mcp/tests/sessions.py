"""In-memory sessions of the official MCP client with our server, on a fake registry."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp import Client
from mcp_types import CallToolResult, ElicitRequestURLParams, ElicitResult

from agentauth.mcp.options import Options
from agentauth.mcp.server import make_server
from agentauth.sdk.tests.fake_registry import URL, FakeRegistry

# Protocol revisions: the handshake's last one, and the one with rounds.
ERAS = ("legacy", "2026-07-28")


@dataclass
class Person:
    """Answers each link; `acts` is what the person does once it is open."""

    answer: str = "accept"
    acts: Callable[[], None] = lambda: None
    links: list[ElicitRequestURLParams] = field(default_factory=list)

    async def __call__(self, _context: Any, params: Any) -> ElicitResult:
        self.links.append(params)
        if self.answer == "accept":
            self.acts()
        return ElicitResult(action=self.answer)  # type: ignore[arg-type]  # one of the three


@asynccontextmanager
async def session(
    registry: FakeRegistry,
    tmp_path: Path,
    *,
    era: str = "2026-07-28",
    person: Person | None = None,
    **options: Any,
) -> AsyncIterator[Client]:
    """One client; with `person`, it takes links."""
    told = Options(registry_url=URL, **{"wait_seconds": 1, **options})
    server = make_server(told, client=registry.client(tmp_path))
    callback: Any = person
    async with Client(server, mode=era, elicitation_callback=callback) as client:
        yield client


def body_of(result: CallToolResult) -> dict[str, Any]:
    """The structured content, which the text repeats."""
    body: dict[str, Any] | None = result.structured_content
    assert body is not None
    [first, *_] = result.content
    assert json.loads(first.text.rsplit("\n", 1)[1]) == body  # type: ignore[union-attr]
    return body
