"""The demo agent: does what it was allowed, tries what it was not, shows why it was refused."""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agentauth import AgentAuthClient, Capability
from agentauth.sdk import AgentAuthError, Grant
from agentauth.sdk.registry_http import open_client
from examples.demo.printing import DIM, GREEN, RED, heading, say, styled, table

NAME: Final = "Research Assistant"
REASON: Final = "To plan your week and to pay the invoices you forwarded to me."
CAPABILITIES: Final = (
    Capability.read("calendar"),
    Capability.transact(
        "payments", max_amount=("100.00", "EUR"), constraints={"payee": {"in": ["ACME", "Globex"]}}
    ),
)
ENVELOPE: Final[Mapping[str, object]] = {
    "max_requests_per_minute": 60,
    "max_burst": 20,
    "confirm_above": {"value": "50.00", "currency": "EUR"},
    "budgets": [{"value": "120.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}],
}
POLL_SECONDS: Final = 2
SEQUENCED_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Act:
    """One attempt and its answer; `expected` is the `word` it should get ("" means allowed)."""

    what: str
    expected: str
    status: int
    body: Mapping[str, Any]

    @property
    def allowed(self) -> bool:
        return 200 <= self.status < 300  # noqa: PLR2004 — HTTP's own range

    @property
    def word(self) -> str:
        """`error/reason` as the service provider answered."""
        if self.allowed:
            return ""
        return "/".join(str(self.body[name]) for name in ("error", "reason") if self.body.get(name))


@dataclass(slots=True)
class Story:
    """The agent at one service provider, and what it has tried so far."""

    client: AgentAuthClient
    service_provider: str
    audience: str
    acts: list[Act] = field(default_factory=list)

    async def tell(self) -> int:
        """Run the story. Returns 0 unless an answer was not the one the limits call for."""
        agent = await self.client.register(
            CAPABILITIES,
            description="A demo agent. It reads a calendar and pays small invoices.",
            model_origin="models.example.com",
        )
        grant = await self.client.request_grant(
            self.service_provider, CAPABILITIES, ENVELOPE, REASON
        )
        heading(f"{NAME} asks for your approval")
        say(f"Approve here: {grant.approval_url}")
        if grant.claim_code:
            say(f"Claim code: {grant.claim_code}")
        grant = await self.client.wait_for_decision(grant)
        if grant.status != "approved":
            say(f"The request was {grant.status}. {grant.deny_reason or ''}".rstrip())
            say("So the agent does nothing.")
            return 0
        say("Approved, with less than was asked." if grant.narrowed else "Approved.")

        heading("The agent goes to work")
        await self._read_and_replay()
        await self._pay()
        events = await self.client.audit_events()
        await self._revoked(agent.agent_id, grant)

        heading("What the agent tried, and what it was told")
        self._print_acts()
        await self._print_events(events)
        return self._conclude(grant)

    async def _read_and_replay(self) -> None:
        headers = await self._headers("GET", "/calendar/work")
        await self._try("read calendar/work", "", "GET", "/calendar/work", headers)
        # An attacker who captures a request gains nothing by sending it again.
        replayed = "invalid_dpop_proof/replayed"
        await self._try("send the same request again", replayed, "GET", "/calendar/work", headers)
        await self._try(
            "read files/reports", "insufficient_scope/no_capability", "GET", "/files/reports"
        )

    async def _pay(self) -> None:
        await self._payment("pay 20.00 EUR to ACME", "", "20.00", _new_key())
        key = _new_key()
        asked = await self._payment(
            "pay 80.00 EUR to ACME", "step_up_required/confirm_above", "80.00", key
        )
        if asked.body.get("confirmation_id"):
            heading("One payment is above the threshold: it needs your confirmation")
            say(f"Confirm here: {asked.body['approval_url']}")
            confirmation = await self.client.wait_for_confirmation(
                str(asked.body["confirmation_id"])
            )
            say(f"{confirmation.status.capitalize()}.")
            say()
            await self._payment("pay 80.00 EUR to ACME, confirmed", "", "80.00", key)
            await self._payment(
                "pay the same 80.00 EUR once more", "already_processed", "80.00", key
            )
        await self._payment(
            "pay 30.00 EUR to ACME", "envelope_exceeded/budget", "30.00", _new_key()
        )

    async def _revoked(self, agent_id: str, grant: Grant) -> None:
        heading("Take it back: press “Revoke grant” on the agent's page")
        say(f"Revoke here: {self.client.registry_url}/agents/{agent_id}/")
        while True:
            status = await self._status(grant)
            if status != "approved":
                break
            await asyncio.sleep(POLL_SECONDS)
        say(f"{status.capitalize()}.")
        say()
        try:
            # With the token from before: it has not expired, and is refused all the same.
            await self._try(
                "read calendar/work after that", "invalid_token", "GET", "/calendar/work"
            )
        except AgentAuthError as error:
            # The token expired before the human revoked, and there is no new one.
            body = {
                "error": error.code,
                "reason": error.reason,
                "error_description": error.description,
            }
            self.acts.append(Act("ask for a token after that", "no_grant", 400, body))

    async def _status(self, grant: Grant) -> str:
        try:
            return (await self.client.get_grant(grant.grant_id)).status
        except AgentAuthError as error:
            if error.code == "invalid_client":
                return "revoked with its agent"
            raise

    async def _payment(self, what: str, expected: str, value: str, key: str) -> Act:
        order = {"amount": {"value": value, "currency": "EUR"}, "payee": "ACME"}
        return await self._try(what, expected, "POST", "/payments", json=order, key=key)

    async def _headers(self, method: str, path: str) -> dict[str, str]:
        return await self.client.authenticate_headers(self.service_provider, method, path)

    async def _try(
        self,
        what: str,
        expected: str,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        json: Any = None,
        key: str | None = None,
    ) -> Act:
        """Send one request once: the SDK's `call` would retry some, and here each answer counts."""
        signed = headers or await self._headers(method, path)
        named = {"Idempotency-Key": key} if key else {}
        async with open_client(self.audience, None, timeout=15) as http:
            answer = await http.request(
                method, self.audience + path, headers={**signed, **named}, json=json
            )
        act = Act(what, expected, answer.status_code, answer.json())
        self.acts.append(act)
        mark = styled("✓", GREEN) if act.allowed else styled("✗", RED)
        say(f"{mark} {what}{styled(f'  {act.word}', DIM) if act.word else ''}")
        return act

    def _print_acts(self) -> None:
        rows = [
            (
                "✓ allowed" if act.allowed else "✗ refused",
                act.what,
                str(act.status),
                act.word or "—",
                "Within the grant." if act.allowed else str(act.body.get("error_description", "")),
            )
            for act in self.acts
        ]
        colours = [GREEN if act.allowed else RED for act in self.acts]
        table(("Outcome", "What it tried", "HTTP", "Reason", "In words"), rows, colours)

    async def _print_events(self, known: list[Mapping[str, object]]) -> None:
        """Print the log's lines.

        Waits up to SEQUENCED_SECONDS for the last ones to get their number. A revoked agent may no
        longer read them.
        """
        events = known
        try:
            for _ in range(SEQUENCED_SECONDS):
                events = await self.client.audit_events()
                if all(event.get("leaf_index") is not None for event in events):
                    break
                await asyncio.sleep(1)
        except AgentAuthError:
            say(
                "(The agent was revoked and can no longer read the log. These are the lines until "
                "then.)"
            )
        heading("What the audit log says about it")
        rows = [
            (
                "…" if event.get("leaf_index") is None else str(event["leaf_index"]),
                str(event.get("at", ""))[11:19],
                str(event.get("kind", "")),
                str(event.get("outcome", "")),
                str(event.get("reason") or "—"),
            )
            for event in events
        ]
        table(("Entry", "UTC", "Event", "Outcome", "Reason"), rows, [DIM] * len(rows))

    def _conclude(self, grant: Grant) -> int:
        strange = [
            act
            for act in self.acts
            if not act.word.startswith(act.expected) or act.allowed == bool(act.expected)
        ]
        say()
        if not strange:
            say("Every answer was the one the grant calls for.")
            return 0
        for act in strange:
            say(
                f"Unexpected answer: {act.what}: {act.word or 'allowed'} instead of "
                f"{act.expected or 'allowed'}."
            )
        if grant.narrowed or any(act.word.endswith("confirmation_denied") for act in strange):
            say("Your decision explains it.")
            return 0
        return 1


def _new_key() -> str:
    """A key that names one operation: repeated under the same key, it is done once."""
    return str(uuid.uuid4())
