"""The feed of changed state: what registry and kms published, for whoever keeps a copy of what verification reads."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection
from django.db.models import BigIntegerField, Func

from registry.services.expiry import forget
from verifier.models import StateChange

KEPT_FOR = timedelta(days=1)
# Where PostgreSQL tells each change as it commits, as "<subject> <id>", to whoever listens just then.
CHANNEL = "agentauth_state"
# Inside a query: no transaction from this number on has been seen by it.
_NEXT_POSITION = Func(
    template="pg_snapshot_xmax(pg_current_snapshot())::text::bigint", output_field=BigIntegerField()
)


class Change(NamedTuple):
    """One subject that is not what it was; `subject` is a `kms.state.Subject`."""

    subject: str
    subject_id: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What was published since a position, and the position to ask from next.

    Without `complete` the position is not in this feed's memory (from before what is kept, or of another database):
    then forget everything. It is said too often rather than too seldom: also of the very first change there is.
    """

    changes: tuple[Change, ...]
    position: int
    complete: bool


def publish(*, subject: str, subject_id: str, at: datetime) -> None:
    """Write one change into the feed, in the caller's transaction: `settings.STATE_PUBLISHER`, called by `kms.state`.

    PostgreSQL also calls it out with the commit. That may be lost on its way to a listener; the row is not.
    """
    StateChange.objects.create(position=_own_position(), subject=subject, subject_id=subject_id, at=at)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, f"{subject} {subject_id}"])


def present_position() -> int:
    """Where a reader who knows nothing yet begins: what is committed by now is in whatever it reads from now on."""
    return _oldest_open_position()


def state_since(position: int) -> Changes:
    """Everything committed since `position`, in one look. Each change is told at least once and may be told twice.

    Numbers are given before the commit and commits overtake each other, so "all above the last number seen" would
    miss the one that was overtaken. The position handed back is therefore not the highest seen but the oldest that
    may still commit: what lies above it is told again next time, which harms nobody who only forgets.

    1. The bound first, the rows after it: one that commits in between is seen, or lies above the bound. 2. Rows that came
    with the copy of another PostgreSQL, whose transactions had got further, say nothing of this one.
    """
    horizon = _oldest_open_position()
    told = StateChange.objects.all()
    if connection.vendor == "postgresql":
        told = told.filter(position__lt=_NEXT_POSITION)
    oldest = told.order_by("position").values_list("position", flat=True).first()
    rows = told.filter(position__gte=position).order_by("id")
    complete = position <= horizon and (oldest is None or position >= oldest)
    return Changes(tuple(Change(row.subject, row.subject_id) for row in rows), horizon, complete)


def forget_old_changes(*, now: datetime) -> int:
    """Drop what nobody will ask for any more; returns how many. The newest stays: positions are counted from it."""
    newest = StateChange.objects.order_by("-id").first()
    old = StateChange.objects.filter(at__lt=now - KEPT_FOR)
    return 0 if newest is None else forget(old.exclude(pk=newest.pk))


def _own_position() -> int:
    """The number of the transaction this runs in. Writers of SQLite follow each other, so there one counts up."""
    if connection.vendor == "postgresql":
        return _number("SELECT pg_current_xact_id()::text::bigint")
    return _oldest_open_position()


def _oldest_open_position() -> int:
    """No transaction below this number can commit any more."""
    if connection.vendor == "postgresql":
        return _number("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    newest = StateChange.objects.order_by("-position").values_list("position", flat=True).first()
    return 1 if newest is None else newest + 1


def _number(query: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])
