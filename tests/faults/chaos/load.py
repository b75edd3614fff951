"""Who calls during a cell: agents and providers on the SDK, and probes that ask once, unretried."""

import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from tests.actors import Scene, may_pay, seeded
from tests.faults.callers import Caller, Provider, Record, Wires, client_of
from tests.faults.chaos.system import System

READ = {"type": "read", "resource": "calendar"}
ONE = {"type": "transact", "resource": "payments", "amount": {"value": "1.00", "currency": "EUR"}}
PAY = may_pay("50.00")
PAYING = {"budgets": [{"value": "1000000.00", "currency": "EUR", "period": "day", "zone": "UTC"}]}
# Kind → capability, limits, number of agents, calls a second of each.
ROLES: dict[str, tuple[dict[str, Any], dict[str, Any], int, float]] = {
    "light": (READ, {}, 2, 6.0),
    "payment": (PAY, PAYING, 2, 4.0),
}
# A probe waits no longer for its answer.
PATIENCE_SECONDS = 10
IN_A_ROW = 8
# What a caller may be told while something is broken.
EXPECTED = {503, 429}


class Company:
    """Agents with approved grants and their service providers, which ask through nginx."""

    def __init__(self, held: System, record: Record) -> None:
        self.held, self.record = held, record
        self.providers: dict[str, Provider] = {}

    def make(self, *kinds: str) -> list[tuple[Caller, Provider]]:
        wishes = [{"capabilities": [ROLES[kind][0]], "envelope": ROLES[kind][1]} for kind in kinds]
        told = seeded(self.held.commands, "scenes", wishes)
        return [self._made(kind, **each) for kind, each in zip(kinds, told, strict=True)]

    def _made(self, kind: str, *, agent_pem: str, **told: str) -> tuple[Caller, Provider]:
        place = place_of(self.held, agent_pem, told)
        provider = Provider(place, self.held.url, self.record)
        self.providers[place.audience.rpartition("/")[2]] = provider
        wires = Wires(self.providers)
        client = client_of(place, agent_pem, self.held.url, self.held.directory, wires)
        return Caller(kind, client, place, ROLES[kind][3]), provider


def place_of(held: System, agent_pem: str, told: dict[str, str]) -> Scene:
    signer = LocalSigner(PrivateKey.from_pem(agent_pem.encode()))
    return Scene(registry=held.web, signer=signer, **told)


@dataclass
class Probe:
    """One kind of call, made again and again without a retry."""

    name: str
    ask: Callable[[httpx.Client], str]
    every: float = 0.15
    # When each began and ended, and what it was told; empty for what it should be.
    answers: list[tuple[float, float, str]] = field(default_factory=list)

    def gap(self, since: float, to: float) -> float:
        """The longest time without a good answer: over a second, or with another answer in it."""
        good = [since, *sorted(e for _, e, told in self.answers if not told and since <= e <= to)]
        bad = [began for began, _, told in self.answers if told]
        spans = zip(good, [*good[1:], to], strict=True)
        return max(
            (
                end - began
                for began, end in spans
                if end - began > 1 or any(began <= each <= end for each in bad)
            ),
            default=0.0,
        )

    def normal_at(self, since: float) -> float | None:
        """When the first of IN_A_ROW good answers began; None so far."""
        later = sorted(each for each in self.answers if each[0] >= since)
        for first in range(len(later) - IN_A_ROW + 1):
            if not any(told for _, _, told in later[first : first + IN_A_ROW]):
                return later[first][0]
        return None

    def odd(self, since: float) -> set[str]:
        """What no caller should be told, whatever is broken."""
        return {
            f"{self.name}: {told}"
            for began, _, told in self.answers
            if told and began >= since and told not in {*map(str, EXPECTED), "no answer"}
        }


class Probes:
    """The four kinds, each in a thread of its own, for the length of `with`."""

    def __init__(self, held: System) -> None:
        self.held = held
        wishes = [
            {"capabilities": [what], "envelope": limits} for what, limits, *_ in ROLES.values()
        ]
        made = seeded(held.commands, "scenes", wishes)
        self._places = [place_of(held, each.pop("agent_pem"), each) for each in made]
        self._tokens = [place.token() for place in self._places]
        self._nonces: dict[str, str | None] = {}
        light, paying = (0, READ), (1, ONE)
        self.kinds = [
            Probe("verify", lambda client: self._verified(client, *light)),
            Probe("pay", lambda client: self._verified(client, *paying)),
            Probe("token", self._token, every=0.4),
            Probe("page", self._page, every=0.4),
        ]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in self.kinds]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(30)

    def _run(self, probe: Probe) -> None:
        # A new connection for each call.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(timeout=PATIENCE_SECONDS, limits=limits) as client:
            while not self._stop.wait(probe.every):
                began = time.monotonic()
                try:
                    told = probe.ask(client)
                except httpx.TransportError:
                    told = "no answer"
                probe.answers.append((began, time.monotonic(), told))

    def _verified(self, client: httpx.Client, number: int, action: dict[str, Any]) -> str:
        place = self._places[number]
        for _ in range(3):
            nonce = self._nonces.get(place.grant_id)
            proof = place.proof(self._tokens[number], nonce=nonce)
            question = place.question(self._tokens[number], action, proof=proof)
            if action is ONE:
                question["idempotency_key"] = str(uuid.uuid4())
            answer = client.post(
                f"{self.held.url}/v1/verify", json=question,
                auth=(place.client_id, place.client_secret),
            )  # fmt: skip
            if answer.status_code != httpx.codes.OK:
                return _status(answer)
            told = answer.json()
            self._nonces[place.grant_id] = told.get("nonce") or nonce
            if told.get("error") != "use_dpop_nonce":
                break
        return "" if told["valid"] is True else str(told.get("reason") or told["error"])

    def _token(self, client: httpx.Client) -> str:
        place, url = self._places[0], f"{self.held.url}/v1/tokens"
        body = json.dumps({"grant_id": place.grant_id}).encode()
        proof = make_proof(
            place.signer, method="POST", url=url, iat=int(time.time()),
            jti=secrets.token_urlsafe(16), body=body,
        )  # fmt: skip
        headers = {"DPoP": proof, "Content-Type": "application/json"}
        answer = client.post(url, content=body, headers=headers)
        return "" if answer.status_code == httpx.codes.CREATED else _status(answer)

    def _page(self, client: httpx.Client) -> str:
        answer = client.get(f"{self.held.url}/sign-in/?{secrets.token_hex(2)}")
        return "" if answer.is_success else _status(answer)


def _status(answer: httpx.Response) -> str:
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and "Retry-After" in answer.headers:
        return "503"
    if answer.status_code in EXPECTED - {503}:
        return str(answer.status_code)
    return f"{answer.status_code} {answer.text[:80]}"
