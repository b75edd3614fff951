"""While a process compares the database with its store, calls wait and probes do not (SA-13)."""

from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from time import sleep

import pytest
from django.db import connection
from django.test import Client

from agentauth.observability import health
from audit.checkpoints.rollback_check import Mark
from verifier.services import replay_cache_lease, rollback_hold
from verifier.services.replay_epochs import ReplayEpoch

# Other threads must see what the test wrote.
pytestmark = pytest.mark.django_db(transaction=True)


class Gate:
    """A running comparison, which ends when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.opened = Event(), Event()
        monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", rollback_hold.HistoryComparison())
        monkeypatch.setattr(rollback_hold, "check_history", self.check)
        monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
        # The wait for it must outlast the comparison.
        monkeypatch.setattr(replay_cache_lease, "COMPARE_SECONDS", 60)
        monkeypatch.setattr(replay_cache_lease, "PROBE_SECONDS", 0.01)
        monkeypatch.setattr(replay_cache_lease, "LEASE_SECONDS", 60)
        monkeypatch.setattr(health, "KEPT_SECONDS", 0)
        monkeypatch.setattr(health, "_readiness", health.Readiness())

    def check(self, _mark: Mark | None) -> None:
        self.begun.set()
        assert self.opened.wait(10)

    @staticmethod
    def call() -> ReplayEpoch:
        """The check a call makes in a server thread."""
        try:
            return replay_cache_lease.LEASE.current()
        finally:
            connection.close()

    @staticmethod
    def is_ready() -> bool:
        checks = Client().get("/health/ready").json()["checks"]
        assert checks["database"] == checks["configuration"] == "ok"
        return bool(checks["history"] == "ok")


def test_SA_13_readiness_waits_for_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gate.call)
        assert gate.begun.wait(10)
        assert not gate.is_ready()
        gate.opened.set()
        assert asked.result().number == 1
    assert gate.is_ready()


def test_SA_13_readiness_lets_the_comparison_begin_and_calls_wait_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that gets no calls from a load balancer yet."""
    gate = Gate(monkeypatch)
    assert not gate.is_ready()
    assert gate.begun.wait(10)
    assert not gate.is_ready()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gate.call)
        wait([asked], timeout=0.2)
        gate.opened.set()
        assert asked.result().number == 1
    assert gate.is_ready()


def test_SA_13_a_call_after_a_probes_comparison_looks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probe's own read came too early, and would count as fresh for another second."""
    gate = Gate(monkeypatch)
    monkeypatch.setattr(replay_cache_lease, "FRESH_SECONDS", 60)
    assert not gate.is_ready()
    assert gate.begun.wait(10)
    gate.opened.set()
    while rollback_hold.HISTORY_COMPARISON.is_comparing():
        sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(gate.call).result().number == 1


def test_SA_13_first_probe_is_ready_if_the_comparison_is_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe may reach any process, and each would be unready at its first."""
    gate = Gate(monkeypatch)
    monkeypatch.setattr(replay_cache_lease, "PROBE_SECONDS", 60)
    gate.opened.set()
    assert gate.is_ready()
