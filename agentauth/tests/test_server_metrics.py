"""What a scrape says of a server's processes and certificate, and of allowed payments."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from pytest_django import DjangoCaptureOnCommitCallbacks

from agentauth.observability import server_metrics
from agentauth.observability.metrics import count_events
from agentauth.observability.server_metrics import ServerCollector
from audit import kinds
from audit.models import Event
from tests.certificates import self_signed
from verifier.tests.scene import PAY, Scene, key, scene


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> ServerCollector:
    monkeypatch.setattr(ServerCollector, "serves", True)
    monkeypatch.setattr(os, "getppid", os.getpid)
    return ServerCollector()


def values(collector: ServerCollector) -> dict[str, float]:
    return {family.name: family.samples[0].value for family in collector.collect()}


def test_memory_is_that_of_all_processes_of_the_server(collector: ServerCollector) -> None:
    """Here the children of this process stand for those of gunicorn's master."""
    before = values(collector)
    program = "import sys; kept = bytearray(20_000_000); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        child.stdout.readline()
        after = values(collector)
        child.communicate()
    names = "agentauth_server_processes", "agentauth_server_memory_bytes"
    assert after[names[0]] == before[names[0]] + 1
    assert 20_000_000 < after[names[1]] - before[names[1]] < 60_000_000


def test_a_process_that_is_no_server_reports_none_of_it() -> None:
    assert list(ServerCollector().collect()) == []


def test_the_end_of_the_servers_own_certificate_is_reported(
    collector: ServerCollector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "agentauth_certificate_end_timestamp_seconds"
    assert name not in values(collector)
    made = self_signed(tmp_path)
    monkeypatch.setattr(ServerCollector, "certificate", str(made))
    end = datetime.fromtimestamp(values(collector)[name], UTC)
    assert abs(end - datetime.now(UTC) - timedelta(days=1)) < timedelta(minutes=5)
    made.write_text("half a certif")
    assert name not in values(collector)


@pytest.mark.django_db
def test_allowed_payments_are_summed_by_currency(
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    def read() -> list[float]:
        name, labels = "agentauth_payment_amount", {"currency": "EUR"}
        return [
            REGISTRY.get_sample_value(f"{name}_{part}", labels) or 0 for part in ("count", "sum")
        ]

    place: Scene = scene(PAY)
    count, total = read()
    with django_capture_on_commit_callbacks(execute=True):
        again = key()
        for value, operation in (("12.50", again), ("12.50", again), ("9000.00", key())):
            place.pay(value, operation)
    assert read() == [count + 1, total + 12.5]


def test_a_call_without_an_action_is_no_payment() -> None:
    """The service asked whether the token is good, and named no action."""
    for data in ({"action": None}, {}, {"action": {"type": "read"}}):
        count_events(kinds.DECISION_ALLOWED, 1, Event(kind=kinds.DECISION_ALLOWED, data=data))


def test_a_process_that_ended_has_no_memory() -> None:
    assert server_metrics._memory(2**22 + 1) is None
