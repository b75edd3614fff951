"""A protected MCP server behind ASGI, the official client that signs, and a small verify."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer
from starlette.requests import Request
from starlette.responses import Response

from agentauth.mcp.protect import Protected, Verifier, decision
from agentauth.mcp.signing import SigningTransport
from agentauth.mcp.tool_action import ToolAction
from agentauth.protocol.capability import Capability, parse_action
from agentauth.protocol.capability_comparison import choose
from agentauth.protocol.dpop import verify_proof
from agentauth.sdk.tests.fake_registry import AUDIENCE, URL, FakeRegistry
from agentauth.sdk.verifier import Allowed, VerifierClient

ENDPOINT = f"{AUDIENCE}/mcp"
CONFIRM = f"{URL}/confirmations/c-1/"
# Arguments of the tool add_event.
EVENT = {"name": "work", "title": "stand-up"}
GRANTED = [
    Capability.read("calendar/work"),
    Capability.write("calendar/work", constraints={"title": {"max_length": 20}}),
    Capability.transact("payments", max_amount=("100.00", "EUR")),
]


@dataclass
class Verify:
    """Decides by `GRANTED`, with a confirmation above 50 EUR; remembers proofs and operations."""

    now: int
    nonce: str | None = None
    confirmed: set[str] = field(default_factory=set)
    asked: list[dict[str, Any]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    spent: set[str] = field(default_factory=set)
    revoked: bool = False
    next_nonce: str | None = None
    status: int = 200
    error: str = "temporarily_unavailable"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        question = json.loads(request.content)
        self.asked.append(question)
        if self.status != 200:
            return httpx.Response(self.status, json={"error": self.error})
        return httpx.Response(200, json=self.decide(question))

    def decide(self, question: dict[str, Any]) -> dict[str, Any]:
        proof = verify_proof(
            question["proof"],
            expected_method=question["method"],
            expected_url=question["url"],
            access_token=question["token"],
            body=None,
            now=self.now,
        )
        if self.revoked:
            return no("invalid_token", "revoked")
        if self.nonce is not None and proof.nonce != self.nonce:
            return no("use_dpop_nonce", None, nonce=self.nonce)
        if proof.jti in self.spent:
            return no("invalid_dpop_proof", "replayed")
        self.spent.add(proof.jti)
        chosen = choose(GRANTED, parse_action(question["action"]))
        if chosen.capability is None:
            violations = [each.to_json() for each in chosen.violations]
            return no("insufficient_scope", chosen.reason, violations=violations)
        key = question.get("idempotency_key")
        amount = question["action"].get("amount")
        if amount and float(amount["value"]) > 50 and key not in self.confirmed:
            return no(
                "step_up_required", "confirm_above", confirmation_id="c-1", approval_url=CONFIRM
            )
        repeated = key is not None and key in self.done
        self.done |= {key} if key else set()
        yes = {"valid": True, "decision_id": "d", "subject": "s", "repeated": repeated}
        return yes | ({"nonce": self.next_nonce} if self.next_nonce else {})


def no(error: str, reason: str | None, **more: Any) -> dict[str, Any]:
    return {"valid": False, "error": error, **({"reason": reason} if reason else {}), **more}


class Awaited:
    """A verifier whose `verify` is a coroutine."""

    def __init__(self, verifier: VerifierClient) -> None:
        self._verifier = verifier

    async def verify(self, **question: Any) -> Allowed:
        return self._verifier.verify(**question)


class Recording(httpx2.AsyncBaseTransport):
    """What leaves the client. The first signed call may be redirected."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, site: "Site") -> None:
        self._inner, self._site = inner, site

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._site.sent.append(request)
        if self._site.redirect_to is not None and "DPoP" in request.headers:
            target, self._site.redirect_to = self._site.redirect_to, None
            return httpx2.Response(307, headers={"Location": target})
        return await self._inner.handle_async_request(request)


@dataclass
class Site:
    """`ran` are the calls that reached a tool, `sent` what left the client."""

    verify: Verify
    registry: FakeRegistry
    tmp_path: Path
    ran: list[tuple[str, Any]] = field(default_factory=list)
    sent: list[httpx2.Request] = field(default_factory=list)
    redirect_to: str | None = None
    asynchronous: bool = False

    def server(self) -> MCPServer[Any]:
        server = MCPServer[Any]("calendar", log_level="WARNING")

        async def own(request: Request) -> Response:
            return Response(await request.body())

        server.custom_route("/own", methods=["POST"])(own)

        async def add_event(context: Context, name: str, title: str) -> str:
            self.ran.append(("add_event", (name, title, decision(context).decision_id)))
            return "added"

        def pay(payee: str, amount: dict[str, str]) -> str:
            self.ran.append(("pay", payee))
            return "paid"

        def wipe() -> str:
            self.ran.append(("wipe", None))
            return "wiped"

        def note() -> str:
            return "a secret note"

        for tool in (add_event, pay, wipe):
            server.add_tool(tool, structured_output=False)
        server.resource("note://all")(note)
        return server

    def protected(self, server: MCPServer[Any] | None = None) -> Protected:
        tools = {
            "add_event": ToolAction("write", "calendar/{name}"),
            "pay": ToolAction("transact", "payments", amount="amount"),
            "missing": ToolAction("write", "calendar/work"),
        }
        verifier = VerifierClient(URL, "sp", "secret", transport=httpx.MockTransport(self.verify))
        chosen: Verifier = Awaited(verifier) if self.asynchronous else verifier
        return Protected(server or self.server(), tools, endpoint_url=ENDPOINT, verifier=chosen)

    @asynccontextmanager
    async def http(
        self, *, signed: bool = False, prefix: str = "", **settings: Any
    ) -> AsyncIterator[httpx2.AsyncClient]:
        """An HTTP client at the protected application; `signed` as the fake registry's agent."""
        protected = self.protected()
        path = "/v1/mcp".removeprefix(prefix)
        app = protected.streamable_http_app(streamable_http_path=path, **settings)
        transport: httpx2.AsyncBaseTransport = httpx2.ASGITransport(app=app, root_path=prefix)
        if signed:
            agent = self.registry.client(self.tmp_path)
            transport = SigningTransport(agent, "sp", inner=Recording(transport, self))
        async with (
            protected.server.session_manager.run(),
            httpx2.AsyncClient(transport=transport) as client,
        ):
            yield client

    @asynccontextmanager
    async def session(
        self, *, era: str = "2026-07-28", person: Any = None, signed: bool = True
    ) -> AsyncIterator[Client]:
        """The official client; it signs as the agent of the fake registry."""
        async with self.http(signed=signed) as http:
            transport = streamable_http_client(ENDPOINT, http_client=http)
            async with Client(transport, mode=era, elicitation_callback=person) as client:
                yield client
