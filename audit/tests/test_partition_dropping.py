"""Dropping months: only archived events are dropped, with their openings, and all proofs hold."""

from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from pytest_django.fixtures import Settings

from audit.db import partition_dropping
from audit.db.partition_dropping import DroppingError, archived_end, drop_month, droppable_months
from audit.log.listing import Cursor, page_of_log
from audit.log.sequencer import sequence_until_empty
from audit.management.commands import drop_audit_partitions
from audit.models import DroppedMonth, Event, Head, Leaf, Opening, Segment
from audit.tests.command_output import json_of, output_of
from audit.tests.conftest import MakeEvent
from audit.tests.months import months as months  # noqa: PLC0414 — a fixture
from audit.tests.months import months_on, set_clock, standing
from audit.tests.tampering import as_table_owner, execute
from audit.verify.verification import verify_log

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]
OLD = months_on(-5)


@pytest.fixture
def log(
    months: set[str], make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch, now: datetime
) -> list[Event]:
    """Three events each of five months ago, four months ago and today, numbered in order."""
    made = []
    for ahead in (-5, -4, 0):
        made += record_in(months_on(ahead).start if ahead else now, make_event, monkeypatch)
        sequence_until_empty(now=now)
    return sorted(made, key=lambda event: event.pk)


def record_in(at: datetime, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Record three events as if it were `at`."""
    with monkeypatch.context() as patch:
        set_clock(patch, at)
        return [make_event(agent_id=months_on(0).first_id, personal={"n": n}) for n in range(3)]


def archive(end: int, now: datetime, first: int = 0) -> None:
    Segment.objects.create(first=first, end=end, manifest_sha256=bytes(32), at=now)


def drop(
    month: Any = OLD, *, prove: Callable[[int, int], object] = lambda _first, _last: None
) -> Any:
    return drop_month(month=month, now=datetime.now().astimezone(), prove=prove)


def listed() -> list[int | None]:
    found, after = [], Cursor()
    while True:
        page = page_of_log(wanted=[("agent_id", months_on(0).first_id)], after=after, limit=2)
        found += [index for _, index in page.events]
        if page.end is None:
            return found
        after = page.end


def test_a_month_that_is_archived_goes_and_the_log_still_proves_itself(
    log: list[Event], now: datetime
) -> None:
    root, asked = verify_log().root_hash, []
    archive(3, now)
    done = drop(prove=lambda first, last: asked.append((first, last)))
    assert (done.events, asked) == (3, [(0, 2)])
    assert OLD.partition not in standing()
    assert (Event.objects.count(), Opening.objects.count(), Leaf.objects.count()) == (6, 6, 9)
    assert DroppedMonth.objects.get().kept_from == 3
    verdict = verify_log(batch=2)
    assert (verdict.ok, verdict.root_hash, verdict.tree_size) == (True, root, 9)
    assert listed() == [3, 4, 5, 6, 7, 8]
    archive(6, now, first=3)
    drop(months_on(-4))
    assert verify_log().ok
    assert listed() == [6, 7, 8]


def test_a_month_without_events_is_dropped_unasked(log: list[Event], now: datetime) -> None:
    """As after a drop whose month was created again."""
    archive(3, now)
    drop()
    execute("SELECT agentauth_add_event_month(%s)", OLD.start)
    asked: list[tuple[int, int]] = []
    done = drop(prove=lambda first, last: asked.append((first, last)))
    assert (done.events, asked) == (0, [])
    assert OLD.partition not in standing()


def test_a_log_of_dropped_months_alone_begins_at_its_end(
    months: set[str], make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch, now: datetime
) -> None:
    """The first kept leaf is looked for page by page, and there is none."""
    monkeypatch.setattr(partition_dropping, "BATCH", 2)
    for ahead in (-5, -4):
        record_in(months_on(ahead).start, make_event, monkeypatch)
    sequence_until_empty(now=now)
    archive(6, now)
    for month, kept_from in ((OLD, 3), (months_on(-4), 6)):
        drop(month)
        assert DroppedMonth.objects.latest("pk").kept_from == kept_from
    assert listed() == []


def test_what_is_not_archived_as_a_whole_stays(log: list[Event], now: datetime) -> None:
    with pytest.raises(DroppingError, match="are not in the archive"):
        drop()
    archive(2, now)
    with pytest.raises(DroppingError, match="1 or more events"):
        drop()
    # A gap ends the archived part.
    archive(9, now, first=4)
    assert archived_end() == 2
    with pytest.raises(DroppingError, match="before leaf 2"):
        drop()
    assert Event.objects.count() == Opening.objects.count() == 9


def test_what_the_archive_does_not_show_again_stays(log: list[Event], now: datetime) -> None:
    archive(9, now)

    def gone(_first: int, _last: int) -> None:
        raise RuntimeError("the object is missing")

    with pytest.raises(RuntimeError, match="missing"):
        drop(prove=gone)
    assert OLD.partition in standing()
    assert Event.objects.count() == 9


def test_an_event_that_waits_for_its_number_keeps_its_month(
    log: list[Event], now: datetime, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(9, now)

    def late(_first: int, _last: int) -> None:
        with monkeypatch.context() as patch:
            set_clock(patch, OLD.start)
            make_event()

    with pytest.raises(DroppingError, match="still being recorded"):
        drop(prove=late)
    # It has a number now, but is not in the archive yet.
    sequence_until_empty(now=now)
    with pytest.raises(DroppingError, match="are not in the archive"):
        drop()
    assert Opening.objects.count() == 9


def test_an_event_numbered_while_its_month_is_looked_at_keeps_it(
    log: list[Event], now: datetime, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(9, now)

    def late(_first: int, _last: int) -> None:
        with monkeypatch.context() as patch:
            set_clock(patch, OLD.start)
            make_event()
        sequence_until_empty(now=now)

    with pytest.raises(DroppingError, match="still being recorded"):
        drop(prove=late)
    assert Event.objects.count() == 10


@pytest.mark.parametrize("ahead", [-2, -1, 0, 1, -7])
def test_a_young_month_and_one_that_is_none_are_not_dropped(
    log: list[Event], now: datetime, ahead: int
) -> None:
    archive(9, now)
    with pytest.raises(DroppingError, match="too recent"):
        drop(months_on(ahead))


def test_dropping_a_month_gives_up_rather_than_block_writers(
    log: list[Event], now: datetime, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(9, now)
    monkeypatch.setattr(partition_dropping, "_ATTEMPTS", 2)
    monkeypatch.setattr(partition_dropping, "_PAUSE_SECONDS", 0.0)
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT count(*) FROM audit_event")
        with pytest.raises(OperationalError, match="lock timeout"):
            drop()
        assert Opening.objects.count() == 9
        cursor.execute("ROLLBACK")
    drop()


def test_an_event_that_was_deleted_is_still_named(log: list[Event], now: datetime) -> None:
    archive(6, now)
    drop()
    with as_table_owner():
        # Archived, but its month was not dropped.
        execute("DELETE FROM audit_event WHERE id = %s", log[3].pk)
        assert verify_log().first_bad == str(log[3].pk)
    with as_table_owner():
        execute("UPDATE audit_leaf SET entry = %s WHERE leaf_index = 1", bytes(32))
        assert verify_log().first_bad == 1
    with as_table_owner():
        # Its month was dropped, but the archive does not hold it.
        execute("DELETE FROM audit_segment")
        assert verify_log().first_bad == str(log[0].pk)
    with as_table_owner():
        execute("DELETE FROM audit_droppedmonth")
        assert verify_log().first_bad == str(log[0].pk)


def test_what_is_back_is_listed_again(
    log: list[Event], now: datetime, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(9, now)
    whole = list(Event.objects.order_by("id"))
    drop()
    execute("SELECT agentauth_add_event_month(%s)", OLD.start)
    Event.objects.bulk_create(whole[:3])
    assert listed() == list(range(9))
    assert verify_log().ok
    drop()
    assert DroppedMonth.objects.count() == 2
    assert listed() == [3, 4, 5, 6, 7, 8]


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path) -> None:
    """A store whose proof succeeds; tests/flows/test_log_story.py uses a real one."""
    settings.AUDIT_STORE = f"file:{tmp_path}"
    monkeypatch.setattr(drop_audit_partitions, "prove_again", lambda _first, _last, *, store: store)


def test_what_does_not_stand_in_the_store_any_more_is_not_dropped(
    log: list[Event], now: datetime, settings: Settings, tmp_path: Path
) -> None:
    archive(9, now)
    with pytest.raises(CommandError, match="AUDIT_STORE"):
        call_command("drop_audit_partitions", "--keep-months", "2")
    settings.AUDIT_STORE = f"file:{tmp_path}"
    with pytest.raises(CommandError, match="is missing, or differs from the recorded one"):
        call_command("drop_audit_partitions", "--keep-months", "2")
    assert OLD in droppable_months(keep_months=4)


@pytest.mark.usefixtures("proved")
def test_the_command_keeps_so_many_months(log: list[Event], now: datetime) -> None:
    archive(9, now)
    with pytest.raises(CommandError, match="always kept"):
        call_command("drop_audit_partitions", "--keep-months", "1")
    assert output_of("drop_audit_partitions") == "No month is old enough.\n"
    assert droppable_months(keep_months=4) == [OLD]
    dropped = json_of("drop_audit_partitions", "--keep-months", "4")
    assert dropped == {"dropped": [{"month": str(OLD), "events": 3}]}
    said = output_of("drop_audit_partitions", "--keep-months", "2")
    assert said.startswith(f"Dropped {months_on(-4)}: 3 events")
    Segment.objects.all().exists()
    assert Head.objects.get().size == 9


@pytest.mark.usefixtures("proved")
def test_the_command_says_what_it_dropped_before_it_stopped(
    log: list[Event], now: datetime
) -> None:
    archive(3, now)
    with pytest.raises(CommandError, match=f"archive_audit` first. Dropped before that: {OLD}"):
        call_command("drop_audit_partitions", "--keep-months", "2")
