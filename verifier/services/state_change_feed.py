"""The feed of state changes, which registry and kms publish to invalidate the verifiers' caches."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection
from django.db.models import BigIntegerField, Func

from registry.services.expiry import forget
from verifier.models import StateChange

KEPT_FOR = timedelta(days=1)
# PostgreSQL's NOTIFY channel: each change as it commits, as "<subject> <id>".
CHANNEL = "agentauth_state"
# For use in a query, which sees no transaction from this number on.
_NEXT_POSITION = Func(
    template="pg_snapshot_xmax(pg_current_snapshot())::text::bigint", output_field=BigIntegerField()
)


class Change(NamedTuple):
    """One changed subject; `subject` is a `kms.state_change_publisher.Subject`."""

    subject: str
    subject_id: str


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes since a position, and the position to continue from.

    If not `complete`, the feed does not reach back to the position (it is too old, or another
    database's): invalidate everything. False alarms are possible, as at the very first change.
    `seen` are the rows above the position that the reader already has: pass both on.
    """

    changes: tuple[Change, ...]
    position: int
    complete: bool
    seen: frozenset[int] = frozenset()


def publish(*, subject: str, subject_id: str, at: datetime) -> None:
    """Write a change into the feed in the caller's transaction. This is `settings.STATE_PUBLISHER`.

    PostgreSQL also notifies listeners at the commit. A notification may be lost; the row is not.
    """
    StateChange.objects.create(
        position=_own_position(), subject=subject, subject_id=subject_id, at=at
    )
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, f"{subject} {subject_id}"])


def present_position() -> int:
    """Where a new reader begins: everything committed before is visible in its later reads."""
    return _oldest_open_position()


def state_since(position: int, seen: frozenset[int] = frozenset()) -> Changes:
    """Everything committed since `position`, except the rows `seen`.

    Numbers are assigned before the commit, and commits overtake each other, so "all above the last
    number seen" would miss an overtaken one. The returned position is therefore the oldest that may
    still commit, and `seen` the rows above it. One long transaction, in any database of the
    PostgreSQL server, holds the position back for hours. Without `seen`, a verifier would then drop
    the same callers from its cache at each read, and known ones would queue behind guesses.

    The bound is read before the rows, so that a change that commits in between is either seen or
    above the bound. Rows restored from another PostgreSQL, with higher transaction numbers, are
    ignored.
    """
    horizon = _oldest_open_position()
    told = StateChange.objects.all()
    if connection.vendor == "postgresql":
        told = told.filter(position__lt=_NEXT_POSITION)
    oldest = told.order_by("position").first()
    # Rows are deleted by age: while one that the reader has seen is there, so are the later ones.
    reaches_back = oldest is None or oldest.position <= position or oldest.pk in seen
    rows = list(told.filter(position__gte=position).order_by("id"))
    return Changes(
        tuple(Change(row.subject, row.subject_id) for row in rows if row.pk not in seen),
        horizon,
        reaches_back and position <= horizon,
        frozenset(row.pk for row in rows if row.position >= horizon),
    )


def forget_old_changes(*, now: datetime) -> int:
    """Delete old changes; returns how many. Keeps the newest: SQLite counts positions from it."""
    newest = StateChange.objects.order_by("-id").first()
    old = StateChange.objects.filter(at__lt=now - KEPT_FOR)
    return 0 if newest is None else forget(old.exclude(pk=newest.pk))


def _own_position() -> int:
    """The current transaction's number. SQLite has one writer at a time, so a counter will do."""
    if connection.vendor == "postgresql":
        return _number("SELECT pg_current_xact_id()::text::bigint")
    return _oldest_open_position()


def _oldest_open_position() -> int:
    """The oldest transaction that may still commit; none below it can."""
    if connection.vendor == "postgresql":
        return _number("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    newest = StateChange.objects.order_by("-position").values_list("position", flat=True).first()
    return 1 if newest is None else newest + 1


def _number(query: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])
