"""Readiness is right, names only what fails, and recovers by itself."""

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.db.migrations.executor import MigrationExecutor
from django.db.models import DateTimeField, Value
from django.test import Client
from django.utils import timezone
from prometheus_client import REGISTRY
from pytest_django.fixtures import Settings

from agentauth.observability import health
from agentauth.server.verifier_application import environ
from audit.services import Actor
from kms import services
from kms.backends import TRIAL
from kms.models import Key
from kms.services import disable_key
from verifier.services import replay_cache_lease, replay_epochs

pytestmark = pytest.mark.django_db
SYSTEM = Actor("system", "test")


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(health, "_readiness", health.Readiness())
    monkeypatch.setattr(health, "_signing", health.Signing("signing"))
    monkeypatch.setattr(health, "_writing", health.Writing("writable"))
    # By then the trial's thread has ended, or been told to.
    monkeypatch.setattr(health, "WAIT_SECONDS", 20.0)
    health._check_migrations.cache_clear()
    yield
    health._check_migrations.cache_clear()


def ask(path: str = "/health/ready") -> Any:
    return Client(raise_request_exception=False).get(path)


def failing(answer: Any) -> list[str]:
    body = answer.json()
    if answer.status_code == 200:
        assert body["status"] == "ok"
    else:
        assert (answer.status_code, body["error"]) == (503, "temporarily_unavailable")
        assert answer["Retry-After"] == "5"
    assert answer["Cache-Control"] == "no-store"
    assert set(body["checks"]) == {
        "database",
        "migrations",
        "configuration",
        "history",
        "token_key",
        "audit_queue",
        "clock",
        "signing",
        "writable",
    }
    return [name for name, state in body["checks"].items() if state == "failing"]


def test_alive_is_not_ready(token_key: None) -> None:
    assert ask("/health/live").json() == {"status": "ok"}
    assert failing(ask()) == []
    assert failing(ask("/health/startup")) == []


def test_OG_17_no_key_then_a_key_is_ready_again(now: datetime) -> None:
    assert failing(ask()) == ["token_key", "signing"]
    assert ask("/health/live").status_code == 200
    from kms.services import ensure_key

    ensure_key(purpose="token", actor=SYSTEM, now=now)
    assert failing(ask()) == []
    disable_key(kid=Key.objects.get(purpose="token").kid, actor=SYSTEM, now=now, even_last=True)
    assert failing(ask()) == ["token_key"]


