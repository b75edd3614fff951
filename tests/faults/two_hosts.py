"""Two verifier hosts on two sides of a network, one Redis Cluster over both, and a partition.

Left: host `one` with a verifier, `data` with PostgreSQL, web and jobs, `third`. Right: host `two`
with a verifier. The cluster has a primary on `one`, `two` and `third`, and a replica of each on
another host; two of the three primaries, and so the majority, are on the left.
"""

import contextlib
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests import postgres, redis_servers
from tests.actors import Scene, scenes
from tests.faults.cast import budget
from tests.faults.clients import PAY, READ, Answer, ask, question_of
from tests.faults.namespaces import Network
from tests.faults.stage import Jobs
from tests.live import ROOT, LiveRegistry, LiveVerifier
from tests.waiting import until

SIDES = (("one", "data", "third"), ("two",))
# Primary → where its replica is.
REPLICAS = {"one": "two", "two": "data", "third": "two"}
NODE_TIMEOUT_MS = 2000
# Payments of 1.00 that the grant allows in sum.
CAP = 40
LIGHT_GRANTS = 8
# Calls a second of each host, by kind: the limit is reached only after the partition.
PER_SECOND = {"light": 10.0, "pay": 1.0}
PARTITION_SECONDS = 20
ONE = {"type": "transact", "resource": "payments", "amount": {"value": "1.00", "currency": "EUR"}}


class Node(redis_servers.Server):
    """A cluster node that listens on its host's network."""

    def __init__(self, directory: Path, address: str) -> None:
        directory.mkdir()
        self.address = address
        super().__init__(
            "redis-server", directory,
            {
                "bind": "0.0.0.0", "protected-mode": "no",
                "cluster-enabled": "yes", "cluster-node-timeout": str(NODE_TIMEOUT_MS),
                "cluster-port": str(postgres.free_port()),
            },
        )  # fmt: skip


@dataclass
class Hosts:
    """The running system. `nodes`: (host, whether a primary) → its node of the cluster."""

    network: Network
    directory: Path
    database: postgres.Server
    nodes: dict[tuple[str, bool], Node] = field(default_factory=dict)
    verifiers: dict[str, LiveVerifier] = field(default_factory=dict)

    def make_cluster(self) -> None:
        placed = [(host, True, host) for host in REPLICAS]
        placed += [(host, False, primary) for primary, host in REPLICAS.items()]
        for host, first, of in placed:
            node = Node(self.directory / f"redis-{of}-{first}", self.network.address(host))
            with self.network.inside(host):
                node.start()
            self.nodes[of, first] = node
        primaries = [self.nodes[host, True] for host in REPLICAS]
        for number, host in enumerate(REPLICAS):
            low, high = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            self._tell(host, True, "CLUSTER ADDSLOTSRANGE", low, high)
            self._tell(host, True, "CLUSTER SET-CONFIG-EPOCH", number + 1)
        for of, first in self.nodes:
            if (of, first) != ("one", True):
                self._tell(of, first, "CLUSTER MEET", primaries[0].address, primaries[0].port,
                           primaries[0].config["cluster-port"])  # fmt: skip
        until(lambda: self._known() == {6}, "the nodes do not find each other", 30)
        for of in REPLICAS:
            with self._client(of, True) as primary:
                name = primary.execute_command("CLUSTER MYID").decode()
            until(lambda of=of, name=name: self._follows(of, name), "no replica", 30)  # type: ignore[misc]
        until(self.is_whole, "the cluster is not whole", 30)

    def _follows(self, of: str, name: str) -> bool:
        with contextlib.suppress(redis.ResponseError):
            self._tell(of, False, "CLUSTER REPLICATE", name)
        with self._client(of, False) as client:
            return bool(client.info("replication").get("master_link_status") == "up")

    def _known(self) -> set[int]:
        return {
            int(self._tell(of, first, "CLUSTER INFO")["cluster_known_nodes"])
            for of, first in self.nodes
        }

    def is_whole(self) -> bool:
        return all(
            self._tell(of, first, "CLUSTER INFO")["cluster_state"] == "ok"
            for of, first in self.nodes
        )

    def _where(self, of: str, first: bool) -> str:
        return of if first else REPLICAS[of]

    @contextlib.contextmanager
    def _client(self, of: str, first: bool) -> Iterator[Any]:
        with self.network.inside(self._where(of, first)), self.nodes[of, first].client() as client:
            yield client

    def _tell(self, of: str, first: bool, *command: object) -> Any:
        with self._client(of, first) as client:
            return client.execute_command(*command)

    @property
    def redis_url(self) -> str:
        named = [f"{node.address}:{node.port}" for node in self.nodes.values()]
        return "redis://" + ",".join(named)

    def start(self) -> None:
        """PostgreSQL, web and jobs on `data`, a verifier on each of the two hosts."""
        address = self.network.address("data")
        with self.network.inside("data"):
            env = {"REDIS_URL": self.redis_url}
            self.registry = LiveRegistry(
                self.directory, database_url=self.database.url, workers=2, env=env
            )
            self.registry.prepare()
            role = self.registry.verifier_role()
            self.jobs = Jobs(self.registry)
            for server in (self.registry, self.jobs):
                server.launch()
        for host in ("one", "two"):
            far = f"postgres://{role}:p@{address}:{self.database.port}/{postgres.ROLE}"
            made = LiveVerifier(
                self.registry, redis_url=self.redis_url, workers=1, env={"DATABASE_URL": far}
            )
            self.verifiers[host] = made
            with self.network.inside(host):
                made.launch()
        with self.network.inside("data"):
            self.registry.wait_until_ready()
        for host, verifier in self.verifiers.items():
            with self.network.inside(host):
                verifier.wait_until_ready()
        until(self.is_decided_in_redis, "no epoch begins in Redis")
        time.sleep(1.5)

    def is_decided_in_redis(self) -> bool:
        query = "SELECT kind = 'redis' AND leaving_at IS NULL FROM verifier_home"
        return self.say(query) == "t"

    def say(self, query: str) -> str:
        with self.network.inside("data"):
            return self.database.say(query)

    def scenes(self, wishes: list[dict[str, Any]]) -> list[tuple[Scene, str]]:
        """Approved grants, each with a token."""
        with self.network.inside("data"):
            return [(place, place.token()) for place in scenes(self.registry, wishes)]

    def stop(self) -> None:
        for server in (*self.verifiers.values(), getattr(self, "jobs", None),
                       getattr(self, "registry", None)):  # fmt: skip
            if server:
                server.stop()
        for node in self.nodes.values():
            node.kill()


