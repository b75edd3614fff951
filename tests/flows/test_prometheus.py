"""A real Prometheus, configured as docs/operations.md prints it, scrapes every kind of process by its address."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import pytest

from tests import redis_servers
from tests.actors import scene
from tests.conftest import fresh_database
from tests.faults.stage import until
from tests.flows.pair import be_at_home
from tests.live import ROOT, LiveRegistry, LiveVerifier
from tests.postgres import free_port

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis, pytest.mark.prometheus]
READ = {"type": "read", "resource": "calendar"}
TOKEN = "only-the-collector-knows"
# Not one of the names that development takes for its own.
ADDRESS = "127.0.0.2"
KINDS = ("web", "verifier", "jobs", "worker", "beat")


@dataclass
class Installation:
    registry: LiveRegistry
    verifier: LiveVerifier
    # Where each kind of process answers.
    ports: dict[str, int]

    def started(self, kind: str, *command: str) -> subprocess.Popen[bytes]:
        env = {**self.registry.env, "OPERATIONS_BIND": f"{ADDRESS}:{self.ports[kind]}"}
        with (self.registry.directory / f"{kind}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def count(self, kind: str) -> int:
        """Events of a kind in the log."""
        with psycopg.connect(self.registry.env["DATABASE_URL"]) as connection:
            row = connection.execute("SELECT count(*) FROM audit_event WHERE kind = %s", [kind]).fetchone()
        assert row
        return int(row[0])


@pytest.fixture(scope="module")
def installation(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Web server, verifier, and Celery's beat and worker; jobs come later."""
    directory = tmp_path_factory.mktemp("installation")
    ports = {kind: free_port() for kind in KINDS}
    with redis_servers.server() as redis, contextlib.ExitStack() as stack:
        registry = LiveRegistry(
            directory,
            database_url=fresh_database(postgres_url, "flows_prometheus"),
            workers=2,
            env={"METRICS_TOKEN": TOKEN, "REDIS_URL": redis.url, "CELERY_BROKER_URL": f"{redis.url}/1"},
            arguments=["--bind", f"{ADDRESS}:{ports['web']}"],
        )
        registry.prepare()
        verifier = LiveVerifier(registry, redis_url=redis.url, workers=1)
        verifier.command[-1:-1] = ["--bind", f"{ADDRESS}:{ports['verifier']}"]
        made = Installation(registry, verifier, ports)
        for server in (registry, verifier):
            stack.callback(server.stop)
            server.start()
        celery = ("-m", "celery", "-A", "agentauth")
        for kind, command in {
            "worker": (*celery, "worker"),
            "beat": (*celery, "beat"),
        }.items():
            stack.callback(end, made.started(kind, *command))
        be_at_home(registry, "redis")
        yield made


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Prometheus:
    """One server and what it found; the configuration is the one in the docs, with other addresses and a shorter interval."""

    def __init__(self, directory: Path, ports: dict[str, int], token: str) -> None:
        self.port, self.directory = free_port(), directory
        (directory / "token").write_text(token)
        [printed] = re.findall(
            r"```yaml\n# prometheus\.yml\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL
        )
        for kind, port in ports.items():
            there = rf'targets: \["[^"]+"\]\n( +)labels: \{{process: {kind}\}}'
            here = rf'targets: ["{ADDRESS}:{port}"]\n\1labels: {{process: {kind}}}'
            printed, changed = re.subn(there, here, printed)
            assert changed == 1, kind
        printed = printed.replace("/etc/prometheus/agentauth-token", str(directory / "token"))
        (directory / "prometheus.yml").write_text(printed.replace("15s", "1s"))

    def __enter__(self) -> Self:
        command = [
            "prometheus",
            f"--config.file={self.directory}/prometheus.yml",
            f"--storage.tsdb.path={self.directory}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (self.directory / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def targets(self) -> dict[str, tuple[str, str]]:
        """Kind of process → how it is, and the last error; empty while Prometheus starts."""
        found = self._asked("targets")
        active = found["data"]["activeTargets"] if found else []
        return {each["labels"]["process"]: (each["health"], each["lastError"]) for each in active}

    def values(self, query: str) -> dict[str, float]:
        """Kind of process → value."""
        found = self._asked("query", query=query)
        rows = found["data"]["result"] if found else []
        return {row["metric"].get("process", ""): float(row["value"][1]) for row in rows}

    def _asked(self, what: str, **params: str) -> Any:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/{what}", params=params, timeout=10)
        except httpx.TransportError:
            assert self.process.poll() is None, (self.directory / "prometheus.log").read_text()
            return None
        return answer.json() if answer.is_success else None


@pytest.fixture(scope="module")
def _jobs(installation: Installation) -> Iterator[None]:
    process = installation.started("jobs", "manage.py", "jobs")
    yield
    end(process)


def decide(installation: Installation) -> None:
    """One light decision of the verifier, which waits in Redis."""
    place = scene(installation.registry, capabilities=[READ], envelope={})
    token, nonce = place.token(), None
    whose = (place.client_id, place.client_secret)

    def allowed() -> bool:
        nonlocal nonce
        question = place.question(token, READ, proof=place.proof(token, nonce=nonce))
        told = httpx.post(f"{installation.verifier.url}/v1/verify", json=question, auth=whose, timeout=30)
        # A new epoch wants one.
        nonce = told.json().get("nonce")
        return bool(told.json().get("valid"))

    until(allowed, "the verifier does not allow it", 60)


def test_decisions_in_redis_are_drained_and_numbered_by_celery_alone(installation: Installation) -> None:
    decide(installation)

    def numbered() -> bool:
        with psycopg.connect(installation.registry.env["DATABASE_URL"]) as connection:
            [row] = connection.execute(
                "SELECT count(*) FROM audit_event JOIN audit_leaf ON audit_leaf.event_id = audit_event.id"
                " WHERE audit_event.kind = 'verifier.decision.allowed'"
            ).fetchall()
        return bool(row[0])

    until(numbered, "no process takes it over", 60)


@pytest.mark.usefixtures("_jobs")
def test_SA_15_prometheus_scrapes_each_kind_of_process_by_its_address(
    installation: Installation, tmp_path: Path
) -> None:
    with Prometheus(tmp_path, installation.ports, TOKEN) as prometheus:
        up = dict.fromkeys(KINDS, ("up", ""))
        until(lambda: prometheus.targets() == up, f"not all are up: {prometheus.targets()}", 120)
        # Each says what it does itself.
        for kind, job in (("jobs", "audit.seal_audit"), ("worker", "verifier.drain_redis")):
            ended = f'agentauth_job_seconds_count{{name="{job}", outcome="ok", process="{kind}"}}'
            until(lambda ended=ended: bool(prometheus.values(ended)), f"{kind} does nothing", 180)  # type: ignore[misc]
        asked = 'sum by (process) (agentauth_http_request_seconds_count{route="/metrics", status="200"})'
        until(lambda: {"web", "verifier"} <= prometheus.values(asked).keys(), "nothing is counted", 60)
    assert installation.count("audit.request.refused") == 0


ASK = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=30).read().decode())"


