"""Closing the registry before a planned restore (SA-13)."""

import contextlib
import sys
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from django.db import connection, transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.models import Checkpoint, Event, Head, Leaf, Segment
from audit.services import record
from kms.services import ensure_key
from registry.tests.cast import TESTER
from verifier.models import Home
from verifier.services import closing_before_restore, rollback_detection
from verifier.services.closing_before_restore import BECAUSE, close_history
from verifier.services.replay_epochs import read_or_create_row


@pytest.fixture
def outside(db: None, settings: Settings, tmp_path: Path, now: datetime) -> Path:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)
    return tmp_path / "outside"


def close(waits: list[float] | None = None) -> int:
    waited = [] if waits is None else waits
    return close_history(operator="alice", actor=TESTER, now=timezone.now(), wait=waited.append)


def test_SA_13_closing_is_the_last_event_and_is_stored_outside(outside: Path) -> None:
    waits: list[float] = []
    size = close(waits)
    last = Leaf.objects.get(leaf_index=size - 1)
    assert Event.objects.get(pk=last.event_id).kind == kinds.HISTORY_CLOSED
    assert Head.objects.get().size == Checkpoint.objects.latest("size").size == size
    assert Segment.objects.latest("first").end == size
    assert (outside / f"checkpoints/{size:020d}").exists()
    assert Home.objects.get().held_because == BECAUSE
    assert rollback_detection.halt(read_or_create_row()[0]) is not None
    # Verifiers that still run keep their leases until then.
    assert waits == [6]


def test_SA_13_closing_again_makes_a_new_end(outside: Path) -> None:
    assert close() < close()


def test_SA_13_a_database_that_was_set_back_is_not_closed(outside: Path) -> None:
    rollback_detection.hold(read_or_create_row()[0], "It was set back.")
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
        with pytest.raises(InvalidStateError, match="1 other connections"):
            close_history(operator="alice", actor=TESTER, now=timezone.now(), wait=connects)
    assert not Event.objects.filter(kind=kinds.HISTORY_CLOSED, data__ended=True).exists()


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