@contextlib.contextmanager
def hosts(directory: Path) -> Iterator[Hosts]:
    """Everything running, and whole."""
    with Network(SIDES) as network:
        address = network.address("data")
        place = directory / "postgres"
        place.mkdir()
        settings = f"-c listen_addresses=127.0.0.1,{address}"
        database = postgres.Server(place, settings=settings)
        made = Hosts(network, directory, database)
        try:
            with network.inside("data"):
                database.make()
                with (database.data / "pg_hba.conf").open("a") as rules:
                    rules.write("host all all 10.77.0.0/24 trust\n")
                database.say("SELECT pg_reload_conf()")
            made.make_cluster()
            made.start()
            yield made
        finally:
            made.stop()
            with network.inside("data"):
                database.stop()


class Calls:
    """Calls at one host, from that host: light ones and payments, for the length of `with`."""

    def __init__(
        self, held: Hosts, host: str, light: list[tuple[Scene, str]], payer: tuple[Scene, str]
    ) -> None:
        self.held, self.host, self.light, self.payer = held, host, light, payer
        self.answers: list[Answer] = []
        self._nonces: dict[str, str | None] = {}
        self._stop = threading.Event()
        self._rng = random.Random(host)
        self._threads = [
            threading.Thread(target=self._run, args=(kind,), daemon=True) for kind in PER_SECOND
        ]

    def start(self) -> None:
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        self._stop.set()
        for each in self._threads:
            each.join(30)

    def _run(self, kind: str) -> None:
        with self.held.network.inside(self.host):
            while not self._stop.wait(1 / PER_SECOND[kind]):
                place, token = self.payer if kind == "pay" else self._rng.choice(self.light)
                self.call(kind, place, token)

    def is_at_the_limit(self) -> bool:
        paid = [each for each in list(self.answers) if each.kind == "pay"]
        return bool(paid) and paid[-1].body.get("reason") == "budget"

    def call(self, kind: str, place: Scene, token: str) -> Answer:
        """One call, and once more with the nonce if one is wanted."""
        for _ in range(2):
            nonce = self._nonces.get(place.grant_id)
            key = str(uuid.uuid4()) if kind == "pay" else None
            question = question_of(place, token, READ if key is None else ONE, nonce, key)
            answer = ask(self.held.verifiers[self.host], self.host, kind, place, question)
            self.answers.append(answer)
            self._nonces[place.grant_id] = answer.body.get("nonce") or nonce
            if answer.body.get("error") != "use_dpop_nonce":
                break
        return answer


def again(held: Hosts, host: str, places: Mapping[str, Scene], spent: list[Answer]) -> list[Answer]:
    """Ask the same questions at that host."""
    with held.network.inside(host):
        return [
            ask(held.verifiers[host], host, each.kind, places[each.question["token"]],
                each.question)
            for each in spent
        ]  # fmt: skip


