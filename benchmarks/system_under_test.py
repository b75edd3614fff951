"""Starts what is measured: databases, Redis, registry, verifier, jobs, and a crowd of agents."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import cpu_time
from benchmarks.cpu_time import cpu_seconds, parent_of
from benchmarks.load_generation import Crowd
from tests import postgres, redis_servers
from tests.actors import seeded
from tests.live import ROOT, LiveRegistry, LiveServer, LiveVerifier

WORKERS = 2
# As installed: no shortcuts for tests, and the abuse limits far away but counting.
ENV = {"AGENTAUTH_TESTING": "0", "FAULT_AT": "", "SERVICE_PROVIDER_CALLS_PER_MINUTE": "100000000"}
# A token is valid for 900 s; a run with its warm-up takes one or two minutes.
TOKENS_SECONDS = 600


@dataclass
class MeasuredSystem:
    """A server to measure, the registry behind it, and the processes whose CPU counts, by name."""

    server: LiveServer
    registry: LiveRegistry
    directory: Path
    others: Mapping[str, int]
    crowd: dict[str, Any] = field(default_factory=dict)
    # Whether benchmarks/many_agents.py created the agents, and creates their tokens.
    bulk: bool = False
    # How many calls were signed so far.
    calls: int = 0
    tokens: list[str] = field(default_factory=list)
    tokens_at: float = 0.0

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of each group, the server itself first."""
        assert self.server.process
        return cpu_seconds({"server": self.server.process.pid, **self.others})

    def restart(self) -> None:
        """Restart the server, so that its processes' caches are empty."""
        self.server.stop()
        self.server.start()

    def people(self) -> Crowd:
        """The crowd, with tokens that outlive a run."""
        made = self.crowd["agents"]
        if not self.tokens or time.monotonic() - self.tokens_at > TOKENS_SECONDS:
            module = "benchmarks.many_agents" if self.bulk else "tests.seed"
            self.tokens = self.registry.act(module, "tokens", [agent["grant_id"] for agent in made])
            self.tokens_at = time.monotonic()
        pairs = zip((agent["agent_pem"] for agent in made), self.tokens, strict=True)
        whose = {name: self.crowd[name] for name in ("client_id", "client_secret", "audience")}
        return Crowd(**whose, agents=list(pairs))


@contextlib.contextmanager
def place(
    *,
    database: str,
    lean: bool,
    wish: Mapping[str, Any],
    workers: int = WORKERS,
    cluster: bool = False,
    env: Mapping[str, str] | None = None,
    bulk: bool = False,
) -> Iterator[MeasuredSystem]:
    """Everything for one part, on `database` ("sqlite" or "postgres").

    `lean`: the verifier's own `workers` and Redis, or a `cluster` of three. `wish` goes to
    `tests.seed crowd`, `env` to all processes. With `bulk` all agents but the first are copies of
    it (benchmarks/many_agents.py).
    """
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="agentauth-bench-"))
        )
        others: dict[str, int] = {}
        url = ""
        if database == "postgres":
            url = stack.enter_context(postgres.cluster(durable=True))
            others["postgres"] = postmaster(url)
        registry = LiveRegistry(
            directory, database_url=url, workers=WORKERS, env={**ENV, **(env or {})}
        )
        server: LiveServer = registry
        if lean:
            chosen: Any = redis_servers.cluster() if cluster else redis_servers.server()
            redis: redis_servers.Server | redis_servers.Cluster = stack.enter_context(chosen)
            for number, node in enumerate(redis.nodes, 1):
                assert node.process
                others[f"redis {number}" if cluster else "redis"] = node.process.pid
            registry.env["REDIS_URL"] = redis.url
            server = LiveVerifier(registry, redis_url=redis.url, workers=workers)
        registry.prepare()
        if isinstance(server, LiveVerifier):
            server.act_as(registry.verifier_role())
            seeded(registry, "redis_home", None)
        crowd = seeded(registry, "crowd", {**wish, "agents": 1 if bulk else wish["agents"]})
        if bulk:
            copies = {"count": wish["agents"] - 1, "alg": wish["alg"]}
            told = {"agent_id": crowd["agents"][0]["agent_id"], **copies}
            crowd["agents"] += registry.act("benchmarks.many_agents", "agents", told)
        # Number the events of seeding now: they are not the verifier's work.
        registry.manage("seal_audit")
        others["jobs"] = stack.enter_context(jobs(registry))
        server.start()
        stack.callback(server.stop)
        yield MeasuredSystem(server, registry, directory, others, crowd, bulk)


def postmaster(url: str) -> int:
    """The PostgreSQL server at `url`: the parent of the process that serves this connection."""
    with psycopg.connect(url) as connection:
        return parent_of(connection.info.backend_pid)


@contextlib.contextmanager
def jobs(registry: LiveRegistry) -> Iterator[int]:
    """The periodic jobs beside the server; yields their process id."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "jobs"], cwd=ROOT, env=registry.env, start_new_session=True
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def machine() -> str:
    """The machine in one line, for the head of a table."""
    return f"{cpu_time.machine()}, load average {os.getloadavg()[0]:.1f} before"
