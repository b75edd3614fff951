"""Agents and service providers built on the SDK alone, which call all the time and record each
outcome.

An agent's call goes through `AgentAuthClient.call` to a provider in this process, which asks with
`VerifierClient`. The only retries are those the SDK makes and documents. A call they do not bring
to a good end has failed.
"""

import asyncio
import contextlib
import random
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx

from agentauth import AgentAuthClient
from agentauth.protocol.capability import Action
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from agentauth.protocol.keys import PrivateKey
from agentauth.protocol.money import Money
from agentauth.sdk import Allowed, RefusedError, VerifierClient
from agentauth.sdk.identity import Identity
from agentauth.sdk.key_file import KeyFile
from agentauth.sdk.refusal_responses import answer_for
from tests.actors import Scene

READ = Action("read", "calendar")
PAY = Action("transact", "payments", amount=Money.parse({"value": "1.00", "currency": "EUR"}))
# After so many calls an agent gets a new token, and a provider new connections, which may reach
# another server.
CALLS_PER_TOKEN, CALLS_PER_CONNECTION = 12, 10
# Once a revocation is acknowledged, a verification that begins more than this later must refuse.
BOUND_SECONDS = 1.0
_TLS = httpx.create_ssl_context()


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as its caller sees it. `trouble` is its last error; empty if it succeeded."""

    kind: str
    began: float
    ended: float
    trouble: str = ""


@dataclass
class Record:
    """Everything callers were told. `wrong`: broken promises, one sentence each."""

    calls: list[Call] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    # Acted on: payments, and light decisions, which Redis may lose with its last second.
    decisions: set[str] = field(default_factory=set)
    light: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    # Accepted proofs to replay, newest last, with the audience they were made for.
    spent: deque[tuple[float, "Provider", str, str, str]] = field(
        default_factory=lambda: deque(maxlen=400)
    )
    replays: Counter[str] = field(default_factory=Counter)

    def between(self, since: float, to: float) -> list[Call]:
        return [call for call in self.calls if since <= call.began < to]


class Provider:
    """A service provider: asks verify, acts once per call, handles refusals as the SDK says."""

    def __init__(self, place: Scene, verify_url: str, record: Record) -> None:
        self.place, self.record = place, record
        self.client = VerifierClient(verify_url, place.client_id, place.client_secret)
        self._asked = 0
        # Agent's idempotency key → the decision that was acted on.
        self.done: dict[str, str] = {}
        # The agent's owner as this provider knows them (`sub` of verify).
        self._subject = ""

    def answer(self, request: httpx.Request) -> httpx.Response:
        self._asked += 1
        if self._asked % CALLS_PER_CONNECTION == 0:
            self.client.close()
        token = request.headers["Authorization"].removeprefix("DPoP ")
        proof = request.headers["DPoP"]
        key = request.headers.get("Idempotency-Key")
        url = str(request.url)
        try:
            allowed = self.client.verify(
                token=token,
                proof=proof,
                method=request.method,
                url=url,
                action=READ if key is None else PAY,
                idempotency_key=key,
            )
        except AgentAuthError as error:
            told = answer_for(error)
            return httpx.Response(told.status, headers=dict(told.headers), content=told.body)
        self.record.spent.append((time.monotonic(), self, token, proof, url))
        return self._acted(allowed, key)

    def _acted(self, allowed: Allowed, key: str | None) -> httpx.Response:
        acted = self.record.light if key is None else self.record.decisions
        acted.add(allowed.decision_id)
        self._subject = self._subject or allowed.subject
        if allowed.subject != self._subject:
            self.record.wrong.append("a person has two identities at one provider")
        headers = {} if allowed.nonce is None else {"DPoP-Nonce": allowed.nonce}
        if key is not None:
            before = self.done.get(key)
            if before is not None and not allowed.repeated:
                self.record.wrong.append(
                    f"one operation, told to act twice: {before}, {allowed.decision_id}"
                )
            # Allowed earlier but never carried out: do it now.
            self.done.setdefault(key, allowed.decision_id)
        return httpx.Response(200, headers=headers, json={"decision_id": allowed.decision_id})


class Wires(httpx.AsyncBaseTransport):
    """Routes calls to the providers in this process, and all others over the network."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = providers

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        provider = self._providers.get(request.url.path.split("/")[1])
        if provider is not None:
            await request.aread()
            return await asyncio.to_thread(provider.answer, request)
        async with httpx.AsyncHTTPTransport(verify=_TLS) as network:
            answer = await network.handle_async_request(request)
            await answer.aread()
            return answer


def client_of(
    place: Scene, pem: str, registry_url: str, directory: Path, wires: Wires
) -> AgentAuthClient:
    """The SDK's client of an agent that is already registered, with its key."""
    path = directory / f"{place.agent_id}.json"
    key = PrivateKey.from_pem(pem.encode())
    KeyFile(path).create(Identity(registry_url, key, agent_id=place.agent_id))
    client = AgentAuthClient(registry_url, key_file=path)
    # The SDK's seam for tests.
    client._registry.transport = wires
    return client


@dataclass
class Caller:
    """An agent that reads, or pays, at a fixed rate."""

    kind: str
    client: AgentAuthClient
    place: Scene
    per_second: float

    async def call(self) -> str:
        """Make one call; returns its last error, empty for none."""
        path = urlsplit(self.place.audience).path
        if self.kind == "payment":
            answer = await self.client.call(
                self.place.client_id,
                "POST",
                f"{path}/payments",
                json={},
                idempotency_key=str(uuid.uuid4()),
            )
        else:
            answer = await self.client.call(self.place.client_id, "GET", f"{path}/calendar")
        return "" if answer.status_code == httpx.codes.OK else f"{answer.status_code} {answer.text}"


