"""A copy of an earlier test's start equals what the steps would write, and is never outdated."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from pytest_django.fixtures import Settings

from audit.models import Event
from kms.services import ensure_key
from registry.models import Human
from registry.services.humans import create_human
from registry.tests.cast import TESTER
from tests import snapshots
from tests.snapshots import LIFETIME, Snapshots

pytestmark = pytest.mark.django_db
Step = Callable[..., tuple[int, list[Any]]]


@pytest.fixture
def twice(db: None, now: datetime) -> Iterator[Step]:
    """Take one step in two tests: how often it ran, and all rows after each."""
    kept = Snapshots()

    def take(
        step: Callable[[], Any],
        before: Callable[[], object] = lambda: None,
        later: timedelta = timedelta(0),
    ) -> tuple[int, list[Any]]:
        ran, states = [], []

        def counted() -> Any:
            ran.append(step)
            return step()

        for moment in (now, now + later):
            with transaction.atomic():
                kept.begin_test()
                before()
                kept.build(counted, "a step", now=moment, copy=deepcopy)
                states.append(snapshots._dump())
                transaction.set_rollback(True)
        return len(ran), states

    yield take
    connection.execute_wrappers.remove(kept._watch)


@pytest.fixture
def alice(now: datetime) -> Callable[[], Human]:
    return lambda: create_human(email="a@example.org", name="Alice", actor=TESTER, now=now)


def test_a_copy_has_every_row_that_the_step_wrote(twice: Step, alice: Any) -> None:
    ran, (first, second) = twice(alice)
    assert ran == 1
    assert first == second
    assert len(first["registry_human"]) == 1
    assert first["audit_event"]


def test_a_copy_has_every_row_that_the_step_changed(db: None, alice: Any, now: datetime) -> None:
    kept = Snapshots()
    states = []
    for _ in range(2):
        with transaction.atomic():
            kept.begin_test()
            for name, act in (("made", alice), ("renamed", lambda: rename("Alice B."))):
                kept.build(act, name, now=now, copy=lambda _: None)
            states.append(snapshots._dump())
            transaction.set_rollback(True)
    connection.execute_wrappers.remove(kept._watch)
    assert states[0] == states[1]
    assert "Alice B." in str(states[1]["registry_human"])


def rename(name: str) -> None:
    Human.objects.update(name=name)


def test_another_write_before_the_step_lets_it_run(twice: Step, alice: Any, now: datetime) -> None:
    def another() -> None:
        create_human(email="b@example.org", name="Bob", actor=TESTER, now=now)

    ran, (_, second) = twice(alice, another)
    assert ran == 2
    assert len(second["registry_human"]) == 2


def test_reading_before_the_step_does_not(twice: Step, alice: Any) -> None:
    assert twice(alice, Event.objects.count)[0] == 1


@pytest.mark.parametrize("later", [LIFETIME + timedelta(seconds=1), timedelta(seconds=-1)])
def test_step_of_another_time_runs(twice: Step, alice: Any, later: timedelta) -> None:
    assert twice(alice, later=later)[0] == 2


def test_a_key_comes_with_its_file(
    twice: Step, settings: Settings, tmp_path: Path, now: datetime
) -> None:
    folders = iter([tmp_path / "one", tmp_path / "two"])

    def elsewhere() -> None:
        settings.KEY_DIRECTORY = next(folders)

    ran, _ = twice(lambda: ensure_key(purpose="token", actor=TESTER, now=now) and None, elsewhere)
    assert ran == 1
    [one], [two] = ([*(tmp_path / name).iterdir()] for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert two.stat().st_mode & 0o777 == 0o600
