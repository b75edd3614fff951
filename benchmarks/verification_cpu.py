"""Measures a warm verification in one process: `python -m benchmarks.verification_cpu`.

From the bytes of the request to those of the answer: all of the verifier's own work and its
connections, but no network. The transport discards output, and Redis is a stub that agrees at once
to a packed command. So the result is the cost of the code, whatever else the machine does. Prints a
Markdown row: CPU µs of a request, of a bare signature check, and their ratio; medians (lowest to
highest). With OTEL_EXPORTER_OTLP_ENDPOINT set, requests are traced as in a server, and the CPU of
the exporter's thread counts too.
"""

# ruff: noqa: SLF001 - it puts in place what a server and a database would

import argparse
import asyncio
import base64
import gc
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

# Before anything of the project is imported.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="agentauth-metrics-"))
os.environ["SERVICE_PROVIDER_CALLS_PER_MINUTE"] = "100000000"

from benchmarks import verification_steps  # isort: split

import uvloop
from django.utils import timezone
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.config import Config

from agentauth.observability import tracing
from agentauth.observability.metrics_buffer import Tally
from agentauth.observability.request_ids import begin_request
from agentauth.protocol.behavioural_envelope import DEFAULT_MAXIMA
from agentauth.protocol.encoding import b64u_decode, read_object
from agentauth.protocol.hours_and_periods import DAYS
from agentauth.server import verifier_application
from agentauth.server.loop_worker import Connection, Worker
from registry.models import Grant, Human, Token
from registry.services.token_state import TokenState
from verifier.asgi_endpoint import Edge, Endpoint
from verifier.services import replay_cache_lease
from verifier.services.cached_token import CachedToken, known_of
from verifier.services.clock_readings import ClockReading
from verifier.services.replay_epochs import ReplayEpoch
from verifier.services.state_cache import StateCache
from verifier.services.verifier_process import VerifierProcess
from verifier.stores.lua_scripts import Script
from verifier.stores.redis_client import pack
from verifier.stores.redis_servers import Servers

CONNECTIONS = 8
ROUND = 496
NAMED = "EdDSA, each call named"
# As a service provider names an act on one of its objects.
ARGUMENTS: dict[str, Any] = {
    "visibility": "busy",
    "days": 7,
    "owner": "Research Team Berlin",
    "all": True,
}
WITH_ARGUMENTS = "EdDSA, four arguments"
YES, CLOSED = b'"valid":true', b'"outside_time_window"'
# One window that is always open; and the maximum number, in different zones, all closed for days.
ZONES = sorted(zoneinfo.available_timezones())[::30][: DEFAULT_MAXIMA.allowed_time_windows]
OPEN = [{"days": list(DAYS), "start": "00:00", "end": "24:00", "zone": "Europe/Berlin"}]


def closed(now: datetime) -> list[dict[str, Any]]:
    """Windows that open in three days at the earliest."""
    day = DAYS[(now.weekday() + 4) % len(DAYS)]
    return [{"days": [day], "start": "09:00", "end": "17:00", "zone": zone} for zone in ZONES]


class Knowing(StateCache):
    """A follower that holds one token, its service provider and the keys."""

    def __init__(self, place: verification_steps.Stage, known: CachedToken) -> None:
        self._place, self._known = place, known
        self._clock_ahead, self._last_before_gap = 0.0, None

    @property
    def _began(self) -> ClockReading:  # type: ignore[override]  # it has always just looked
        return ClockReading.now()

    def held_provider(self, digest: bytes) -> Any:
        return self._place.provider

    def token_keys(self) -> Any:
        return self._place.keys

    def held_state(self, jti: str) -> CachedToken:
        return self._known


class Agreeing(Servers):
    """Replaces Redis: answers OK to everything, with numbers."""

    def __init__(self) -> None:
        self._number, self._expected_runs = 0, frozenset

    async def _evaluate(
        self,
        script: Script,
        shard: int,
        keys: Sequence[bytes],
        args: Sequence[bytes | str | int],
        deadline: float,
        expected: frozenset[str],
    ) -> list[int | None]:
        pack((b"EVALSHA", script.sha1, len(keys), *keys, *args))
        self._number += 1
        return [0, None, 0, self._number, None]


class Taking(asyncio.Transport):
    """Discards what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[bytes] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.taken.append(data)


def known(
    place: verification_steps.Stage, now: datetime, windows: list[dict[str, Any]]
) -> CachedToken:
    """The token's rows as read from the database; without `windows` the grant has no such limit."""
    claims = cast("dict[str, Any]", read_object(b64u_decode(place.token.split(".")[1])))
    later = now + timedelta(hours=1)
    human = Human(id=uuid.uuid4(), status=Human.Status.ACTIVE)
    agent, provider = place.agent, place.provider
    agent.human, agent.status, agent.expires_at = human, "active", later
    agent.jkt = place.agent_key.public.thumbprint
    provider.status = "active"
    grant = Grant(
        id=uuid.UUID(claims["grant_id"]),
        agent=agent,
        service_provider=provider,
        status=Grant.Status.APPROVED,
        version=1,
        valid_until=later,
        capabilities=[verification_steps.CAPABILITY],
        envelope=verification_steps.ENVELOPE
        | ({"allowed_time_windows": windows} if windows else {}),
    )
    token = Token(jti=claims["jti"], jkt=agent.jkt, grant=grant, grant_version=1, expires_at=later)
    return known_of(TokenState(token, grant, agent, human, provider, receipt_kid="a receipt key"))


