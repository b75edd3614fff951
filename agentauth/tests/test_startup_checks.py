"""What a process says at its start about an operator's mistake: one line, with what to do."""

from datetime import timedelta

import pytest
from django.db import OperationalError, ProgrammingError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth import startup_checks
from agentauth.startup_checks import Start, StartRefusedError

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _connection_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "close", lambda: None)


def lacking(monkeypatch: pytest.MonkeyPatch, *, of_verifier: bool) -> str:
    """What a serving process says whose role lacks a right."""
    monkeypatch.setattr(startup_checks, "missing_rights", lambda _kind: ("judge", ["DELETE on x"]))
    monkeypatch.setattr(startup_checks, "is_verifier_role", lambda: of_verifier)
    with pytest.raises(SystemExit) as ended:
        Start().check()
    return str(ended.value)


def test_the_verifiers_role_is_named_and_not_granted_more(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lacking(monkeypatch, of_verifier=True)
    assert said.startswith("agentauth: not started: DATABASE_URL names judge, the role of the ver")
    assert "grant_" not in said


def test_a_serving_role_without_its_grants_is_told_to_grant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = lacking(monkeypatch, of_verifier=False)
    assert "the role judge of DATABASE_URL lacks DELETE on x. Run `" in said


def test_AU_27_a_role_that_may_change_the_log_serves_only_in_development(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(startup_checks, "may_change_log", lambda: True)
    settings.DEVELOPMENT = True
    startup_checks._role_is_bounded()
    settings.DEVELOPMENT = False
    with pytest.raises(StartRefusedError, match=r"DATABASE_URL may change the log.*Name the serv"):
        startup_checks._role_is_bounded()
    monkeypatch.setattr(startup_checks, "may_change_log", lambda: False)
    startup_checks._role_is_bounded()


@pytest.mark.parametrize(
    ("error", "begins", "advice"),
    [
        (
            ProgrammingError('relation "verifier_home" does not exist\nLINE 1: SELECT'),
            'the database is not migrated (relation "verifier_home" does not exist): run `',
            "init_production VERIFIER_ROLE`",
        ),
        (OperationalError("connection refused"), "the database is unavailable (connection", ""),
    ],
)
def test_a_database_without_tables_is_not_called_unavailable(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    begins: str,
    advice: str,
) -> None:
    def ask() -> None:
        raise error

    monkeypatch.setattr(startup_checks, "_ask", ask)
    start = Start()
    start.check()
    assert start.pending
    [line] = [each.getMessage() for each in caplog.records]
    assert line.startswith(begins)
    assert advice in line
    assert line.endswith("answering 503 until the startup checks have passed")


def test_a_forgotten_migration_is_named_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    MigrationRecorder(connection).record_unapplied("registry", "0024_release_5")
    start = Start()
    start.check()
    [line] = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert line.startswith("the database lacks 1 migrations of this release, first registry.0024_r")
    assert "init_production VERIFIER_ROLE`, then restart" in line
    assert not start.pending


def test_a_wrong_clock_is_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown = timezone.now() + timedelta(hours=2)
    monkeypatch.setattr("registry.services.database_time.database_time", lambda: shown)
    Start().check()
    [line] = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert line.startswith("The clock of this host is 7200 s behind the database's: repair the tim")
