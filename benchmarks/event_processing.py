"""Measures what an event costs after the answer (draining, numbering): `python -m
benchmarks.event_processing`.

Events are made and stored with the verifier's own functions, a fixed number per second of traffic;
then the two jobs run in this process, once per second of traffic. Prints Markdown for
benchmarks/README.md.
"""

import argparse
import contextlib
import os
import secrets
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.cpu_time import cpu_seconds
from benchmarks.system_under_test import ENV, machine, postmaster
from benchmarks.verify import READ
from tests import postgres, redis_servers
from tests.actors import seeded
from tests.live import LiveRegistry

EACH_SECOND = (1_500, 4_000, 20_000)
EVENTS = 80_000
# One in this many is refused for its scope.
REFUSED = 20
AHEAD = timedelta(seconds=120)


@dataclass(frozen=True, slots=True)
class Cost:
    """One run: events a second while the jobs work; CPU µs per event of draining, sealing,
    PostgreSQL;

    and bytes of its WAL per event.
    """

    rate: float
    drain_us: float
    seal_us: float
    postgres_us: float
    wal_bytes: float

    def row(self) -> str:
        jobs = self.drain_us + self.seal_us
        return (
            f"| {self.rate:,.0f} | {self.drain_us:.1f} | {self.seal_us:.1f} | {jobs:.1f} | "
            f"{self.postgres_us:.1f}"
            f" | {self.wal_bytes:,.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="events in each run")
    parser.add_argument("--each", type=int, action="append", help="events that arrive each second")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--agents", type=int, default=100)
    given = parser.parse_args()
    print(f"{machine()}. {' '.join(sys.argv[1:])}\n")
    print(
        "| events each second | run | events/s | drain µs | seal µs | jobs µs | PostgreSQL µs "
        "| WAL bytes per event |"
        "\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    with servers(given.agents) as (database, tokens):
        calls = count()
        for each in given.each or EACH_SECOND:
            runs = []
            for number in range(given.runs):
                runs.append(run(database, tokens, calls, each=each, events=given.events))
                print(f"| {each:,} | {number + 1}", runs[-1].row(), flush=True)
            print(f"| {each:,} | median", median(runs).row(), flush=True)


@contextlib.contextmanager
def servers(agents: int) -> Iterator[tuple[str, list[Any]]]:
    """PostgreSQL, Redis and a registry with `agents`.

    Yields the URL of the database, and each agent's `Token` and `CachedToken`.
    """
    os.environ.pop("DATABASE_URL", None)
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="agentauth-events-"))
        )
        url = stack.enter_context(postgres.cluster(durable=True))
        redis = stack.enter_context(redis_servers.server())
        registry = LiveRegistry(directory, database_url=url, env={**ENV, "REDIS_URL": redis.url})
        registry.prepare()
        seeded(registry, "redis_home", None)
        wish = {"agents": agents, "capabilities": [READ], "envelope": {}}
        made = seeded(registry, "crowd", wish)["agents"]
        seeded(registry, "tokens", [agent["grant_id"] for agent in made])
        registry.manage("seal_audit")
        # The addresses are known only now.
        os.environ.update(registry.env)
        os.environ["DJANGO_SETTINGS_MODULE"] = "agentauth.settings"
        import django

        django.setup()
        from registry.models import Token
        from verifier.services.cached_token import load_tokens

        tokens = Token.objects.in_bulk(field_name="jti")
        yield url, [(tokens[jti], known) for jti, known in load_tokens(list(tokens)).items()]


def run(
    database: str, tokens: Sequence[Any], calls: Iterator[int], *, each: int, events: int
) -> Cost:
    """Fill and work off, second by second. Raises RuntimeError if an event was left unnumbered."""
    from django.utils import timezone

    from audit.services import seal_audit
    from verifier.services.decision_stream_drain import drain_redis
    from verifier.stores.redis_py_client import sync_client

    root = {"postgres": postmaster(database)}
    drained, size = 0, log_size()
    wall = drain_cpu = seal_cpu = 0.0
    with psycopg.connect(database, autocommit=True) as asking, sync_client() as client:
        began, written = cpu_seconds(root)["postgres"], position(asking)
        for _ in range(max(1, events // each)):
            fill(client, tokens, calls, each)
            first = time.perf_counter(), time.process_time()
            drained += drain_redis(now=timezone.now())
            second = time.process_time()
            seal_audit(now=timezone.now())
            wall += time.perf_counter() - first[0]
            drain_cpu += second - first[1]
            seal_cpu += time.process_time() - second
        spent, written = cpu_seconds(root)["postgres"] - began, position(asking) - written
    numbered, wanted = log_size() - size, max(1, events // each) * each
    if not drained == numbered == wanted:
        raise RuntimeError(f"of {wanted} events, {drained} were taken over and {numbered} numbered")
    return Cost(
        drained / wall,
        drain_cpu / drained * 1e6,
        seal_cpu / drained * 1e6,
        spent / drained * 1e6,
        written / drained,
    )


def fill(client: Any, tokens: Sequence[Any], calls: Iterator[int], events: int) -> None:
    """Have the script decide this many calls of all agents in turn, as the verifier does."""
    from verifier.stores.lua_scripts import JUDGE
    from verifier.stores.redis_decisions import plan_light_decision

    sha1 = client.script_load(JUDGE.source.decode())
    with client.pipeline(transaction=False) as pipeline:
        for number, _ in zip(calls, range(events), strict=False):
            token, known = tokens[number % len(tokens)]
            _, keys, arguments = plan_light_decision(call_of(token, known, number), known).called
            pipeline.evalsha(sha1, len(keys), *keys, *arguments)
        pipeline.execute()


def call_of(token: Any, known: Any, number: int) -> Any:
    """A call whose token and proof were found valid."""
    from django.utils import timezone

    from agentauth.protocol.capability import Action
    from agentauth.protocol.token import TokenClaims
    from audit.services import Actor
    from verifier.services.replay_cache_lease import LEASE
    from verifier.stores import StoreCall

    now, claims = timezone.now(), token.claims
    kind = "write" if number % REFUSED == 0 else "read"
    return StoreCall(
        service_provider_id=known.service_provider_id,
        claims=TokenClaims(
            jti=token.jti,
            subject=claims["sub"],
            agent_id=str(known.agent.id),
            jkt=token.jkt,
            grant_id=known.grant_id,
            grant_version=known.grant_version,
            issued_at=claims["iat"],
            expires_at=claims["exp"],
            scope=claims["scope"],
            capabilities=known.terms.capabilities,
            online=True,
        ),
        proof_jkt=token.jkt,
        proof_jti=str(uuid.uuid4()),
        spent_until=int((now + AHEAD).timestamp()),
        action=Action(kind, "calendar"),
        operation_key=None,
        dry_run=False,
        actor=Actor("service_provider", str(known.service_provider_id), secrets.token_hex(16)),
        now=now,
        replay_epoch=LEASE.current(),
    )


def log_size() -> int:
    """How many events have a number."""
    from audit.models import Head

    return Head.objects.get().size


def position(asking: psycopg.Connection[Any]) -> int:
    """How many bytes PostgreSQL has written to its WAL."""
    row = asking.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
    assert row
    return int(row[0])


def median(runs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    names = Cost.__slots__
    return Cost(*(statistics.median(getattr(each, name) for each in runs) for name in names))


if __name__ == "__main__":
    main()