def worker(endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> Worker:
    """A stand-in for gunicorn's worker, with what a connection needs of it."""
    config = Config()
    for name, value in {
        "http_parser": "fast",
        "limit_request_field_size": 8300,
        "keepalive": 75,
    }.items():
        config.set(name, value)
    ASGIProtocol._check_h1c_protocol_available()
    made = Worker.__new__(Worker)
    made.__dict__.update(
        cfg=config, loop=loop, asgi=endpoint, log=logging.getLogger(__name__), state={}, alive=True,
        nr=0, nr_conns=0,
        max_requests=sys.maxsize, worker_connections=CONNECTIONS, max_head=100_000, waiting={},
        stuck=set(), held=0,
        acceptor=SimpleNamespace(report=lambda: None),
    )  # fmt: skip
    return made


async def asked(connections: Sequence[Connection], requests: Sequence[bytes]) -> None:
    """Repeatedly send one request on each connection, until all are answered."""
    for first in range(0, len(requests), len(connections)):
        for connection, request in zip(connections, requests[first:], strict=False):
            connection.data_received(request)
        while any(each.is_answering for each in connections):  # noqa: ASYNC110 — nothing else is in the loop
            await asyncio.sleep(0)


async def cpu_us(connections: Sequence[Connection], requests: Sequence[bytes]) -> list[float]:
    """CPU µs per request, for each round except the first two."""
    taken = []
    for first in range(0, len(requests), ROUND):
        began = time.process_time_ns()
        await asked(connections, requests[first : first + ROUND])
        taken.append((time.process_time_ns() - began) / 1_000 / ROUND)
        if first == ROUND:
            # The server does this once it has loaded.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 100)
    return taken[2:]


async def measured(
    place: verification_steps.Stage,
    now: datetime,
    windows: list[dict[str, Any]],
    expected: bytes,
    *,
    named: bool = False,
) -> list[float]:
    """Send the stage's requests to a new endpoint. Raises RuntimeError for an unexpected answer."""
    cached_state, tally = Knowing(place, known(place, now, windows)), Tally()
    replay_cache_lease.LEASE._last = replay_cache_lease._Look(
        ReplayEpoch(1, "redis", frozenset(), now),
        leaving=False,
        clock_off=None,
        began=time.monotonic() + 3600,
        at=time.time() + 3600,
    )

    async def start() -> tuple[VerifierProcess, Edge]:
        verifier = VerifierProcess(
            cached_state=cached_state, servers=Agreeing(), count=tally.decision
        )
        headers = verifier_application.standing_headers()
        return verifier, Edge(
            cast("Any", None),
            verifier_application.error_response,
            begin_request,
            tally.request,
            headers,
        )

    endpoint = Endpoint(start)
    endpoint._verifier, endpoint._edge = await start()
    serving = worker(endpoint, asyncio.get_running_loop())
    lines = [Taking() for _ in range(CONNECTIONS)]
    connections = [Connection(serving) for _ in lines]
    for connection, line in zip(connections, lines, strict=True):
        connection.connection_made(line)
    secret = base64.b64encode(b"a" * 36 + b":" + b"b" * 43).decode()
    head = (
        "POST /v1/verify HTTP/1.1\r\nHost: localhost:8000\r\nContent-Type: "
        f"application/json\r\nAuthorization: Basic {secret}\r\n"
    )
    requests = [
        f"{head}{name(number) if named else ''}Content-Length: {len(each)}\r\n\r\n".encode() + each
        for number, each in enumerate(place.bodies)
    ]
    costs = await cpu_us(connections, requests)
    right = sum(expected in answer for line in lines for answer in line.taken)
    if right != len(requests):
        raise RuntimeError(
            f"{len(requests) - right} of {len(requests)} were not answered with {expected!r}"
        )
    return costs


def name(number: int) -> str:
    """The header by which a service provider names one call."""
    return f"Idempotency-Key: {number:022}\r\n"


def bare(step: Callable[[int], object], calls: int) -> list[float]:
    """CPU µs of the signature check alone, per round."""
    return [verification_steps.cpu_us(step, first, ROUND) for first in range(0, calls, ROUND)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16, help=f"of {ROUND} requests")
    given = parser.parse_args()
    tracing.start("verifier")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(
        "| signature | CPU µs of a request | of a bare signature check | ratio |\n|---|---|---|---|"
    )
    parts: list[tuple[str, str, Callable[[datetime], list[dict[str, Any]]], bytes]] = [
        ("EdDSA", "EdDSA", lambda _: [], YES),
        (NAMED, "EdDSA", lambda _: [], YES),
        (WITH_ARGUMENTS, "EdDSA", lambda _: [], YES),
        ("ES256", "ES256", lambda _: [], YES),
        ("EdDSA, an open window", "EdDSA", lambda _: OPEN, YES),
        ("EdDSA, 16 closed windows", "EdDSA", closed, CLOSED),
    ]
    for name, alg, windows, expected in parts:
        now = timezone.now()
        verification_steps.NOW, verification_steps.SECONDS = now, int(now.timestamp())
        action = verification_steps.ACTION
        if name == WITH_ARGUMENTS:
            action = action | {"arguments": ARGUMENTS}
        place = verification_steps.stage(cast("Any", alg), ROUND * (2 + given.rounds), action)
        check = next(iter(verification_steps.bare(place).values()))
        unit = bare(check, ROUND * given.rounds)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            cost = runner.run(measured(place, now, windows(now), expected, named=name == NAMED))
        shown = [
            f"{statistics.median(each):.1f} ({min(each):.1f}–{max(each):.1f})"
            for each in (cost, unit)
        ]
        ratio = statistics.median(cost) / statistics.median(unit)
        print(f"| {name} | {shown[0]} | {shown[1]} | {ratio:.2f} |", flush=True)
    tracing.stop()


if __name__ == "__main__":
    main()
