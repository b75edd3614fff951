"""Readiness tells the truth, names what fails and nothing else, and heals by itself."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from django.db import OperationalError
from django.db.migrations.executor import MigrationExecutor
from django.test import Client

from agentauth import health
from audit.services import Actor
from kms.models import Key
from kms.services import disable_key

pytestmark = pytest.mark.django_db
SYSTEM = Actor("system", "test")


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(health, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(health, "_readiness", health.Readiness())
    health._migrated.cache_clear()
    yield
    health._migrated.cache_clear()


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
    assert set(body["checks"]) == {"database", "migrations", "token_key", "audit_queue"}
    return [name for name, state in body["checks"].items() if state == "failing"]


def test_alive_is_not_ready(token_key: None) -> None:
    assert ask("/health/live").json() == {"status": "ok"}
    assert failing(ask()) == []
    assert failing(ask("/health/startup")) == []


def test_OG_17_no_key_then_a_key_is_ready_again(now: datetime) -> None:
    assert failing(ask()) == ["token_key"]
    assert ask("/health/live").status_code == 200
    from kms.services import ensure_key

    ensure_key(purpose="token", actor=SYSTEM, now=now)
    assert failing(ask()) == []
    disable_key(kid=Key.objects.get(purpose="token").kid, actor=SYSTEM, now=now)
    assert failing(ask()) == ["token_key"]


def test_OG_17_migrations_that_wait_then_do_not(monkeypatch: pytest.MonkeyPatch, token_key: None) -> None:
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


def test_a_queue_beyond_its_bound_is_not_ready(monkeypatch: pytest.MonkeyPatch, token_key: None) -> None:
    monkeypatch.setattr(health, "MAX_WAITING_EVENTS", 0)
    assert failing(ask()) == ["audit_queue"]


def test_probes_do_not_load_the_database(monkeypatch: pytest.MonkeyPatch, token_key: None) -> None:
    asked: list[int] = []
    monkeypatch.setattr(health, "KEPT_SECONDS", 60.0)
    monkeypatch.setitem(health.CHECKS, "database", lambda: asked.append(1))
    for _ in range(20):
        ask()
    assert asked == [1]
