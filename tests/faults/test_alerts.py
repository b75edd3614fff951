"""Each fault fires the alerts that docs/runbook explains, and they end after the fault has.

A real Prometheus scrapes a live system and evaluates the rules, with all durations SHORTER
(tests/prometheus.py). One fault is also in CI: tests/production/test_prometheus.py stops `jobs`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import psycopg
import pytest

from tests import redis_servers
from tests.actors import Scene, scene
from tests.faults.breaking import kill_redis, start_jobs, start_redis
from tests.faults.clients import READ
from tests.faults.stage import Stage, stage, until
from tests.faults.table import Results
from tests.faults.test_table import database, keys, no_database, no_jobs, no_keys
from tests.postgres import free_port
from tests.prometheus import SHORTER, Prometheus

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flow,
    pytest.mark.long,
    pytest.mark.postgres,
    pytest.mark.prometheus,
    pytest.mark.redis,
]
TOKEN = "only-for-the-collector-of-this-test"
# Over 70 % of the bound, in ids of their own (of 2025), whose events do not exist.
FILL = (
    "INSERT INTO audit_queueentry (event_id) SELECT ('01980000-0000-7000-8000-' || "
    "lpad(to_hex(n), 12, '0'))::uuid FROM generate_series(1, 70001) n"
)
EMPTY = "DELETE FROM audit_queueentry WHERE event_id::text LIKE '01980000-0000-7000-8000-%'"
# Once the fault has begun, and once it has ended (s). Busy machines need longer than SHORTER says.
FIRES_WITHIN, ENDS_WITHIN = 120, 180
# Longer than each `for` of the critical alerts, SHORTER.
HEALTHY_SECONDS = 10


def fill_the_queue(held: Stage) -> None:
    """As if `jobs` had been away for hours."""
    no_jobs(held)
    execute(held, FILL)


def empty_the_queue(held: Stage) -> None:
    execute(held, EMPTY)
    start_jobs(held)


def no_writes(held: Stage) -> None:
    execute(held, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")


def writes(held: Stage) -> None:
    execute(held, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")


def execute(held: Stage, *statements: str) -> None:
    with psycopg.connect(held.database.url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@dataclass(frozen=True)
class Fault:
    """How it begins and ends, and the alerts that must fire meanwhile."""

    begin: Callable[[Stage], None]
    end: Callable[[Stage], None]
    alerts: frozenset[str]


FAULTS = {
    "jobs stop": Fault(
        no_jobs,
        start_jobs,
        frozenset({"AgentAuthProcessDown", "AgentAuthQueueOld", "AgentAuthJobNotRunning"}),
    ),
    "PostgreSQL stops": Fault(
        no_database,
        database,
        frozenset({"AgentAuthNotReady", "AgentAuthVerifyErrorBudgetBurnsFast"}),
    ),
    "PostgreSQL is read-only": Fault(no_writes, writes, frozenset({"AgentAuthNotWritable"})),
    "Redis stops": Fault(
        lambda held: kill_redis(held, 0),
        start_redis,
        frozenset({"AgentAuthRedisUnavailable", "AgentAuthVerifyErrorBudgetBurnsFast"}),
    ),
    "the key backend stops": Fault(no_keys, keys, frozenset({"AgentAuthSigningUnavailable"})),
    "the queue fills": Fault(
        fill_the_queue,
        empty_the_queue,
        frozenset({"AgentAuthQueueNearlyFull", "AgentAuthQueueOld"}),
    ),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, int]]:
    """The system, and the port at which `jobs` reports."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METRICS_TOKEN", TOKEN)
        patch.setenv("OPERATIONS_BIND", f"127.0.0.1:{port}")
        with (
            redis_servers.server() as redis,
            stage(tmp_path_factory.mktemp("alerts"), redis, seed=3) as made,
        ):
            yield made, port


@contextlib.contextmanager
def traffic(held: Stage) -> Iterator[None]:
    """Calls to verify at the first verifier, and an event a second through the registry."""
    place = scene(held.registry, capabilities=[READ], envelope={})
    token, ended = place.token(), threading.Event()

    def run() -> None:
        nonce = None
        while not ended.wait(0.2):
            with contextlib.suppress(httpx.TransportError):
                nonce = ask(held, place, token, nonce) or nonce
            with contextlib.suppress(httpx.TransportError):
                place.api("POST", "/v1/tokens", {"grant_id": place.grant_id})

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def ask(held: Stage, place: Scene, token: str, nonce: str | None) -> str | None:
    question = place.question(token, READ, proof=place.proof(token, nonce=nonce))
    credentials = (place.client_id, place.client_secret)
    answer = httpx.post(f"{held.a.url}/v1/verify", json=question, auth=credentials, timeout=30)
    return answer.json().get("nonce") if answer.is_success else None


@pytest.fixture(scope="module")
def prometheus(
    held: tuple[Stage, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    made, port = held
    targets = {"web": [made.registry.port], "verifier": [made.a.port], "jobs": [port]}
    with (
        traffic(made),
        Prometheus(tmp_path_factory.mktemp("prometheus"), targets, TOKEN) as running,
    ):
        yield running


def wait(prometheus: Prometheus, holds: Callable[[set[str]], bool], seconds: float) -> float:
    """Wait until it holds of the alerts that fire; returns for how long (s)."""
    began = time.monotonic()
    while not holds(prometheus.firing()):
        assert time.monotonic() - began < seconds, f"these fire: {sorted(prometheus.firing())}"
        time.sleep(0.5)
    return time.monotonic() - began


def test_a_healthy_system_fires_no_alert(prometheus: Prometheus) -> None:
    """Except that a busy machine may answer verify late, or shed calls."""
    until(lambda: len(prometheus.targets()) == 3, "Prometheus does not start", 60)
    seen = set()
    wait(prometheus, lambda firing: not without_verify(firing), ENDS_WITHIN)
    for _ in range(HEALTHY_SECONDS):
        time.sleep(1)
        seen |= without_verify(prometheus.firing())
    assert seen == set()


def without_verify(firing: set[str]) -> set[str]:
    return {name for name in firing if not name.startswith("AgentAuthVerify")}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fires_its_alerts_and_its_end_ends_them(
    held: tuple[Stage, int], prometheus: Prometheus, results: Results, name: str
) -> None:
    """Others may fire too, and alerts on a share of many hours go on for long: not named here."""
    fault, made = FAULTS[name], held[0]
    until(lambda: len(prometheus.targets()) == 3, "Prometheus does not start", 60)
    wait(prometheus, fault.alerts.isdisjoint, ENDS_WITHIN)
    fault.begin(made)
    try:
        fired = wait(prometheus, fault.alerts.issubset, FIRES_WITHIN)
    finally:
        fault.end(made)
    ended = wait(prometheus, fault.alerts.isdisjoint, ENDS_WITHIN)
    results.lines.append(
        f"{name}: {', '.join(sorted(fault.alerts))} fired within {fired:.0f} s and ended within "
        f"{ended:.0f} s, with all durations {SHORTER} times shorter"
    )