class Load:
    """Callers, a replayer and a revoker in one thread with its own event loop, for the length of
    `with`.

    `endpoints` names the current servers; what must be refused everywhere is sent to each of them,
    tokens of a revoked grant from `bound` seconds after the acknowledgement on. A proof is replayed
    at all of them every `replay_every` seconds.
    """

    def __init__(
        self,
        callers: Sequence[tuple[Caller, Provider]],
        victims: Sequence[tuple[Caller, Provider]],
        endpoints: Callable[[], Mapping[str, str]],
        record: Record,
        rng: random.Random,
        *,
        bound: float = BOUND_SECONDS,
        replay_every: float = 0.1,
    ) -> None:
        self._bound = bound
        self._replay_every = replay_every
        self._callers, self._victims, self._endpoints = callers, list(victims), endpoints
        self._providers = [provider for _, provider in (*callers, *victims)]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._newcomers: list[asyncio.Task[None]] = []
        self.record, self._rng = record, rng
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._failure: BaseException | None = None
        # Revoked grants: (when, provider, a token that was good).
        self._gone: list[tuple[float, Provider, str]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "callers did not come to their end"
        for provider in self._providers:
            provider.client.close()
        self.check()

    def check(self) -> None:
        """Raises what ended the load early."""
        if self._failure is not None:
            raise self._failure

    def add(self, caller: Caller, provider: Provider) -> None:
        """Add a caller to the running load."""
        self._providers.append(provider)
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._join(caller), self._loop).result(30)

    async def _join(self, caller: Caller) -> None:
        self._newcomers.append(asyncio.create_task(self._use(caller)))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        acts = [
            self._replay(),
            self._ask_about_gone(),
            *(self._use(caller) for caller, _ in self._callers),
        ]
        try:
            await asyncio.gather(*acts)
            await asyncio.gather(*self._newcomers)
        except BaseException as error:  # noqa: BLE001 — raised in the test when the load ends
            self._failure = error

    async def _pause(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return not self._stopping.is_set() and self._failure is None

    async def _use(self, caller: Caller) -> None:
        made = 0
        while await self._pause(self._rng.expovariate(caller.per_second)):
            made += 1
            if made % CALLS_PER_TOKEN == 0:
                caller.client.forget_tokens(caller.place.client_id)
                await self._told("token", lambda: self._token(caller.client, caller.place))
            await self._told(caller.kind, caller.call)

    async def _token(self, client: AgentAuthClient, place: Scene) -> str:
        await client.get_token(place.client_id)
        return ""

    async def _told(self, kind: str, act: Callable[[], Awaitable[str]]) -> None:
        began = time.monotonic()
        try:
            trouble = await act()
        except AgentAuthError as error:
            trouble = f"{type(error).__name__}: {error}"
        self.record.calls.append(Call(kind, began, time.monotonic(), trouble))

    async def _replay(self) -> None:
        """Replay an accepted proof at each server of either version in turn."""
        turn = 0
        while await self._pause(self._replay_every):
            if not self.record.spent:
                continue
            turn += 1
            _, provider, token, proof, url = (
                self.record.spent[-1] if turn % 2 else self._rng.choice(self.record.spent)
            )
            method = "POST" if url.endswith("/payments") else "GET"
            for name, endpoint in self._endpoints().items():
                accepted = await asyncio.to_thread(
                    _accepts, endpoint, provider, token, proof, method, url
                )
                self.record.replays[name] += 1
                if accepted:
                    self.record.wrong.append(f"a spent proof passed at {name}")

    async def revoke_one(self) -> None:
        """An agent gives up its grant; from then on its token is tried everywhere."""
        caller, provider = self._victims.pop()
        await self._told("revocation", lambda: self._revoked(caller.client, provider))

    async def _revoked(self, client: AgentAuthClient, provider: Provider) -> str:
        token = await client.get_token(provider.place.client_id)
        await client.revoke_grant(provider.place.grant_id)
        self.record.revoked.add(provider.place.grant_id)
        self._gone.append((time.monotonic(), provider, token))
        return ""

    async def _ask_about_gone(self) -> None:
        while await self._pause(1.5):
            if self._victims:
                await self.revoke_one()
            for since, provider, token in self._gone[-3:]:
                for name, endpoint in self._endpoints().items():
                    await asyncio.sleep(max(0.0, since + self._bound - time.monotonic()))
                    url = f"{provider.place.audience}/calendar"
                    proof = make_proof(
                        provider.place.signer, method="GET", url=url, iat=int(time.time()),
                        jti=uuid.uuid4().hex, access_token=token,
                    )  # fmt: skip
                    if await asyncio.to_thread(
                        _accepts, endpoint, provider, token, proof, "GET", url
                    ):
                        self.record.wrong.append(f"a revoked grant's token passed at {name}")
                    self.record.replays[f"revoked, at {name}"] += 1


def _accepts(
    endpoint: str, provider: Provider, token: str, proof: str, method: str, url: str
) -> bool:
    """Whether this server says yes; one that is being stopped may not answer."""
    place = provider.place
    with (
        VerifierClient(endpoint, place.client_id, place.client_secret) as client,
        contextlib.suppress(RefusedError, TemporarilyUnavailableError),
    ):
        client.verify(token=token, proof=proof, method=method, url=url, action=READ)
        return True
    return False
