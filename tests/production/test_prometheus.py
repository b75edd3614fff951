"""A real Prometheus, configured by docs/operations.md, scrapes each kind of installed process."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from audit.models import Event
from tests.faults.stage import until
from tests.live import ROOT
from tests.postgres import free_port
from tests.production.registry import ProductionRegistry

pytestmark = [pytest.mark.production, pytest.mark.prometheus]
KINDS = ("web", "verifier", "jobs", "worker", "beat")


@pytest.fixture(scope="module")
def ports(
    production: ProductionRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, int]]:
    """The port of each kind of process; `jobs`, which Celery replaces here, is started as well."""
    made = production.ports | {"jobs": free_port()}
    env = production.env | {
        "OPERATIONS_BIND": f"127.0.0.1:{made['jobs']}",
        # It keeps its own series.
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path_factory.mktemp("jobs")),
    }
    with subprocess.Popen([sys.executable, "manage.py", "jobs"], cwd=ROOT, env=env) as jobs:
        yield {kind: made[kind] for kind in KINDS}
        jobs.terminate()


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Prometheus:
    """A server with the documented configuration, except for ports and a shorter interval."""

    def __init__(self, directory: Path, ports: dict[str, int], token: str) -> None:
        self.port, self.directory = free_port(), directory
        (directory / "token").write_text(token)
        [printed] = re.findall(
            r"```yaml\n# prometheus\.yml\n(.*?)```",
            (ROOT / "docs/operations.md").read_text(),
            re.DOTALL,
        )
        for kind, port in ports.items():
            there = rf'(targets: \["127\.0\.0\.1:)\d+("\]\n +labels: \{{process: {kind}\}})'
            here = rf"\g<1>{port}\g<2>"
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
        """Kind of process → its health and last error; empty while Prometheus starts."""
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
            answer = httpx.get(
                f"http://127.0.0.1:{self.port}/api/v1/{what}", params=params, timeout=10
            )
        except httpx.TransportError:
            assert self.process.poll() is None, (self.directory / "prometheus.log").read_text()
            return None
        return answer.json() if answer.is_success else None


def scrapes_on_record() -> int:
    return Event.objects.filter(kind="audit.request.refused", data__route="/metrics").count()


def test_SA_15_prometheus_scrapes_each_kind_of_process(
    production: ProductionRegistry, ports: dict[str, int], tmp_path: Path
) -> None:
    with Prometheus(tmp_path, ports, production.env["METRICS_TOKEN"]) as prometheus:
        up = dict.fromkeys(KINDS, ("up", ""))
        until(lambda: prometheus.targets() == up, f"not all are up: {prometheus.targets()}", 120)
        # Each exports the work it does itself.
        for kind, job in (("jobs", "audit.seal_audit"), ("worker", "verifier.drain_redis")):
            ended = f'agentauth_job_seconds_count{{name="{job}", outcome="ok", process="{kind}"}}'
            until(lambda ended=ended: bool(prometheus.values(ended)), f"{kind} does nothing", 180)  # type: ignore[misc]
        asked = (
            'sum by (process) (agentauth_http_request_seconds_count{route="/metrics", '
            'status="200"})'
        )
        until(
            lambda: {"web", "verifier"} <= prometheus.values(asked).keys(), "nothing is counted", 60
        )
    assert scrapes_on_record() == 0


def test_SA_15_a_scraper_with_the_wrong_token_fills_no_log(
    ports: dict[str, int], tmp_path: Path
) -> None:
    with Prometheus(tmp_path, ports, "an older token") as prometheus:
        down = dict.fromkeys(KINDS, ("down", "server returned HTTP status 404 Not Found"))
        until(
            lambda: prometheus.targets() == down, f"not all are down: {prometheus.targets()}", 120
        )
    assert scrapes_on_record() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_SA_15_each_kind_of_process_says_how_it_is(ports: dict[str, int], kind: str) -> None:
    """Probed as a load balancer or an orchestrator would: by address."""

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            told = httpx.get(f"http://127.0.0.1:{ports[kind]}/health/ready", timeout=30)
            return told.is_success and set(told.json()["checks"].values()) == {"ok"}
        return False

    until(is_ready, f"{kind} is not ready", 60)
