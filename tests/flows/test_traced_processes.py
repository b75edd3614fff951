"""Each kind of process exports what it traced before it ends, also if the collector hangs.

The servers belong to the test: it stops them, and their variables are unusual.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from tests import redis_servers
from tests.actors import scene
from tests.conftest import fresh_database
from tests.flows.pair import READ, wait_for_replay_cache
from tests.live import ROOT, LiveRegistry, LiveServer, LiveVerifier
from tests.otlp_receiver import Collector, collector
from tests.time_limits import within
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]


@contextlib.contextmanager
def jobs(registry: LiveRegistry) -> Iterator[None]:
    """A process of `jobs`, stopped as a supervisor stops it."""
    command = [sys.executable, "manage.py", "jobs"]
    with (
        (registry.directory / "jobs.log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=registry.env, stderr=log) as process,
    ):
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


@pytest.fixture
def servers(
    postgres_url: str, tmp_path: Path
) -> Iterator[tuple[LiveRegistry, LiveVerifier, Collector]]:
    with redis_servers.server() as redis, collector() as made, ExitStack() as stack:
        env = {
            "REDIS_URL": redis.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": made.url,
            # Only the end of a process exports.
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
            "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100000",
        }
        url = fresh_database(postgres_url, "flows_traced")
        web = LiveRegistry(tmp_path, database_url=url, workers=1, env=env)
        web.prepare()
        lean = LiveVerifier(web, redis_url=redis.url, workers=1)
        for server in (web, lean):
            stack.callback(server.stop)
            server.start()
        wait_for_replay_cache(web, "redis")
        yield web, lean, made


def is_numbered(web: LiveRegistry, decision: str) -> bool:
    """Whether the jobs have drained the decision from Redis and numbered it."""
    with psycopg.connect(web.env["DATABASE_URL"]) as connection:
        row = "SELECT 1 FROM audit_leaf WHERE event_id = %s"
        return connection.execute(row, [decision]).fetchone() is not None


def test_each_kind_of_process_exports_before_it_ends(
    servers: tuple[LiveRegistry, LiveVerifier, Collector],
) -> None:
    web, lean, made = servers
    place = scene(web, capabilities=[READ], envelope={})
    with jobs(web):
        question = place.question(place.token(), READ)
        asked = httpx.post(
            f"{lean.url}/v1/verify", json=question, auth=(place.client_id, place.client_secret)
        )
        assert asked.json()["valid"], asked.text
        until(lambda: is_numbered(web, asked.json()["decision_id"]), "the decision has no number")
    assert made.services == {"agentauth-jobs"}
    for server in (web, lean):
        server.stop()
    assert made.services == {"agentauth-jobs", "agentauth-verifier", "agentauth-web"}
    names = {span.name for span in made.spans}
    assert {"POST /v1/verify", "EVALSHA judge", "POST /v1/tokens", "job audit.seal_audit"} <= names
    assert "XRANGE" in names
    for log in (web.log, lean.log):
        assert "Traceback" not in log.read_text()


def test_a_hanging_collector_does_not_delay_the_end(
    servers: tuple[LiveRegistry, LiveVerifier, Collector],
) -> None:
    web, lean, made = servers
    made.goes_on.clear()
    for server in (web, lean):
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert seconds_to_end(server) < within(8)
    assert {span.name for span in made.spans} >= {"GET /health/ready"}


def seconds_to_end(server: LiveServer) -> float:
    process, began = server.process, time.monotonic()
    assert process
    process.terminate()
    process.wait(25)
    return time.monotonic() - began
