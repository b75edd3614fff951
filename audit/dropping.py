"""Dropping a month of the log from PostgreSQL: only what stands in the archive as a whole, and for the owner alone.

Leaves stay, so every proof still holds; the events are in the archive. It ends in one short transaction, which gives up rather
than hold up whoever records.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db import OperationalError, connection, transaction
from django.db.models import Q

from audit.models import DroppedMonth, Event, Head, Leaf, Opening, QueueEntry, Segment
from audit.partitions import Month, month_at, month_of

# Younger months are never dropped: processes may remember that they are there (`audit.partitions`).
LEAST_KEPT: Final = 2
BATCH: Final = 20_000
_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.5
_FIRST: Final = uuid.UUID(int=0)

_MONTHS: Final = """
SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid
WHERE inhparent = 'audit_event'::regclass AND relname ~ '^audit_event_[0-9]{4}_[0-9]{2}$' ORDER BY relname
"""
_NOW: Final = "SELECT now()"
# Of so many events: how many, how many stand below the archived end, their outermost leaves, and the last of their ids.
_ARCHIVED: Final = """
SELECT count(*), count(*) FILTER (WHERE leaf_index < %s), min(leaf_index), max(leaf_index), (array_agg(id ORDER BY id DESC))[1]
FROM (SELECT id FROM audit_event WHERE id > %s AND id >= %s AND id < %s ORDER BY id LIMIT %s) page
LEFT JOIN audit_leaf ON event_id = id
"""


class DroppingError(Exception):
    """The month cannot be dropped. Says why, and what has to come first."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What went: how many events, and the first and the last of their leaves; -1 where there were none."""

    month: Month
    events: int
    first_leaf: int = -1
    last_leaf: int = -1


def archived_end() -> int:
    """All leaves below it stand in the archive, without a gap."""
    end = 0
    for segment in Segment.objects.order_by("first"):
        if segment.first != end:
            break
        end = segment.end
    return end


def droppable_months(*, keep_months: int) -> list[Month]:
    """The months that are there and older than so many before this one, by the database's clock; oldest first."""
    if connection.vendor != "postgresql":
        raise DroppingError("Only PostgreSQL keeps the log in months; on SQLite nothing is dropped.")
    if keep_months < LEAST_KEPT:
        raise DroppingError(f"The {LEAST_KEPT} months before this one are always kept.")
    oldest_kept = month_at(_ask(_NOW)[0]).later(-keep_months)
    with connection.cursor() as cursor:
        cursor.execute(_MONTHS)
        there = [Month(*map(int, name.split("_")[2:])) for (name,) in cursor.fetchall()]
    return [month for month in there if month < oldest_kept]


def drop_month(*, month: Month, now: datetime, prove: Callable[[int, int], object]) -> Dropped:
    """Drop the partition of `month`, with the openings of its events. Needs the owner's connection, outside a transaction.

    1. It is old enough. 2. Each of its events has a leaf below the archived end. 3. `prove(first, last)` reads those leaves
    back from the archive, and raises where they do not stand there. 4. Nothing came to it meanwhile. Raises DroppingError,
    what `prove` raises, and django.db errors; the month is then as it was.
    """
    # 1
    if month not in droppable_months(keep_months=LEAST_KEPT):
        raise DroppingError(f"{month} is no month of the log, or too young to be dropped.")
    # 2: whatever is numbered from here on is seen in step 4.
    size = _size()
    dropped = _archived(month)
    # 3
    if dropped.events:
        prove(dropped.first_leaf, dropped.last_leaf)
    kept_from = _kept_from(month)
    # 4
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _drop(dropped, size, kept_from, now)
        except OperationalError:
            # Somebody reads for longer than others may wait behind us.
            if attempt == _ATTEMPTS:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return dropped
    raise AssertionError("unreachable")


def _archived(month: Month) -> Dropped:
    end, after, events, leaves = archived_end(), _FIRST, 0, list[int]()
    while True:
        found, safe, first, last, last_id = _ask(
            _ARCHIVED, end, after, month.first_id, month.later(1).first_id, BATCH
        )
        if not found:
            return Dropped(month, events, min(leaves, default=-1), max(leaves, default=-1))
        if found != safe:
            raise DroppingError(
                f"{found - safe} or more events of {month} do not stand in the archive, which ends before leaf {end}: archive first."
            )
        events, after = events + found, last_id
        leaves += [first, last]


def _kept_from(month: Month) -> int:
    """The first leaf whose event will still be here: by their ids, a leaf after the other from where it was so far."""
    gone = {*dropped_months(), month}
    at = DroppedMonth.objects.order_by("-kept_from").values_list("kept_from", flat=True).first() or 0
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
        # More than once where it was restored, or made again by a clock that went back.
        DroppedMonth.objects.create(
            month=month.start.date(),
            events=dropped.events,
            first_leaf=dropped.first_leaf,
            last_leaf=dropped.last_leaf,
            kept_from=kept_from,
            at=now,
        )
        # Others queue behind this one while it waits. It gives up before anybody would look for a deadlock.
        cursor.execute("SET LOCAL lock_timeout = '500ms'")
        cursor.execute("LOCK TABLE ONLY audit_event IN ACCESS EXCLUSIVE MODE")
        new = Leaf.objects.filter(theirs, leaf_index__gte=size).exists()
        if new or QueueEntry.objects.filter(theirs).exists():
            raise DroppingError(
                f"Events of {month} are still being recorded: a clock is wrong, or they came late."
            )
        # Only the cleaning of the partition can be in the way now, and it gives way after a second.
        cursor.execute("SET LOCAL lock_timeout = '3s'")
        cursor.execute(f"DROP TABLE {month.partition}")


def dropped_months() -> set[Month]:
    return {month_at(_midnight(each)) for each in DroppedMonth.objects.values_list("month", flat=True)}


def _midnight(day: Any) -> datetime:
    return Month(day.year, day.month).start


class Gone:
    """Which events may be missing: those of months that were dropped, below the end of the archive."""

    def __init__(self) -> None:
        self._months, self._end = dropped_months(), archived_end()

    def allows(self, leaf: Leaf) -> bool:
        return leaf.leaf_index < self._end and month_of(leaf.event_id) in self._months


def kept_from() -> int:
    """No event of a leaf below it is here; 0 where some that went are back."""
    gone = sorted(dropped_months())
    if not gone:
        return 0
    if Event.objects.filter(pk__gte=gone[0].first_id, pk__lt=gone[-1].later(1).first_id).exists():
        return 0
    return DroppedMonth.objects.order_by("-kept_from").values_list("kept_from", flat=True).first() or 0


def _size() -> int:
    return Head.objects.filter(id=Head.ONLY).values_list("size", flat=True).first() or 0


def _ask(sql: str, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchone()
