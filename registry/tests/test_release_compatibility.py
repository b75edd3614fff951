"""Which releases may run on which database, and that the database records its release."""

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from audit.services import Actor
from registry import release_compatibility

# Here, because a command that is imported while `fingerprint` is patched keeps the patch.
from registry.management.commands import record_settings as _command  # noqa: F401
from registry.models import Installation
from registry.release_compatibility import RELEASE, disagreement, raise_release
from registry.services import settings_agreement
from registry.services.settings_agreement import halt, looked_at, record_settings

OPERATOR = Actor("system", "test")


@pytest.mark.parametrize(("database", "code"), [(5, 5), (6, 5)])
def test_a_release_runs_on_its_own_database_and_the_next_one(database: int, code: int) -> None:
    assert disagreement(database, code=code) is None


@pytest.mark.parametrize(
    ("database", "todo"),
    [(4, "manage.py migrate"), (1, "manage.py migrate"), (7, "install"), (70, "install")],
)
def test_on_every_other_it_names_both_and_what_to_do(database: int, todo: str) -> None:
    told = disagreement(database, code=5)
    assert told is not None
    assert "release 5" in told
    assert f"release {database}" in told
    assert todo in told


@pytest.mark.django_db
def test_the_database_says_the_release_it_was_migrated_to() -> None:
    record_settings(actor=OPERATOR, now=timezone.now())
    assert Installation.objects.get().release == RELEASE


def looked() -> Installation:
    """What a read of the replay cache's row returns, from the row itself."""
    return Installation.objects.annotate(**looked_at()).get()


@pytest.mark.django_db
@pytest.mark.parametrize(("ahead", "halted"), [(-1, True), (0, False), (1, False), (2, True)])
def test_a_process_that_finds_another_release_acts_by_the_rule(ahead: int, *, halted: bool) -> None:
    record_settings(actor=OPERATOR, now=timezone.now())
    Installation.objects.update(release=RELEASE + ahead)
    found = halt(looked())  # type: ignore[arg-type]  # a row with what `looked_at` adds to it
    assert bool(found) is halted
    if found:
        assert f"release {RELEASE + ahead}" in found.reason
        assert str(RELEASE + ahead) not in found.told


@pytest.mark.django_db
def test_settings_are_recorded_without_a_word_of_the_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded by an earlier release, running beside the next one."""
    record_settings(actor=OPERATOR, now=timezone.now())
    Installation.objects.update(release=RELEASE + 1)
    elsewhere = settings_agreement.fingerprint() | {"PUBLIC_URL": "elsewhere"}
    monkeypatch.setattr(settings_agreement, "fingerprint", lambda: elsewhere)
    record_settings(change=["PUBLIC_URL"], actor=OPERATOR, now=timezone.now())
    assert Installation.objects.get().release == RELEASE + 1


@pytest.mark.django_db
@pytest.mark.parametrize("changed", ["PUBLIC_URL", "REDIS_URL"])
def test_another_public_url_with_the_same_secret_key_is_warned_of(
    changed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a copy of another installation: both would accept each other's sealed rows."""
    record_settings(actor=OPERATOR, now=timezone.now())
    elsewhere = settings_agreement.fingerprint() | {changed: "elsewhere"}
    monkeypatch.setattr(settings_agreement, "fingerprint", lambda: elsewhere)
    call_command("record_settings", change=[changed])
    said = "give this one a SECRET_KEY of its own" in capsys.readouterr().err
    assert said == (changed == "PUBLIC_URL")


@pytest.mark.django_db
@pytest.mark.parametrize(("to", "then"), [(RELEASE + 3, RELEASE + 3), (RELEASE - 1, RELEASE)])
def test_a_migration_raises_the_release_and_never_lowers_it(to: int, then: int) -> None:
    record_settings(actor=OPERATOR, now=timezone.now())
    apps = MigrationExecutor(connection).loader.project_state().apps
    raise_release(to).code(apps, None)  # type: ignore[arg-type]  # it changes no table
    assert Installation.objects.get().release == then


def test_code_and_database_are_at_most_one_release_apart() -> None:
    """A migration may remove what the release before the previous one needs."""
    assert release_compatibility.BESIDE == 1
