"""Closing the registry before a planned restore (SA-13)."""

import contextlib
import sys
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import time_machine
from django.db import connection, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from audit import kinds
from audit.log.refusal_counts import RECORDED_PER_MINUTE
from audit.models import Checkpoint, Event, Head, Leaf, Segment
from audit.services import Actor, record, record_refusal
from kms.services import ensure_key
from registry.tests.cast import TESTER
from verifier.models import Home
from verifier.services import closing_before_restore, rollback_hold
from verifier.services.closing_before_restore import close_history
from verifier.services.replay_epochs import read_or_create_row


@pytest.fixture
def outside(db: None, settings: Settings, tmp_path: Path, now: datetime) -> Path:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)
    return tmp_path / "outside"


def close(waits: list[float] | None = None) -> int:
    waited = [] if waits is None else waits
    return close_history(operator="alice", actor=TESTER, clock=timezone.now, wait=waited.append)


def test_SA_13_closing_is_the_last_event_and_is_stored_outside(outside: Path) -> None:
    waits: list[float] = []
    size = close(waits)
    last = Leaf.objects.get(leaf_index=size - 1)
    assert Event.objects.get(pk=last.event_id).kind == kinds.HISTORY_CLOSED
    assert Head.objects.get().size == Checkpoint.objects.latest("size").size == size
    assert Segment.objects.latest("first").end == size
    assert (outside / f"checkpoints/{size:020d}").exists()
    assert Home.objects.get().held_because == rollback_hold.CLOSED
    # Verifiers that still run keep their leases until then.
    assert waits == [6]


def test_SA_13_a_closed_database_does_not_say_that_it_was_restored(outside: Path) -> None:
    close()
    halt = rollback_hold.halt(read_or_create_row()[0])
    assert halt is not None
    assert halt.told.startswith("The registry was closed and will be restored from a backup.")
    assert halt.reason.endswith("Read docs/restore.md, then put the backup in place")


def test_SA_13_closing_again_makes_a_new_end(outside: Path) -> None:
    assert close() < close()


def test_SA_13_a_database_that_was_set_back_is_not_closed(outside: Path) -> None:
    rollback_hold.hold(read_or_create_row()[0], "It was set back.")
    with pytest.raises(InvalidStateError, match="held already: It was set back"):
        close()
    assert not Event.objects.filter(kind=kinds.HISTORY_CLOSED).exists()


def test_SA_13_nothing_is_closed_without_a_store(db: None, settings: Settings) -> None:
    settings.AUDIT_STORE = ""
    with pytest.raises(InvalidStateError, match="AUDIT_STORE is not set"):
        close()
    assert not Home.objects.filter(held_at__isnull=False).exists()


def test_SA_13_nothing_is_closed_that_cannot_be_archived(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidStateError, match="needs the package pyarrow"):
        close()
    assert not Home.objects.filter(held_at__isnull=False).exists()


@pytest.mark.postgres
@pytest.mark.parametrize("late", [False, True])
def test_SA_13_nothing_is_closed_while_another_is_connected(outside: Path, *, late: bool) -> None:
    parameters = connection.get_connection_params()
    url = {
        name: parameters[name]
        for name in ("host", "port", "user", "password", "dbname")
        if parameters.get(name)
    }
    with contextlib.ExitStack() as others:

        def connects(_seconds: float = 0) -> None:
            others.enter_context(psycopg.connect(**url))

        if not late:
            connects()
        with pytest.raises(InvalidStateError, match="Other connections to the database: 1"):
            close_history(operator="alice", actor=TESTER, clock=timezone.now, wait=connects)
    assert not Event.objects.filter(kind=kinds.HISTORY_CLOSED, data__ended=True).exists()


def test_SA_13_suppressed_refusals_of_the_last_minute_are_in_the_log(outside: Path) -> None:
    for _ in range(RECORDED_PER_MINUTE + 5):
        record_refusal(
            kind=kinds.REQUEST_REFUSED,
            actor=Actor("anonymous", ""),
            at=timezone.now(),
            error=InvalidRequestError("No."),
            route="POST v1/agents",
        )
    size = close()
    summary = Event.objects.get(kind=kinds.REFUSALS_SUPPRESSED)
    assert summary.data["count"] == 5
    assert Leaf.objects.get(event_id=summary.pk).leaf_index == size - 2


def test_SA_13_the_end_carries_the_time_after_the_wait(outside: Path, now: datetime) -> None:
    with time_machine.travel(now, tick=False) as clock:
        close_history(operator="alice", actor=TESTER, clock=timezone.now, wait=clock.shift)
    begun, ended = Event.objects.filter(kind=kinds.HISTORY_CLOSED).order_by("id")
    assert (begun.at, ended.at) == (now, now + timedelta(seconds=6))
    assert Checkpoint.objects.latest("size").at == ended.at


def test_SA_13_a_decision_that_waits_is_before_the_closing(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outbox is drained before the closing event, however many turns it takes."""
    turns = [2, 1, 0]

    def drains(*, now: datetime) -> int:
        for _ in range(count := turns.pop(0)):
            with transaction.atomic():
                record(kind=kinds.DECISION_ALLOWED, actor=TESTER, at=now)
        return count

    monkeypatch.setattr(closing_before_restore, "drain_redis", drains)
    size = close()
    last = Leaf.objects.filter(leaf_index__gte=size - 4).order_by("leaf_index")
    assert [each.kind for each in last] == [kinds.DECISION_ALLOWED] * 3 + [kinds.HISTORY_CLOSED]