@pytest.mark.usefixtures("_jobs")
def test_SA_15_each_kind_of_process_says_how_it_is(installation: Installation) -> None:
    """A balancer or an orchestrator asks as this does: by address, from another process."""

    def is_ready(kind: str) -> bool:
        url = f"http://{ADDRESS}:{installation.ports[kind]}/health/ready"
        told = subprocess.run([sys.executable, "-c", ASK, url], capture_output=True, text=True, check=False)
        return told.returncode == 0 and set(json.loads(told.stdout)["checks"].values()) == {"ok"}

    for kind in KINDS:
        until(lambda kind=kind: is_ready(kind), f"{kind} is not ready", 60)  # type: ignore[misc]
    assert installation.count("audit.request.refused") == 0


@pytest.mark.usefixtures("_jobs")
def test_SA_15_a_scraper_with_the_wrong_token_fills_no_log(
    installation: Installation, tmp_path: Path
) -> None:
    with Prometheus(tmp_path, installation.ports, "an older token") as prometheus:
        down = dict.fromkeys(KINDS, ("down", "server returned HTTP status 404 Not Found"))
        until(lambda: prometheus.targets() == down, f"not all are down: {prometheus.targets()}", 120)
    assert installation.count("audit.request.refused") == 0
    page = httpx.get(f"{installation.registry.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    refused = re.search(r'agentauth_errors_total\{error="not_found",reason=""\} (\S+)', page.text)
    assert refused
    assert float(refused[1]) >= 1
