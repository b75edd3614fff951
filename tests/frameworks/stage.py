"""A registry and a service provider at the transport seam, for one agent's tools. No framework.

The registry is the fake of the SDK's tests. The service provider pays once per Idempotency-Key,
asks for a confirmation above 50 EUR, and answers reads with a text of its choice.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from agentauth.integrations.agent_tool import AgentTool, PersonNeeded
from agentauth.integrations.requirement import requires
from agentauth.protocol.capability import Capability
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.tests.fake_registry import URL, FakeRegistry, error, grant

CONFIRMATION_ID = "01900000-0000-7000-8000-000000000004"
CONFIRMATION_URL = f"{URL}/confirmations/{CONFIRMATION_ID}/"
EVIL = "https://evil.example/approve"
READ = Capability.read("calendar")
PAY = Capability.transact("payments", max_amount=("100.00", "EUR"))
# As the header of an access token: {"typ":"at+jwt"}.
TOKEN = "eyJ0eXAiOiJhdCtqd3QifQ.eyJzdWIiOiJzZWNyZXQifQ.c2lnbmF0dXJlLXNlY3JldA"
SMALL = {"payee": "shop", "amount": {"value": "5.00", "currency": "EUR"}}
LARGE = {"payee": "shop", "amount": {"value": "80.00", "currency": "EUR"}}


@dataclass
class Stage:
    """`text` is what reads are answered; `confirmation` the state of the one confirmation."""

    folder: Path
    text: Any = "Lunch at noon"
    confirmation: str = "pending"
    paid: dict[str, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    shown: list[PersonNeeded] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = FakeRegistry(now=int(time.time()), script=self._answer)
        self.client = self.new_client()
        asyncio.run(self.client.register([READ, PAY]))

    def new_client(self) -> AgentAuthClient:
        """A client with the same key, as a restarted process has."""
        return self.registry.client(self.folder)

    def reader(self, client: AgentAuthClient | None = None, **more: Any) -> AgentTool:
        return AgentTool(
            client or self.client,
            name="read_day",
            description="Read one day of the calendar.",
            service="sp",
            method="GET",
            path="/v1/calendar/{day}",
            parameters={"day": {"type": "string"}},
            needs=requires("read", "calendar/{day}"),
            **{"asks_for": [READ], **more},
        )

    def payer(self, client: AgentAuthClient | None = None, **more: Any) -> AgentTool:
        return AgentTool(
            client or self.client,
            name="pay",
            description="Pay an amount to a payee.",
            service="sp",
            method="POST",
            path="/v1/payments",
            parameters={"payee": {"type": "string"}, "amount": {"type": "object"}},
            needs=requires("transact", "payments", amount="amount", arguments=["payee"]),
            **{"asks_for": [PAY], **more},
        )

    # ---- the person

    def approve(self) -> None:
        """The person approves every grant, as it was requested."""
        if not self.registry.grants:
            terms = {"capabilities": [READ.to_json(), PAY.to_json()], "envelope": {}}
            self.registry.grants = [grant(requested=terms, granted=terms)]
        for each in self.registry.grants:
            terms = each["requested"]
            each.update(grant(grant_id=each["grant_id"], requested=terms, granted=terms))
            each.pop("approval_url", None)

    def deny(self, why: str) -> None:
        for each in self.registry.grants:
            now = "2026-01-01T00:00:00Z"
            each.update(status="denied", deny_reason=why, decided_at=now)
            each.pop("approval_url", None)

    def approve_and_confirm(self, needed: PersonNeeded) -> None:
        """A callback: the person opens the link and says yes."""
        self.shown.append(needed)
        if needed.kind == "grant":
            self.approve()
        else:
            self.confirmation = "confirmed"

    def look(self, needed: PersonNeeded) -> None:
        """A callback: the person sees the link."""
        self.shown.append(needed)

    # ---- the servers

    def _answer(self, request: httpx.Request) -> httpx.Response | None:
        if request.url.path == f"/v1/confirmations/{CONFIRMATION_ID}":
            body = {
                "confirmation_id": CONFIRMATION_ID,
                "status": self.confirmation,
                "approval_url": CONFIRMATION_URL,
            }
            return httpx.Response(200, json=body)
        if request.url.host != "api.sp.example":
            return None
        if request.method == "GET":
            headers = {"Content-Type": "text/plain"}
            return httpx.Response(200, text=self.text, headers=headers)
        return self._pay(request.headers["Idempotency-Key"], json.loads(request.content))

    def _pay(self, key: str, body: Any) -> httpx.Response:
        self.keys.append(key)
        if key in self.paid:
            return error(409, "already_processed")
        if float(body["amount"]["value"]) > 50 and self.confirmation != "confirmed":
            reason = "confirmation_denied" if self.confirmation == "denied" else "confirm_above"
            members: dict[str, Any] = {"confirmation_id": CONFIRMATION_ID, "approval_url": EVIL}
            return error(403, "step_up_required", reason=reason, **members)
        self.paid[key] = body
        return httpx.Response(201, json={"paid": body["amount"]})


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Waits between two looks at a decision end at once."""

    async def sleep(_seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr("agentauth.sdk.decision_polling.asyncio", SimpleNamespace(sleep=sleep))
    return Stage(tmp_path)


def read(result: object) -> dict[str, Any]:
    """What the model reads, which is one line of JSON without links, tokens and proofs."""
    assert isinstance(result, str)
    assert "\n" not in result
    assert "/approvals/" not in result
    assert CONFIRMATION_URL not in result
    assert TOKEN not in result
    found: dict[str, Any] = json.loads(result)
    return found
