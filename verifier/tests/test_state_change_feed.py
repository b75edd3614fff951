"""The feed of state changes misses none in any commit order, and forgets old ones."""

import threading
from datetime import datetime, timedelta

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.utils import timezone

from kms.state_change_publisher import Subject, publish_change
from verifier.models import StateChange
from verifier.services.state_change_feed import (
    KEPT_FOR,
    Change,
    forget_old_changes,
    publish,
    state_since,
)
from verifier.tests.state_cache_harness import open_transaction, settle

pytestmark = pytest.mark.django_db(transaction=True)


def test_outside_a_transaction_nothing_is_published() -> None:
    with pytest.raises(TransactionManagementError):
        publish_change(Subject.KEY, "x", now=timezone.now())
    assert not StateChange.objects.exists()


def say(subject_id: str, at: datetime | None = None) -> None:
    """Publish one change, and wait until no transaction is open that began before it."""
    say_at_once(subject_id, at)
    settle()


def say_at_once(subject_id: str, at: datetime | None = None) -> None:
    with transaction.atomic():
        publish(subject="agent", subject_id=subject_id, at=at or timezone.now())


def ids(position: int) -> tuple[list[str], int]:
    told = state_since(position)
    assert told.complete
    return [change.subject_id for change in told.changes], told.position


def test_reader_gets_each_change_since_its_position_once() -> None:
    start = state_since(0).position
    say("a")
    told = state_since(start)
    assert told.changes == (Change("agent", "a"),)
    say("b")
    assert ids(told.position)[0] == ["b"]
    assert ids(ids(told.position)[1])[0] == []


def test_a_position_from_elsewhere_is_answered_with_forget_everything() -> None:
    say("a")
    position = state_since(0).position
    assert not state_since(0).complete
    assert not state_since(position + 10**6).complete
    assert state_since(position).complete


@pytest.mark.postgres
def test_rows_copied_from_another_server_are_ignored_and_hide_nothing(now: datetime) -> None:
    """After a restore from a dump, rows may bear numbers that transactions here reach in a year."""
    # Without it, a position before the first change here means "forget everything".
    say("first")
    position = state_since(0).position
    StateChange.objects.create(
        position=position + 10**6, subject="agent", subject_id="copied", at=now
    )
    told = state_since(position)
    assert (told.changes, told.complete) == ((), True)
    say("a")
    assert ids(told.position)[0] == ["a"]


def test_old_changes_are_deleted_and_a_late_reader_learns_of_the_gap(now: datetime) -> None:
    long_ago = now - KEPT_FOR - timedelta(seconds=1)
    say("a", long_ago)
    first = StateChange.objects.get().position
    say("b", long_ago)
    say("c", now)
    assert state_since(first).complete
    assert forget_old_changes(now=now) == 2
    assert not state_since(first).complete
    # The newest stays at any age: without it, SQLite would restart its numbers.
    assert forget_old_changes(now=now + 2 * KEPT_FOR) == 0
    position = state_since(0).position
    say("d")
    assert ids(position)[0] == ["d"]


def test_a_change_is_never_altered() -> None:
    say("a")
    with pytest.raises(DatabaseError, match="append-only"):
        StateChange.objects.update(subject_id="b")


def test_a_change_that_commits_late_is_not_missed() -> None:
    """Numbered first, committed second. On SQLite the second waits, so no change overtakes."""
    written, seen = threading.Event(), threading.Event()

    def slow() -> None:
        try:
            with transaction.atomic():
                publish(subject="agent", subject_id="slow", at=timezone.now())
                written.set()
                seen.wait(25)
        finally:
            connection.close()

    say("first")
    position = state_since(0).position
    thread = threading.Thread(target=slow)
    thread.start()
    assert written.wait(25)
    if connection.vendor == "postgresql":
        say_at_once("quick")
    found, position = ids(position)
    assert "slow" not in found
    seen.set()
    thread.join()
    assert "slow" in ids(position)[0]


@pytest.mark.postgres
def test_a_long_transaction_does_not_repeat_changes_to_a_reader() -> None:
    with open_transaction():
        position = state_since(0).position
        say_at_once("a")
        first = state_since(position)
        say_at_once("b")
        second = state_since(first.position, first.seen)
        third = state_since(second.position, second.seen)
    # The oldest change is above the position: one false alarm.
    assert (first.changes, first.complete) == ((Change("agent", "a"),), False)
    assert (second.changes, second.complete) == ((Change("agent", "b"),), True)
    assert (third.changes, third.complete) == ((), True)
    # The position was held back: without `seen`, both are returned again.
    assert len(state_since(third.position).changes) == 2
