"""While a process compares the database with what is known outside, probes wait for nothing and calls wait for that (SA-13)."""

from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from time import sleep

import pytest
from django.db import connection
from django.test import Client

from agentauth import health
from audit.history import Mark
from verifier.services import history, home
from verifier.services.home import Tenure

# Other threads are to see what the test wrote.
pytestmark = pytest.mark.django_db(transaction=True)


class Gate:
    """A comparison that has begun, and ends when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.opened = Event(), Event()
        monkeypatch.setattr(history, "VOUCHED", history.Vouched())
        monkeypatch.setattr(history, "check_history", self.check)
        monkeypatch.setattr(home, "LEASE", home.Lease())
        # Whoever waits for it waits for longer than it lasts.
        monkeypatch.setattr(home, "COMPARE_SECONDS", 60)
        monkeypatch.setattr(home, "PROBE_SECONDS", 0.01)
        monkeypatch.setattr(home, "LEASE_SECONDS", 60)
        monkeypatch.setattr(health, "KEPT_SECONDS", 0)
        monkeypatch.setattr(health, "_readiness", health.Readiness())

    def check(self, _mark: Mark | None) -> None:
        self.begun.set()
        assert self.opened.wait(10)

    @staticmethod
    def call() -> Tenure:
        """What a call asks in a thread of the server."""
        try:
            return home.LEASE.current()
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
        assert asked.result().epoch == 1
    assert gate.is_ready()


def test_SA_13_readiness_lets_the_comparison_begin_and_calls_wait_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that no load balancer sends anything yet."""
    gate = Gate(monkeypatch)
    assert not gate.is_ready()
    assert gate.begun.wait(10)
    assert not gate.is_ready()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gate.call)
        wait([asked], timeout=0.2)
        gate.opened.set()
        assert asked.result().epoch == 1
    assert gate.is_ready()


def test_SA_13_a_call_after_a_probes_comparison_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe's own look could not know yet, and would be fresh for a second more."""
    gate = Gate(monkeypatch)
    monkeypatch.setattr(home, "FRESH_SECONDS", 60)
    assert not gate.is_ready()
    assert gate.begun.wait(10)
    gate.opened.set()
    while history.VOUCHED.is_comparing():
        sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(gate.call).result().epoch == 1


def test_SA_13_the_first_probe_of_a_process_is_ready_where_comparing_is_quick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a server's processes a probe reaches any: each would be not ready at its first."""
    gate = Gate(monkeypatch)
    monkeypatch.setattr(home, "PROBE_SECONDS", 60)
    gate.opened.set()
    assert gate.is_ready()