@dataclass
class Rehearsal:
    """What the partition showed; times in seconds since the cut, or since it healed."""

    answers: dict[str, list[Answer]]
    replays: list[Answer]
    cut: float
    healed: float
    back: dict[str, float]
    left_good: float
    verified: str

    def between(self, host: str, since: float, to: float) -> list[Answer]:
        return [each for each in self.answers[host] if since <= each.began and each.ended <= to]

    def last_yes(self, host: str) -> float:
        """When that host last said yes during the partition, in seconds since the cut."""
        cut = [each.ended - self.cut for each in self.between(host, self.cut, self.healed)
               if each.yes]  # fmt: skip
        return max(cut, default=0.0)

    @property
    def payments(self) -> Counter[str]:
        """Accepted payments of 1.00 by host."""
        return Counter(
            host for host, told in self.answers.items() for each in told
            if each.yes and each.kind == "pay"
        )  # fmt: skip

    @property
    def accepted_twice(self) -> list[str]:
        yes = [each for told in (*self.answers.values(), self.replays) for each in told if each.yes]
        return [proof for proof, n in Counter(e.question["proof"] for e in yes).items() if n > 1]

    def lines(self) -> list[str]:
        seconds = self.healed - self.cut
        said = {host: Counter(e.status for e in self.between(host, self.cut, self.healed))
                for host in self.answers}  # fmt: skip
        spread = ", ".join(
            f"{host}: " + ", ".join(f"{n} × {status}" for status, n in sorted(told.items()))
            for host, told in said.items()
        )
        passed = sum(each.yes for each in self.replays)
        one, two = self.back["one"], self.back["two"]
        paid = " and ".join(f"{n} × 1.00 at `{host}`" for host, n in self.payments.items())
        return [
            (f"A partition of {seconds:.0f} s cut host `two` off from PostgreSQL, from host `one` "
            "and from two of the three Redis primaries, under calls to both."),
            f"Answers meanwhile, by status: {spread}.",
            (f"Host `one` was well {self.left_good:.1f} s after the cut: by then the replica on "
            "its side was promoted."),
            (f"Host `two` said its last yes {self.last_yes('two'):.1f} s after the cut, and then "
            "503."),
            (f"Once the network was back, `one` was well within {one:.1f} s, `two` within "
            f"{two:.1f} s."),
            (f"Accepted proofs sent to the other host, meanwhile and afterwards: "
            f"{len(self.replays)}; accepted again: {passed}."),
            f"Of a limit of {CAP}.00: {paid}.",
            f"verify_audit afterwards: {self.verified}.",
        ]  # fmt: skip


def rehearse(held: Hosts, *, seconds: float) -> Rehearsal:
    """Calls at both hosts, a partition of so many seconds, and the calls that follow it."""
    paying = {"capabilities": [PAY], "envelope": {"budgets": [budget(f"{CAP}.00", "total")]}}
    reading = {"capabilities": [READ], "envelope": {}}
    payer, *light = held.scenes([paying, *[reading] * LIGHT_GRANTS])
    places = {token: place for place, token in (payer, *light)}
    callers = {host: Calls(held, host, light, payer) for host in held.verifiers}
    replays: list[Answer] = []
    for each in callers.values():
        each.start()
    try:
        time.sleep(1)
        held.network.cut()
        cut = time.monotonic()
        left_good = _well_from(callers["one"], cut, cut + seconds)
        time.sleep(max(0.0, cut + seconds / 2 - time.monotonic()))
        replays += _cross(held, callers, places)
        time.sleep(max(0.0, cut + seconds - time.monotonic()))
        healed = time.monotonic()
        held.network.join()
        back = {host: _well_from(each, healed, healed + 60) for host, each in callers.items()}
        # The rest of the limit.
        until(lambda: all(each.is_at_the_limit() for each in callers.values()), "no end", 60)
    finally:
        held.network.join()
        for each in callers.values():
            each.stop()
    replays += _cross(held, callers, places)
    until(held.is_whole, "the cluster does not heal", 60)
    answers = {host: each.answers for host, each in callers.items()}
    return Rehearsal(answers, replays, cut, healed, back, left_good, _verified(held))


def _cross(held: Hosts, callers: Mapping[str, Calls], places: Mapping[str, Scene]) -> list[Answer]:
    """Replay what each host accepted lately at the other one."""
    found = []
    for host, other in (("one", "two"), ("two", "one")):
        spent = [each for each in callers[host].answers[-400:] if each.yes]
        found += again(held, other, places, spent[-60:])
    return found


def _well_from(calls: Calls, since: float, to: float) -> float:
    """Seconds until the first of ten light answers in a row that are all yes."""
    while time.monotonic() < to:
        light = [e for e in list(calls.answers) if e.kind == "light" and e.began >= since]
        light = [e for e in light if e.body.get("error") != "use_dpop_nonce"]
        last_bad = max((n for n, e in enumerate(light) if not e.yes), default=-1)
        if len(light) - last_bad > 10 and (last_bad >= 0 or time.monotonic() > since + 5):
            return light[last_bad + 1].began - since if last_bad >= 0 else 0.0
        time.sleep(0.2)
    return to - since


def _verified(held: Hosts) -> str:
    state = str(held.directory / "audit-verified.json")
    command = [sys.executable, "manage.py", "verify_audit", "--state", state]
    with held.network.inside("data"):
        done = subprocess.run(
            command, cwd=ROOT, env=held.registry.env, capture_output=True, text=True, check=False
        )
    return "whole" if done.returncode == 0 else " ".join((done.stdout + done.stderr).split())
