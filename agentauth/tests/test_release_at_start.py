"""A process on another release's database: what it does at its start, and its readiness."""

from collections.abc import Iterator
from importlib import import_module

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone

from agentauth import missing_installation_steps
from agentauth.observability import health
from agentauth.startup_checks import Start
from audit.services import Actor
from registry.models import Installation
from registry.release_compatibility import RELEASE
from registry.services.settings_agreement import record_settings
from verifier.services import replay_cache_lease

pytestmark = pytest.mark.django_db
keys = import_module("kms.migrations.0001_squashed_0005_keys")


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(health, "_readiness", health.Readiness())
    monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
    health._check_migrations.cache_clear()
    yield
    health._check_migrations.cache_clear()


def database_is_at(release: int) -> None:
    record_settings(actor=Actor("system", "test"), now=timezone.now())
    Installation.objects.update(release=release)


@pytest.mark.parametrize("ahead", [-1, 2])
def test_it_does_not_start_and_names_both_releases(
    monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    database_is_at(RELEASE + ahead)
    # The connection belongs to the test.
    monkeypatch.setattr(connection, "close", lambda: None)
    with pytest.raises(SystemExit) as ended:
        Start().check()
    told = str(ended.value)
    assert f"code is release {RELEASE}" in told
    assert f"database is at release {RELEASE + ahead}" in told
    assert "\n" not in told


@pytest.mark.parametrize("ahead", [0, 1])
def test_it_starts_on_its_own_and_the_next(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    database_is_at(RELEASE + ahead)
    monkeypatch.setattr(connection, "close", lambda: None)
    Start().check()


def migrations_hold() -> bool:
    checks: dict[str, str] = (
        Client(raise_request_exception=False).get("/health/ready").json()["checks"]
    )
    return checks["migrations"] == "ok"


def test_it_is_ready_where_a_later_release_has_migrated() -> None:
    MigrationRecorder(connection).record_applied("registry", "9999_of_a_later_release")
    assert migrations_hold()


@pytest.mark.parametrize(
    "waiting",
    [
        [("kms", "0006_wider_seals"), ("kms", "0001_squashed_0005_keys"), *keys.Migration.replaces],
        [("kms", "0005_seals")],
    ],
    ids=["all", "part of a squashed one"],
)
def test_it_is_not_ready_before_its_own_migrations(waiting: list[tuple[str, str]]) -> None:
    assert missing_installation_steps.is_migrated()
    for app, name in waiting:
        MigrationRecorder(connection).record_unapplied(app, name)
    assert not migrations_hold()
    assert not missing_installation_steps.is_migrated()
