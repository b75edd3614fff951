"""Clients that keep calling through faults and record every answer with its times.

They do what docs/sdk.md says about clients whose answer was lost. After a lost answer the service
provider asks once more; half of its named calls carry its own idempotency key too, and it repeats
those until it knows the decision or gives up. If a server refuses the connection, it asks the other
one. The agent signs a new proof when a nonce is required, and when a retry finds its proof spent;
it retries a named call until that ends. Users and agents at the registry are in `people.py`.
"""

import base64
import http.client
import json
import random
import re
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from agentauth.protocol.dpop import make_proof
from tests.actors import Scene, may_pay
from tests.live import LiveServer

READ = {"type": "read", "resource": "calendar"}
PAY = may_pay("50.00")
# A client waits this long, then counts the answer as lost.
PATIENCE_SECONDS = 10
# As in `agentauth.sdk`, a question under the provider's own key is asked at most this often and
# this long after its first try, with a pause after each answer.
NAMED_TRIES, ASKS_FOR_SECONDS, PAUSE_SECONDS = 3, 12, 1
# After the load, for all operations together: far longer than a healthy system needs.
FINISH_SECONDS = 120
# A proof is valid for a minute either side of its `iat`; a little later no yes is possible.
PROOF_SECONDS = 70
# After the load, older proofs have expired and need not be replayed.
YOUNG_SECONDS = 60
# Envelope field → reason: the only refusals on a healthy system are those by the grant's own
# limits.
LIMITS = {
    "max_requests_per_minute": "rate",
    "budgets": "budget",
    "max_uses": "max_uses",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt. `status` is 0 if the answer was lost, -1 if the connection was refused."""

    began: float
    ended: float
    where: str
    kind: str
    status: int
    body: Mapping[str, Any]
    question: Mapping[str, Any]
    # Whether the service provider repeats this very question, and its own key for it.
    again: bool = False
    delivery: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def decided(self) -> bool:
        return self.status == 200

    @property
    def yes(self) -> bool:
        return self.decided and self.body.get("valid") is True

    @property
    def good(self) -> bool:
        return self.yes or (self.decided and self.body.get("reason") in LIMITS.values())


@dataclass
class Log:
    """Everything the clients were told."""

    answers: list[Answer] = field(default_factory=list)
    # The calls as their callers see them, over all attempts: (began, kind, came to a good end,
    # where).
    calls: list[tuple[float, str, bool, str]] = field(default_factory=list)
    # Deliberate replays: only a proof without an earlier yes may get a yes.
    replays: list[Answer] = field(default_factory=list)
    # Verifications with tokens of grants being revoked, and when each revocation began and was
    # acknowledged.
    watched: list[Answer] = field(default_factory=list)
    revoking: dict[str, float] = field(default_factory=dict)
    revoked: dict[str, float] = field(default_factory=dict)
    # Acknowledged by the registry: approved grants, and the jti of tokens.
    approved: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    # Every status of the registry's pages and API, with the request. Its callers only retry on an
    # error; this finds the defects among them.
    registry: list[tuple[str, int]] = field(default_factory=list)

    def keep(self, answer: httpx.Response) -> None:
        """Record an answer of the registry, with ids removed from its path."""
        path = re.sub("[0-9a-f]{8}-[0-9a-f-]{27}", "…", answer.request.url.path)
        self.registry.append((f"{answer.request.method} {path}", answer.status_code))


def ask(
    server: LiveServer,
    where: str,
    kind: str,
    place: Scene,
    question: Mapping[str, Any],
    *,
    delivery: str = "",
    again: bool = False,
) -> Answer:
    """Ask verify over a new connection. `delivery` is the service provider's idempotency key."""
    credentials = base64.b64encode(f"{place.client_id}:{place.client_secret}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
    if delivery:
        headers["Idempotency-Key"] = delivery
    began, status, body = time.monotonic(), -1, {}
    host = urlsplit(server.url).hostname or ""
    connection = http.client.HTTPConnection(host, server.port, timeout=PATIENCE_SECONDS)
    try:
        connection.connect()
        status = 0
        connection.request("POST", "/v1/verify", json.dumps(question), headers)
        answer = connection.getresponse()
        content = answer.read()
        status, body = answer.status, json.loads(content)
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return Answer(began, time.monotonic(), where, kind, status, body, question, again, delivery)


def request_of(server: LiveServer, place: Scene, question: Mapping[str, Any]) -> bytes:
    """The raw bytes of the question, for a test that writes to a socket."""
    credentials = base64.b64encode(f"{place.client_id}:{place.client_secret}".encode()).decode()
    body = json.dumps(question).encode()
    host = server.url.partition("//")[2]
    head = f"POST /v1/verify HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {credentials}\r\n"
    return (
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def question_of(
    place: Scene, token: str, action: Mapping[str, Any], nonce: str | None, key: str | None
) -> dict[str, Any]:
    url = f"{place.audience}/v1/payments"
    proof = make_proof(
        place.signer,
        method="POST",
        url=url,
        iat=int(time.time()),
        jti=secrets.token_urlsafe(16),
        access_token=token,
        nonce=nonce,
    )
    body = {"token": token, "method": "POST", "url": url, "proof": proof, "action": action}
    return body | ({"idempotency_key": key} if key else {})


@dataclass
class Agent:
    """One grant and its user, calling `per_second` times (0: only when told).

    With an `amount` it pays; `keyed` calls have an idempotency key, and are retried until they end.
    """

    kind: str
    place: Scene
    token: str
    per_second: float
    amount: str = ""
    keyed: bool = False
    nonce: str | None = None

    def action(self) -> Mapping[str, Any]:
        if not self.amount:
            return READ
        return {
            "type": "transact",
            "resource": "payments",
            "amount": {"value": self.amount, "currency": "EUR"},
        }


class Load:
    """Agents, a replayer, a revoker and further tasks, in threads, for the length of `with`."""

    def __init__(
        self,
        servers: Mapping[str, LiveServer],
        agents: list[Agent],
        victims: list[Agent],
        rng: random.Random,
        errands: Sequence[Callable[["Load"], None]] = (),
    ) -> None:
        self.log = Log()
        self.rng = rng
        self._servers = servers
        self._agents = agents
        self._victims = victims
        self._errands = errands
        # Agents whose revocation was tried.
        self._gone: list[Agent] = []
        # Named operations still undecided when the load ended.
        self._unfinished: list[tuple[Agent, str]] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def __enter__(self) -> Self:
        acts: list[Callable[[], None]] = [self._replay, self._revoke]
        acts += [partial(self._use, agent) for agent in self._agents if agent.per_second]
        acts += [partial(errand, self) for errand in self._errands]
        for act in acts:
            thread = threading.Thread(target=self._guarded, args=(act,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(3 * PATIENCE_SECONDS)
        if self.failures:
            raise self.failures[0]

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 — raised in the test when the load ends
            self.failures.append(error)

    def pause(self, seconds: float) -> bool:
        """Sleep until the time is over or the load ends; whether the load goes on."""
        return not self._stop.wait(seconds)

    def _use(self, agent: Agent) -> None:
        while self.pause(self.rng.expovariate(agent.per_second)):
            began = time.monotonic()
            where = self.rng.choice(["a", "b"])
            key = str(uuid.uuid4()) if agent.keyed else None
            good = self.call(agent, where, key).good
            self.log.calls.append((began, agent.kind, good, where))
            # A payment with an unknown outcome is retried under its key, at any server.
            while not good and agent.keyed and self.pause(0.3):
                good = self.call(agent, self.rng.choice(["a", "b", "drf"]), key).good
            if not good and key:
                self._unfinished.append((agent, key))

    def finish(self) -> list[str]:
        """After the load, retry each undecided named operation; returns those that still fail."""
        end, last = time.monotonic() + FINISH_SECONDS, list[str]()
        for agent, key in self._unfinished:
            while not (answer := self.call(agent, self.rng.choice(["a", "b", "drf"]), key)).good:
                if time.monotonic() > end:
                    last.append(f"{agent.kind} was told {answer.status} {answer.body} in the end")
                    break
                time.sleep(0.3)
        return last

    def call(self, agent: Agent, where: str, key: str | None) -> Answer:
        """What the caller learns in the end, over all attempts."""
        for _ in range(3):
            sent = agent.nonce
            answer = self._asked(
                agent, where, question_of(agent.place, agent.token, agent.action(), sent, key)
            )
            agent.nonce = answer.body.get("nonce") or agent.nonce
            wants_nonce = answer.body.get("error") == "use_dpop_nonce" and agent.nonce != sent
            is_spent = answer.again and answer.body.get("reason") == "replayed"
            if not wants_nonce and not is_spent:
                break
        return answer

    def _asked(self, agent: Agent, where: str, question: Mapping[str, Any]) -> Answer:
        """Ask once, and repeat if the answer was lost or, under a key, until it is decided."""
        # Both paths: without a key Redis alone decides light calls, with one a database row decides
        # first.
        delivery = str(uuid.uuid4()) if agent.keyed and self.rng.random() < 0.5 else ""
        end = time.monotonic() + ASKS_FOR_SECONDS
        tries = NAMED_TRIES if delivery else 2
        for tried in range(1, tries + 1):
            server, again = self._servers[where], tried > 1
            answer = ask(
                server, where, agent.kind, agent.place, question, delivery=delivery, again=again
            )
            self.log.answers.append(answer)
            if answer.decided or tried == tries or time.monotonic() > end:
                break
            if answer.status == -1:
                where = "b" if where == "a" else "a"
            elif delivery:
                # Its load balancer picks either server.
                where = self.rng.choice(["a", "b"])
            if answer.status > 0 and not (delivery and self.pause(PAUSE_SECONDS)):
                break
        return answer

    def _replay(self) -> None:
        """Replay the newest accepted proof or a random one, mostly at another server."""
        turn = 0
        while self.pause(0.1):
            young = time.monotonic() - PROOF_SECONDS
            taken = [each for each in self.log.answers[-4000:] if each.yes and each.began > young]
            if not taken:
                continue
            turn += 1
            # The newest and a random one in turn.
            answer = taken[-1] if turn % 2 else self.rng.choice(taken)
            agent = next(each for each in self._agents if each.kind == answer.kind)
            others = [each for each in self._servers.items() if turn % 4 or each[0] != answer.where]
            where, server = self.rng.choice(others)
            again = ask(server, where, answer.kind, agent.place, answer.question)
            self.log.replays.append(again)

    def replay_all(self) -> None:
        """After the load, replay every young proof, if accepted or the answer was lost or 503."""
        places = {agent.kind: agent.place for agent in self._agents}
        places |= {victim.place.grant_id: victim.place for victim in self._victims}
        young = time.monotonic() - YOUNG_SECONDS
        tried = [*self.log.answers, *self.log.watched]
        spent = [
            each for each in tried if each.began > young and (each.yes or each.status in {0, 503})
        ]
        once = {each.question["proof"]: each for each in spent}.values()

        def again(each: Answer) -> Answer:
            where = self.rng.choice(list(self._servers))
            return ask(self._servers[where], where, each.kind, places[each.kind], each.question)

        with ThreadPoolExecutor(8) as pool:
            self.log.replays += pool.map(again, once)

    def _revoke(self) -> None:
        """Revoke one grant after another, verifying with its token before, during and after."""
        for victim in self._victims:
            if not self.pause(0.5):
                return
            self._watch(victim, 0.7)
            self.log.revoking[victim.place.grant_id] = time.monotonic()
            if (acknowledged := self._revoked(victim)) is not None:
                self.log.revoked[victim.place.grant_id] = acknowledged
            self._watch(victim, 2.5)
            self._gone.append(victim)
        # A fault may outlast the time for which a verifier trusts what it last read.
        while self._gone and self.pause(0.1):
            self._ask_about(self.rng.choice(self._gone))

    def _revoked(self, victim: Agent) -> float | None:
        try:
            answer = victim.place.api("POST", f"/v1/grants/{victim.place.grant_id}/revoke", {})
        except Exception:  # noqa: BLE001 — whatever happened, nothing was acknowledged
            return None
        self.log.keep(answer)
        return time.monotonic() if answer.status_code == 204 else None

    def _watch(self, victim: Agent, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.pause(0.05):
            self._ask_about(self.rng.choice([victim, victim, *self._gone[-1:]]))

    def _ask_about(self, victim: Agent) -> None:
        where = self.rng.choice(["a", "b", "drf"])
        question = question_of(victim.place, victim.token, victim.action(), victim.nonce, None)
        answer = ask(self._servers[where], where, victim.place.grant_id, victim.place, question)
        victim.nonce = answer.body.get("nonce") or victim.nonce
        self.log.watched.append(answer)
