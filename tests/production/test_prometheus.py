"""A real Prometheus with the files of deploy/ scrapes each kind of installed process."""

import contextlib
import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from audit.models import Event
from tests.actors import may_pay, scene
from tests.asking import answered
from tests.live import ROOT
from tests.postgres import free_port
from tests.production.registry import ProductionRegistry
from tests.prometheus import Prometheus
from tests.test_alert_rules import PROMQL
from tests.waiting import until

pytestmark = [pytest.mark.production, pytest.mark.prometheus]
KINDS = ("web", "verifier", "jobs", "worker", "beat")
OPERATIONS = ROOT / "docs/operations.md"
READ = {"type": "read", "resource": "calendar"}
PAY = may_pay("50.00")
# For two scrapes and what is recorded from them (s), on a busy machine.
PANELS_WITHIN = 300
# Panels without data on a healthy system: nothing has failed.
EMPTY_IF_HEALTHY = {"Jobs that failed", "Answers 5xx by process"}


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


def listens(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        httpx.get(f"{url}/health/live", timeout=30)
        return True
    return False


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
        until(lambda: {"web", "verifier"} <= prometheus.values(asked).keys(), "nothing is counted")
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


def use_each_part(production: ProductionRegistry) -> None:
    """A token, decisions of each kind, a confirmation, and a revocation."""
    limits = {
        "budgets": [{"value": "3.00", "currency": "EUR", "period": "total", "zone": "UTC"}],
        "confirm_above": {"value": "2.00", "currency": "EUR"},
    }
    place = scene(production, capabilities=[READ, PAY], envelope=limits)
    token = place.token()
    told = [answered(lambda: place.ask(place.question(token, READ))).json()]
    for value in ("2.50", "2.00", "2.00"):
        amount = {"value": value, "currency": "EUR"}
        payment = {"type": "transact", "resource": "payments", "amount": amount}
        named = secrets.token_urlsafe(16)

        def pay(payment: dict[str, Any] = payment, named: str = named) -> httpx.Response:
            return place.ask(place.question(token, payment, idempotency_key=named))

        told.append(answered(pay).json())
    reasons = [each.get("reason") for each in told]
    assert reasons == [None, "confirm_above", None, "budget"], told
    assert place.api("POST", f"/v1/grants/{place.grant_id}/revoke", {}).status_code == 204


def test_each_panel_of_the_dashboards_has_data(
    production: ProductionRegistry, ports: dict[str, list[int]], tmp_path: Path
) -> None:
    use_each_part(production)
    panels = [
        (panel["title"], [target["expr"] for target in panel["targets"]])
        for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
    ]
    assert len(panels) > 40
    with Prometheus(tmp_path, ports, production.env["METRICS_TOKEN"]) as prometheus:

        def has_data(query: str) -> bool:
            # In place of what Grafana puts for this variable.
            return bool(prometheus.samples(query.replace("$__rate_interval", "1m")))

        end = time.monotonic() + PANELS_WITHIN
        while {title for title, _ in panels} - EMPTY_IF_HEALTHY and time.monotonic() < end:
            time.sleep(1)
            panels = [panel for panel in panels if not any(map(has_data, panel[1]))]
        assert {title for title, _ in panels} <= EMPTY_IF_HEALTHY
        # What the runbook tells an operator to ask is a query too; no data is an answer.
        asked = [
            query
            for page in sorted((ROOT / "docs/runbook").glob("*.md"))
            for block in PROMQL.findall(page.read_text())
            for query in block.splitlines()
        ]
        assert asked
        for query in asked:
            prometheus.samples(query)


@pytest.mark.parametrize("kind", KINDS)
def test_the_series_of_each_process_pass_the_linter_of_prometheus(
    production: ProductionRegistry, ports: dict[str, list[int]], kind: str
) -> None:
    token = {"Authorization": f"Bearer {production.env['METRICS_TOKEN']}"}
    url = f"http://127.0.0.1:{ports[kind][0]}"
    until(lambda: listens(url), f"{kind} does not start")
    page = httpx.get(f"{url}/metrics", headers=token, timeout=30)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=page.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (page.status_code, done.returncode, done.stdout + done.stderr) == (200, 0, "")


@pytest.mark.long
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
            until(lambda: prometheus.targets().get("jobs") == ("up", ""), "it does not start")
            until(lambda: not prometheus.samples(alert), "it is said to be down")
        until(lambda: bool(prometheus.samples(firing)), "no alert")
        with jobs(production, series, port):
            until(lambda: not prometheus.samples(alert), "the alert does not end")


@pytest.mark.parametrize("kind", KINDS)
def test_SA_15_each_kind_of_process_says_how_it_is(ports: dict[str, list[int]], kind: str) -> None:
    """Probed as a load balancer or an orchestrator would: by address."""

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            told = httpx.get(f"http://127.0.0.1:{ports[kind][0]}/health/ready", timeout=30)
            return told.is_success and set(told.json()["checks"].values()) == {"ok"}
        return False

    until(is_ready, f"{kind} is not ready")
