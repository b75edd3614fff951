"""Each fault fires the alerts that docs/runbook explains, and they end after the fault has.

A real Prometheus scrapes a live system and evaluates the rules, with all durations SHORTER
(tests/prometheus.py). One fault is also in CI: tests/production/test_prometheus.py stops `jobs`.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests import gcp_kms, redis_servers
from tests.actors import Scene, scene
from tests.faults.alert_faults import FAULTS, STORE, store_takes_all, store_takes_nothing
from tests.faults.cast import budget
from tests.faults.clients import PAY, READ, question_of
from tests.faults.stage import Stage, stage
from tests.faults.table import Results
from tests.faults.test_table import THREE
from tests.live import ROOT, LiveRegistry, LiveServer
from tests.postgres import free_port
from tests.prometheus import EVERY, SHORTER, Prometheus
from tests.waiting import until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flow,
    pytest.mark.long,
    pytest.mark.postgres,
    pytest.mark.prometheus,
    pytest.mark.redis,
]
TOKEN = "only-for-the-collector-of-this-test"
ENDS_WITHIN = 240
# Longer than each `for` of the critical alerts, SHORTER.
HEALTHY_SECONDS = 10
# For the one alert about days: a day is a minute, and an hour of the archiver ARCHIVE_EVERY.
DAYS_SHORTER, ARCHIVE_EVERY = 1440, 2.5


class Witness(LiveServer):
    """`agentauth witness` for the log of a stage; known by `setting` before the log has keys."""

    def __init__(self, directory: Path) -> None:
        self.port, self.log = free_port(), directory / "witness.log"
        self.env = {}
        files = ["--key", str(directory / "key.json"), "--state", str(directory / "state.sqlite")]
        self.logs = directory / "logs"
        agentauth = [sys.executable, "-m", "agentauth.cli"]
        created = subprocess.run(
            [*agentauth, "witness-keygen", "witness.example", *files, "--json"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        vkey = json.loads(created.stdout)["vkey"]
        self.setting = f"{vkey} http://127.0.0.1:{self.port}"
        self.command = [
            *agentauth, "witness", *files, "--logs", str(self.logs), "--port", str(self.port),
        ]  # fmt: skip

    def wait_until_ready(self) -> None:
        """The log asks again until it answers."""

    def watch(self, registry: LiveServer) -> None:
        found = httpx.get(f"{registry.url}/.well-known/agentauth").json()
        self.logs.write_text("\n".join(found["audit_vkeys"]) + "\n")
        self.start()


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Witness]:
    made = Witness(tmp_path_factory.mktemp("witness"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def held(
    tmp_path_factory: pytest.TempPathFactory, witness: Witness
) -> Iterator[tuple[Stage, dict[str, list[int]]]]:
    """The system, and where its processes report."""
    directory, port = tmp_path_factory.mktemp("alerts"), free_port()
    (directory / STORE).mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(directory / STORE)]
    subprocess.run(mount, check=True)
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.callback(subprocess.run, ["umount", "-l", str(directory / STORE)], check=True)
        patch.setenv("METRICS_TOKEN", TOKEN)
        patch.setenv("OPERATIONS_BIND", f"127.0.0.1:{port}")
        patch.setenv("AUDIT_STORE", f"file:{directory / STORE}")
        patch.setenv("AUDIT_WITNESSES", witness.setting)
        with redis_servers.server() as redis, stage(directory, redis, seed=3) as made:
            witness.watch(made.registry)
            verifiers = [made.a.port, made.b.port]
            targets = {"web": [made.registry.port], "verifier": verifiers, "jobs": [port]}
            with traffic(made):
                yield made, targets


@contextlib.contextmanager
def traffic(held: Stage) -> Iterator[None]:
    """Reads and payments at each verifier in turn, and an event each time through the registry."""
    limits = {"budgets": [budget("1000000.00", "total")]}
    place = scene(held.registry, capabilities=[READ, PAY], envelope=limits)
    token, ended = place.token(), threading.Event()

    def run() -> None:
        nonces: dict[str, str | None] = {}
        for server in itertools.cycle(held.verifiers):
            if ended.wait(0.2):
                return
            with contextlib.suppress(httpx.TransportError):
                nonce = ask(server, place, token, nonces.get(server.url))
                nonces[server.url] = nonce or nonces.get(server.url)
            with contextlib.suppress(httpx.TransportError):
                place.api("POST", "/v1/tokens", {"grant_id": place.grant_id})

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def ask(server: LiveServer, place: Scene, token: str, nonce: str | None) -> str | None:
    credentials = (place.client_id, place.client_secret)
    for action, key in ((READ, None), (THREE, str(uuid.uuid4()))):
        question = question_of(place, token, action, nonce, key)
        answer = httpx.post(f"{server.url}/v1/verify", json=question, auth=credentials, timeout=30)
        nonce = answer.json().get("nonce") or nonce if answer.is_success else nonce
    return nonce


@pytest.fixture(scope="module")
def prometheus(
    held: tuple[Stage, dict[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    with Prometheus(tmp_path_factory.mktemp("prometheus"), held[1], TOKEN) as running:
        until(lambda: len(running.targets()) == 3, "Prometheus does not start", 60)
        yield running


def wait(prometheus: Prometheus, holds: Callable[[set[str]], bool], seconds: float) -> float:
    """Wait until it holds of the alerts that fire; returns for how long (s)."""
    began = time.monotonic()
    while not holds(prometheus.firing()):
        assert time.monotonic() - began < seconds, f"these fire: {sorted(prometheus.firing())}"
        time.sleep(0.5)
    return time.monotonic() - began


def note(results: Results, name: str, alerts: set[str], fired: float, ended: float) -> None:
    results.lines.append(
        f"{name}: {', '.join(sorted(alerts))} fired within {fired:.0f} s and ended within "
        f"{ended:.0f} s, with all durations {SHORTER} times shorter"
    )


def test_a_healthy_system_fires_no_alert(prometheus: Prometheus) -> None:
    """Except that a busy machine may answer verify late, or shed calls."""
    seen, ended = set(), "agentauth_job_ended_timestamp_seconds"
    # Until the first job has ended, it seems that none runs.
    until(lambda: bool(prometheus.samples(ended)), "no job ends", 60)
    time.sleep(2 * float(EVERY.removesuffix("s")))
    wait(prometheus, lambda firing: not without_verify(firing), ENDS_WITHIN)
    for _ in range(HEALTHY_SECONDS):
        time.sleep(1)
        seen |= without_verify(prometheus.firing())
    assert seen == set()


def without_verify(firing: set[str]) -> set[str]:
    return {name for name in firing if not name.startswith("AgentAuthVerify")}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fires_its_alerts_and_its_end_ends_them(
    held: tuple[Stage, dict[str, list[int]]], prometheus: Prometheus, results: Results, name: str
) -> None:
    """Others may fire too. Alerts on a share of days last for hours: their end is not awaited."""
    fault, made = FAULTS[name], held[0]
    ending = {alert for alert in fault.alerts if not alert.endswith("Slowly")}
    wait(prometheus, ending.isdisjoint, ENDS_WITHIN)
    fault.begin(made)
    try:
        fired = wait(prometheus, fault.alerts.issubset, fault.within)
    finally:
        fault.end(made)
    ended = wait(prometheus, ending.isdisjoint, ENDS_WITHIN)
    note(results, name, set(fault.alerts), fired, ended)


def test_a_witness_that_is_away_fires_its_alert(
    prometheus: Prometheus, witness: Witness, results: Results
) -> None:
    alert = {"AgentAuthLogNotCosigned"}
    wait(prometheus, alert.isdisjoint, ENDS_WITHIN)
    witness.stop()
    try:
        # An hour, SHORTER.
        fired = wait(prometheus, alert.issubset, 240)
    finally:
        witness.start()
    note(results, "the witness stops", alert, fired, wait(prometheus, alert.isdisjoint, 240))


def test_an_archive_that_lags_fires_its_alert(
    held: tuple[Stage, dict[str, list[int]]],
    tmp_path_factory: pytest.TempPathFactory,
    results: Results,
) -> None:
    """The archiver runs more often than in production by as much as the rules are shortened."""
    (made, targets), alert, ended = held, {"AgentAuthArchiveLags"}, threading.Event()

    def archive() -> None:
        while not ended.wait(ARCHIVE_EVERY):
            made.registry.manage("archive_audit", check=False)

    thread = threading.Thread(target=archive)
    thread.start()
    folder = tmp_path_factory.mktemp("days")
    try:
        with Prometheus(folder, targets, TOKEN, shorter=DAYS_SHORTER) as running:
            until(lambda: len(running.targets()) == 3, "Prometheus does not start", 60)
            store_takes_nothing(made)
            try:
                fired = wait(running, alert.issubset, 240)
            finally:
                store_takes_all(made)
            note(results, "the archive lags", alert, fired, wait(running, alert.isdisjoint, 240))
    finally:
        ended.set()
        thread.join()


def test_a_key_service_that_throttles_fires_its_alert(
    tmp_path_factory: pytest.TempPathFactory, results: Results
) -> None:
    """With the double of Google Cloud KMS, since no emulator throttles."""
    alert, folder = {"AgentAuthKeyBackendThrottled"}, tmp_path_factory.mktemp("throttled")
    with gcp_kms.service(tmp_path_factory.mktemp("gcp")) as service:
        env = {"KEY_BACKEND": f"gcpkms:{gcp_kms.RING}", "METRICS_TOKEN": TOKEN, **service.env}
        env |= dict.fromkeys(("AUDIT_STORE", "AUDIT_WITNESSES", "OPERATIONS_BIND"), "")
        registry = LiveRegistry(folder, workers=1, env=env)
        registry.prepare()
        registry.start()
        place, ended = scene(registry, capabilities=[READ], envelope={}), threading.Event()

        def ask_for_tokens() -> None:
            while not ended.wait(0.2):
                place.api("POST", "/v1/tokens", {"grant_id": place.grant_id})

        thread = threading.Thread(target=ask_for_tokens)
        thread.start()
        (folder / "prometheus").mkdir()
        try:
            with Prometheus(folder / "prometheus", {"web": [registry.port]}, TOKEN) as running:
                until(lambda: len(running.targets()) == 1, "Prometheus does not start", 60)
                service.refusal = grpc.StatusCode.RESOURCE_EXHAUSTED
                fired = wait(running, alert.issubset, 120)
                service.well()
                ended_within = wait(running, alert.isdisjoint, ENDS_WITHIN)
            note(results, "the key service throttles", alert, fired, ended_within)
        finally:
            ended.set()
            thread.join()
            registry.stop()
