"""What the MCP flows share: the demo service, the person beside the client, and the calls."""

import asyncio
import contextlib
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp_types import CallToolResult, ElicitResult

from examples.demo.__main__ import listen, service_provider
from tests.live import ROOT, LiveRegistry
from tests.postgres import free_port
from tests.waiting import until_listening

CAPABILITIES: list[Any] = [
    "read:calendar/work",
    {
        "type": "transact",
        "resource": "payments",
        "max_amount": {"value": "100.00", "currency": "EUR"},
    },
]
LIMITS = {"confirm_above": {"value": "50.00", "currency": "EUR"}}


@contextlib.contextmanager
def demo_service(registry: LiveRegistry) -> Iterator[str]:
    """The demo service, running as long as the block; its slug."""
    listening = listen("127.0.0.1", 0)
    audience = f"http://127.0.0.1:{listening.getsockname()[1]}"
    made = registry.manage("load_demo", "--audience", audience)
    with service_provider(Path(made["file"]), listening):
        yield str(made["slug"])


def arguments(registry: LiveRegistry, key_file: Path) -> list[str]:
    """Python's arguments that start our server on standard input and output."""
    return ["-m", "agentauth.mcp", "--registry", registry.url, "--key-file", str(key_file)]


@contextlib.contextmanager
def http_server(registry: LiveRegistry, key_file: Path) -> Iterator[str]:
    """Our server over HTTP, running as long as the block; its URL. Logs beside the key file."""
    port = free_port()
    command = [sys.executable, *arguments(registry, key_file), "--http", "--port", str(port)]
    with (
        key_file.with_suffix(".log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process,
    ):
        try:
            until_listening(port, process, key_file.with_suffix(".log"))
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()


def payment(service: str, euros: str) -> dict[str, Any]:
    """The arguments of `call_service` for a payment to ACME."""
    amount = {"value": euros, "currency": "EUR"}
    return {
        "service": service,
        "method": "POST",
        "path": "/payments",
        "idempotency_key": secrets.token_urlsafe(12),
        "body": {"amount": amount, "payee": "ACME"},
        "action": {
            "type": "transact",
            "resource": "payments",
            "amount": amount,
            "arguments": {"payee": "ACME"},
        },
    }


@dataclass
class Person:
    """`decisions` are made in order, one for each link: `approve`, `deny` or `confirm`."""

    registry: LiveRegistry
    decisions: list[str]
    links: list[str] = field(default_factory=list)

    async def __call__(self, _context: Any, params: Any) -> ElicitResult:
        await asyncio.to_thread(self.decide, params.url)
        return ElicitResult(action="accept")

    def decide(self, url: str) -> None:
        self.links.append(url)
        self.registry.act("tests.decide", self.decisions.pop(0), {"id": subject_of(url)})

    @property
    def kinds(self) -> list[str]:
        """The kind of page of each link."""
        return [link.removeprefix(self.registry.url).split("/")[1] for link in self.links]


def subject_of(url: str) -> str:
    """The id of the grant or confirmation that a link is about."""
    found = re.search(r"(?:grant=|/approvals/|/confirmations/)([0-9a-f-]{36})", url)
    assert found, url
    return found[1]


def body_of(result: CallToolResult) -> dict[str, Any]:
    body: dict[str, Any] | None = result.structured_content
    assert body is not None, result
    return body
