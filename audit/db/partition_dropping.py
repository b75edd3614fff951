"""Drop a fully archived month of events from PostgreSQL. Needs the database owner's role.

Leaves stay, so every proof still holds. The drop is one short transaction with a lock timeout, so
that it gives up rather than block processes that record events.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Q

from audit.db.partition_creation import Month, month_at, month_of
from audit.models import DroppedMonth, Event, Head, Leaf, Opening, QueueEntry, Segment

# Younger months are never dropped: processes cache that their partitions exist
# (`audit.db.partition_creation`).
LEAST_KEPT: Final = 2
BATCH: Final = 20_000
_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.5
_FIRST: Final = uuid.UUID(int=0)

_MONTHS: Final = """
SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid
WHERE inhparent = 'audit_event'::regclass AND relname ~ '^audit_event_[0-9]{4}_[0-9]{2}$'
ORDER BY relname
"""
_NOW: Final = "SELECT now()"
# For a page of events: their number, how many are below the archived end, their first and last leaf
# index, and the last id.
_ARCHIVED: Final = """
SELECT count(*), count(*) FILTER (WHERE leaf_index < %s), min(leaf_index), max(leaf_index),
       (array_agg(id ORDER BY id DESC))[1]
FROM (SELECT id FROM audit_event WHERE id > %s AND id >= %s AND id < %s ORDER BY id LIMIT %s) page
LEFT JOIN audit_leaf ON event_id = id
"""


class DroppingError(Exception):
    """The month cannot be dropped. The text says why and what to do first."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """How many events were dropped, and their first and last leaf index (-1 without any)."""

    month: Month
    events: int
    first_leaf: int = -1
    last_leaf: int = -1


def archived_end() -> int:
    """The archive holds all leaves below this index, without a gap."""
    end = 0
    for segment in Segment.objects.order_by("first"):
        if segment.first != end:
            break
        end = segment.end
    return end


def droppable_months(*, keep_months: int) -> list[Month]:
    """The stored months older than `keep_months` months by the database's clock, oldest first.

    Raises DroppingError on SQLite, or if `keep_months` is below LEAST_KEPT.
    """
    if connection.vendor != "postgresql":
        raise DroppingError(
            "Only PostgreSQL keeps the log in months; on SQLite nothing is dropped."
        )
    if keep_months < LEAST_KEPT:
        raise DroppingError(f"The {LEAST_KEPT} months before this one are always kept.")
    oldest_kept = month_at(_ask(_NOW)[0]).later(-keep_months)
    with connection.cursor() as cursor:
        cursor.execute(_MONTHS)
        there = [Month(*map(int, name.split("_")[2:])) for (name,) in cursor.fetchall()]
    return [month for month in there if month < oldest_kept]


def drop_month(*, month: Month, now: datetime, prove: Callable[[int, int], object]) -> Dropped:
    """Drop the partition of `month` and the openings of its events.

    Needs the owner's connection, outside a transaction.

    1. The month is old enough.
    2. Each of its events has a leaf below the archived end.
    3. `prove(first, last)` reads those leaves back from the archive, and raises if any is missing
    there.
    4. No event was added meanwhile.

    Raises DroppingError, what `prove` raises, and django.db errors; the month is then unchanged.
    """
    # 1
    if month not in droppable_months(keep_months=LEAST_KEPT):
        raise DroppingError(f"{month} is not a month of the log, or too recent to be dropped.")
    # 2. Read the size first: step 4 looks for leaves that were numbered after this.
    size = _size()
    dropped = _check_archived(month)
    # 3
    if dropped.events:
        prove(dropped.first_leaf, dropped.last_leaf)
    kept_from = _kept_from(month)
    # 4
    for _ in range(_ATTEMPTS - 1):
        try:
            _drop(dropped, size, kept_from, now)
        except OperationalError:
            # A long-running query holds the table for longer than the lock timeout.
            time.sleep(_PAUSE_SECONDS)
        else:
            return dropped
    _drop(dropped, size, kept_from, now)
    return dropped


def _check_archived(month: Month) -> Dropped:
    end, after, events, leaves = archived_end(), _FIRST, 0, list[int]()
    while True:
        found, safe, first, last, last_id = _ask(
            _ARCHIVED, end, after, month.first_id, month.later(1).first_id, BATCH
        )
        if not found:
            return Dropped(month, events, min(leaves, default=-1), max(leaves, default=-1))
        # An event that the archive lacks exists only here.
        if found != safe:
            raise DroppingError(
                f"{found - safe} or more events of {month} are not in the archive, which ends "
                f"before leaf {end}: run `{settings.COMMAND} archive_audit` first."
            )
        events += found
        after = last_id
        leaves += [first, last]


def _kept_from(month: Month) -> int:
    """The first leaf whose event remains after the drop; searches from the previous one on."""
    gone = {*dropped_months(), month}
    at = (
        DroppedMonth.objects.order_by("-kept_from").values_list("kept_from", flat=True).first() or 0
    )
    while True:
        page = Leaf.objects.filter(leaf_index__gte=at).order_by("leaf_index")
        leaves = list(page.values_list("leaf_index", "event_id")[:BATCH])
        for index, event_id in leaves:
            if month_of(event_id) not in gone:
                return index
        if not leaves:
            return at
        at = leaves[-1][0] + 1


def _drop(dropped: Dropped, size: int, kept_from: int, now: datetime) -> None:
    month = dropped.month
    theirs = Q(event_id__gte=month.first_id, event_id__lt=month.later(1).first_id)
    with transaction.atomic(), connection.cursor() as cursor:
        Opening.objects.filter(theirs).delete()
        # A month has several rows if it was restored, or re-created because a clock went back.
        DroppedMonth.objects.create(
            month=month.start.date(),
            events=dropped.events,
            first_leaf=dropped.first_leaf,
            last_leaf=dropped.last_leaf,
            kept_from=kept_from,
            at=now,
        )
        # Other sessions queue behind a waiting exclusive lock. 500 ms keeps that short, and stays
        # below PostgreSQL's 1 s deadlock_timeout.
        cursor.execute("SET LOCAL lock_timeout = '500ms'")
        cursor.execute("LOCK TABLE ONLY audit_event IN ACCESS EXCLUSIVE MODE")
        new = Leaf.objects.filter(theirs, leaf_index__gte=size).exists()
        if new or QueueEntry.objects.filter(theirs).exists():
            raise DroppingError(
                f"Events of {month} are still being recorded: a clock is wrong, or they came late."
            )
        # Only an autovacuum of the partition can hold a lock now; PostgreSQL cancels it after 1 s.
        cursor.execute("SET LOCAL lock_timeout = '3s'")
        cursor.execute(f"DROP TABLE {month.partition}")


def dropped_months() -> set[Month]:
    return {
        month_at(_midnight(each)) for each in DroppedMonth.objects.values_list("month", flat=True)
    }


def _midnight(day: Any) -> datetime:
    return Month(day.year, day.month).start


class DroppedEvents:
    """The events that may be missing: those of dropped months, below the archived end."""

    def __init__(self) -> None:
        self._months, self._end = dropped_months(), archived_end()

    def allows(self, leaf: Leaf) -> bool:
        return leaf.leaf_index < self._end and month_of(leaf.event_id) in self._months


def kept_from() -> int:
    """The database holds no event of a leaf below this; 0 if dropped events were restored."""
    gone = sorted(dropped_months())
    if not gone:
        return 0
    if Event.objects.filter(pk__gte=gone[0].first_id, pk__lt=gone[-1].later(1).first_id).exists():
        return 0
    return (
        DroppedMonth.objects.order_by("-kept_from").values_list("kept_from", flat=True).first() or 0
    )


def _size() -> int:
    return Head.objects.filter(id=Head.ONLY).values_list("size", flat=True).first() or 0


def _ask(sql: str, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchone()