@pytest.fixture
def no_signature(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> Iterator[Path]:
    """Keys are not where this process looks for them."""
    monkeypatch.setattr(health, "SIGN_RETRY_SECONDS", 0.0)
    there, settings.KEY_DIRECTORY = Path(settings.KEY_DIRECTORY), tmp_path
    services._open_signer.cache_clear()
    yield there
    services._open_signer.cache_clear()


def test_KM_14_a_key_that_does_not_sign_is_named_and_all_else_goes_on(
    token_key: None, no_signature: Path, settings: Settings
) -> None:
    answer = ask()
    assert (answer.status_code, failing(answer)) == (200, ["signing"])
    assert REGISTRY.get_sample_value("agentauth_ready", {"check": "signing"}) == 0
    assert str(no_signature) not in answer.content.decode()
    settings.KEY_DIRECTORY = no_signature
    assert failing(ask()) == []
    assert REGISTRY.get_sample_value("agentauth_ready", {"check": "signing"}) == 1


def test_a_process_that_signs_nothing_says_nothing_of_it(
    token_key: None, no_signature: Path
) -> None:
    answer = Client(headers={"agentauth.signs_nothing": "1"}).get("/health/ready")
    assert failing(answer) == ["signing"]
    scope = {
        "method": "GET", "path": "/health/ready", "raw_path": b"/health/ready", "query_string": b"",
        "http_version": "1.1", "scheme": "http", "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    # As the verifier's own process passes it on.
    told = {health.SIGNS_NOTHING: environ(scope, b"")[health.SIGNS_NOTHING]}
    assert Client().get("/health/ready", **told).json()["checks"] == dict.fromkeys(
        [*health.CHECKS, "writable"], "ok"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_unexpected_signer_error_fails_the_signing_check(
    monkeypatch: pytest.MonkeyPatch, token_key: None
) -> None:
    class Broken:
        def sign(self, message: bytes) -> bytes:
            raise RuntimeError

    assert failing(ask()) == []
    monkeypatch.setattr(health, "signer", lambda **_: Broken())
    monkeypatch.setattr(health, "WAIT_SECONDS", 20)
    health._signing._until = 0.0
    assert failing(ask()) == ["signing"]


def test_a_home_that_is_slow_holds_up_no_probe_and_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, token_key: None
) -> None:
    gate, begun, asked = threading.Event(), threading.Event(), []

    class Slow:
        def sign(self, message: bytes) -> bytes:
            asked.append(message)
            begun.set()
            gate.wait(20)
            return b""

    monkeypatch.setattr(health, "signer", lambda **_: Slow())
    monkeypatch.setattr(health, "WAIT_SECONDS", 0.01)
    assert [failing(ask()) for _ in range(5)] == [["signing"]] * 5
    assert begun.wait(20)
    assert asked == [TRIAL]
    gate.set()
    trial = health._signing._thread
    assert trial
    trial.join(20)
    assert [failing(ask()) for _ in range(5)] == [[]] * 5
    # The result is cached, since key services bill each call.
    assert asked == [TRIAL]


def test_OG_17_migrations_that_wait_then_do_not(
    monkeypatch: pytest.MonkeyPatch, token_key: None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MigrationExecutor, "migration_plan", lambda *_: ["one"])
        assert failing(ask()) == ["migrations"]
    assert failing(ask()) == []


def test_OG_17_DJ_18_a_database_that_is_away_is_named_and_not_described(
    monkeypatch: pytest.MonkeyPatch, token_key: None
) -> None:
    def away() -> None:
        raise OperationalError("connection to 10.0.0.7 refused: password of serving")

    with monkeypatch.context() as patch:
        patch.setitem(health.CHECKS, "database", away)
        answer = ask()
        assert failing(answer) == ["database"]
        assert "10.0.0.7" not in answer.content.decode()
    assert failing(ask()) == []


def test_full_audit_queue_is_reported_but_stays_ready(
    monkeypatch: pytest.MonkeyPatch, token_key: None
) -> None:
    monkeypatch.setattr(health, "MAX_WAITING_EVENTS", 0)
    answer = ask()
    assert answer.status_code == 200
    assert failing(answer) == ["audit_queue"]
    assert REGISTRY.get_sample_value("agentauth_ready", {"check": "audit_queue"}) == 0


def test_a_host_whose_clock_is_off_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, token_key: None
) -> None:
    later = Value(timezone.now() + timedelta(seconds=10), output_field=DateTimeField())
    with monkeypatch.context() as patch:
        patch.setattr(replay_epochs, "database_clock", lambda: later)
        assert failing(ask()) == ["clock"]
        assert REGISTRY.get_sample_value("agentauth_ready", {"check": "clock"}) == 0
    monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
    assert failing(ask()) == []


def test_a_scrape_runs_the_checks_where_no_probe_asks(now: datetime) -> None:
    def scraped(check: str) -> bool:
        page = Client().get("/metrics").content.decode()
        return f'agentauth_ready{{check="{check}"}} 1.0' in page

    assert not scraped("token_key")
    assert not scraped("signing")
    services.ensure_key(purpose="token", actor=SYSTEM, now=now)
    assert scraped("token_key")
    assert scraped("signing")
    assert scraped("writable")


def test_probes_do_not_load_the_database(monkeypatch: pytest.MonkeyPatch, token_key: None) -> None:
    asked: list[int] = []
    monkeypatch.setattr(health, "KEPT_SECONDS", 60.0)
    monkeypatch.setitem(health.CHECKS, "database", lambda: asked.append(1))
    for _ in range(20):
        ask()
    assert asked == [1]
