"""A real Prometheus with the files of deploy/ scrapes each kind of installed process."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from audit.models import Event
from tests.faults.stage import until
from tests.live import ROOT
from tests.postgres import free_port
from tests.production.registry import ProductionRegistry
from tests.prometheus import Prometheus

pytestmark = [pytest.mark.production, pytest.mark.prometheus]
KINDS = ("web", "verifier", "jobs", "worker", "beat")
OPERATIONS = ROOT / "docs/operations.md"


@contextlib.contextmanager
def jobs(production: ProductionRegistry, folder: Path, port: int) -> Iterator[None]:
    """A process of `jobs`, which Celery replaces here."""
    env = production.env | {
        "OPERATIONS_BIND": f"127.0.0.1:{port}",
        # It keeps its own series.
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
    }
    with subprocess.Popen([sys.executable, "manage.py", "jobs"], cwd=ROOT, env=env) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def ports(
    production: ProductionRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[int]]]:
    """The port of each kind of process, with one of `jobs`."""
    made = production.ports | {"jobs": free_port()}
    with jobs(production, tmp_path_factory.mktemp("jobs"), made["jobs"]):
        yield {kind: [made[kind]] for kind in KINDS}


def scrapes_on_record() -> int:
    return Event.objects.filter(kind="audit.request.refused", data__route="/metrics").count()


def test_SA_15_prometheus_scrapes_each_kind_of_process(
    production: ProductionRegistry, ports: dict[str, list[int]], tmp_path: Path
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
    ports: dict[str, list[int]], tmp_path: Path
) -> None:
    with Prometheus(tmp_path, ports, "an older token") as prometheus:
        down = dict.fromkeys(KINDS, ("down", "server returned HTTP status 404 Not Found"))
        until(
            lambda: prometheus.targets() == down, f"not all are down: {prometheus.targets()}", 120
        )
    assert scrapes_on_record() == 0


def test_the_documented_command_writes_the_token_for_prometheus(
    production: ProductionRegistry, tmp_path: Path
) -> None:
    [command] = re.findall(r"^sed -n .*METRICS_TOKEN.*$", OPERATIONS.read_text(), re.MULTILINE)
    command = command.replace("/etc/agentauth/", f"{production.home}/etc/agentauth/")
    command = command.replace("/etc/prometheus/", f"{tmp_path}/")
    subprocess.run(["sh", "-c", command], check=True)
    assert (tmp_path / "agentauth-token").read_text() == production.env["METRICS_TOKEN"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_series_of_each_process_pass_the_linter_of_prometheus(
    production: ProductionRegistry, ports: dict[str, list[int]], kind: str
) -> None:
    token = {"Authorization": f"Bearer {production.env['METRICS_TOKEN']}"}
    page = httpx.get(f"http://127.0.0.1:{ports[kind][0]}/metrics", headers=token, timeout=30)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=page.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (page.status_code, done.returncode, done.stdout + done.stderr) == (200, 0, "")


def test_a_process_that_stops_fires_its_alert_until_it_is_back(
    production: ProductionRegistry, ports: dict[str, list[int]], tmp_path: Path
) -> None:
    series, port = tmp_path / "series", free_port()
    series.mkdir()
    alert = f'ALERTS{{alertname="AgentAuthProcessDown", instance="127.0.0.1:{port}"}}'
    firing = alert.replace("}", ', alertstate="firing"}')
    targets = ports | {"jobs": [port]}
    with Prometheus(tmp_path, targets, production.env["METRICS_TOKEN"]) as prometheus:
        with jobs(production, series, port):
            until(lambda: prometheus.targets().get("jobs") == ("up", ""), "it does not start", 60)
            until(lambda: not prometheus.samples(alert), "it is said to be down", 30)
        until(lambda: bool(prometheus.samples(firing)), "no alert", 60)
        with jobs(production, series, port):
            until(lambda: not prometheus.samples(alert), "the alert does not end", 60)


@pytest.mark.parametrize("kind", KINDS)
def test_SA_15_each_kind_of_process_says_how_it_is(ports: dict[str, list[int]], kind: str) -> None:
    """Probed as a load balancer or an orchestrator would: by address."""

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            told = httpx.get(f"http://127.0.0.1:{ports[kind][0]}/health/ready", timeout=30)
            return told.is_success and set(told.json()["checks"].values()) == {"ok"}
        return False

    until(is_ready, f"{kind} is not ready", 60)
