"""The person beside an MCP client: decides at the live registry on each link that is brought."""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

from mcp_types import CallToolResult, ElicitResult

from tests.live import LiveRegistry


@dataclass
class Person:
    """`decisions` are made in order, one for each link: `approve`, `deny` or `confirm`."""

    registry: LiveRegistry
    decisions: list[str]
    links: list[str] = field(default_factory=list)

    async def __call__(self, _context: Any, params: Any) -> ElicitResult:
        self.links.append(params.url)
        await self.decide(params.url)
        return ElicitResult(action="accept")

    async def decide(self, url: str) -> None:
        told = {"id": subject_of(url)}
        await asyncio.to_thread(self.registry.act, "tests.decide", self.decisions.pop(0), told)


def subject_of(url: str) -> str:
    """The id of the grant or confirmation that a link is about."""
    found = re.search(r"(?:grant=|/approvals/|/confirmations/)([0-9a-f-]{36})", url)
    assert found, url
    return found[1]


def body_of(result: CallToolResult) -> dict[str, Any]:
    body: dict[str, Any] | None = result.structured_content
    assert body is not None, result
    return body
