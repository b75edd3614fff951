"""Reading events in the order of the log or against it, a page at a time, at a cost that does not grow with the log.

Leaves say whose event they are of and of which kind, so one of their indexes leads from page to page; what it does not tell
apart is looked through, a bounded number of leaves for each page.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

from django.db.models import QuerySet

from audit.dropping import kept_from
from audit.models import Event, Leaf, QueueEntry

# Where no index leads to the next event that is wanted: so many leaves, or waiting events, are looked at for one page.
EXAMINED: Final = 5_000
# What an index of the leaves leads by, the best first; of the other columns of an event a leaf knows nothing.
_LED_BY: Final = ("agent_id", "human_id", "kind")


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: the last leaf it looked at, and the last event that had no leaf yet."""

    leaf_index: int = -1
    waiting: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"{self.leaf_index}.{self.waiting}" if self.waiting else str(self.leaf_index)


@dataclass(frozen=True, slots=True)
class Descent:
    """Where a page against the order ended: the last waiting event it looked at, or, once those are through, the last leaf."""

    leaf_index: int | None = None
    waiting: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"~.{self.waiting}" if self.leaf_index is None else f"~{self.leaf_index}"


End = TypeVar("End", Cursor, Descent)


class Page(NamedTuple, Generic[End]):
    """Events with their leaf index, None while they wait; and where the next page begins, None where nothing follows."""

    events: list[tuple[Event, int | None]]
    end: End | None


class _Found(NamedTuple):
    """Events at their places, at most one more than a page holds; and the last place looked at, None where nothing follows."""

    events: list[tuple[Event, Any]]
    reached: Any


def page_of_log(*, wanted: Sequence[tuple[str, Any]], after: Cursor, limit: int) -> Page[Cursor]:
    """At most `limit` events with all the values `wanted`, pairs of column and value: numbered ones, then those that wait.

    Following the cursor misses none, whatever is numbered meanwhile. A page before the last may hold fewer, even none.
    """
    columns = _columns(wanted)
    if columns is None:
        return Page([], None)
    # Waiting ones first: one that is numbered between the two questions is then in both answers, never in none.
    waiting = _waiting(columns, _queued(after.waiting), limit + 1)
    numbered = _numbered(columns, _leaves(max(after.leaf_index, kept_from() - 1)), limit + 1)
    shown = numbered.events[:limit]
    reached = shown[-1][1] if len(numbered.events) > limit else numbered.reached
    if reached is not None:
        return Page(shown, Cursor(reached, after.waiting))
    at = shown[-1][1] if shown else after.leaf_index
    ids = {event.pk for event, _ in shown}
    later = [event for event, _ in waiting.events if event.pk not in ids]
    fits = later[: limit - len(shown)]
    end = fits[-1].pk if fits else after.waiting
    if len(fits) == len(later):
        end, more = waiting.reached, waiting.reached is not None
    else:
        more = True
    return Page([*shown, *((event, None) for event in fits)], Cursor(at, end) if more else None)


def page_newest_first(*, wanted: Sequence[tuple[str, Any]], after: Descent, limit: int) -> Page[Descent]:
    """As `page_of_log`, in the opposite order: those that wait, then the numbered ones from the last to the first.

    Following the cursor misses none that was there at its beginning; what comes later is before its first page.
    """
    columns = _columns(wanted)
    if columns is None:
        return Page([], None)
    events: list[tuple[Event, int | None]] = []
    if after.leaf_index is None:
        waiting = _waiting(columns, _queued(after.waiting, descending=True), limit + 1)
        events = [(event, None) for event, _ in waiting.events[:limit]]
        if len(events) == limit:
            return Page(events, Descent(waiting=events[-1][0].pk))
        if waiting.reached is not None:
            return Page(events, Descent(waiting=waiting.reached))
    ids = {event.pk for event, _ in events}
    numbered = _numbered(columns, _leaves(after.leaf_index, descending=True), limit + 1)
    # One that was numbered between the two questions is in both answers: it is shown as it was first.
    later = [(event, at) for event, at in numbered.events if event.pk not in ids]
    shown = later[: limit - len(events)]
    reached = shown[-1][1] if len(shown) < len(later) else numbered.reached
    return Page([*events, *shown], None if reached is None else Descent(reached))


def _columns(wanted: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """The values by their columns; None where two of them exclude each other."""
    columns: dict[str, Any] = {}
    for name, value in wanted:
        if str(columns.setdefault(name, value)) != str(value):
            return None
    return columns


def _leaves(after: int | None, *, descending: bool = False) -> QuerySet[Leaf]:
    """The leaves behind a place, in the direction that is asked for."""
    if not descending:
        return Leaf.objects.filter(leaf_index__gt=after).order_by("leaf_index")
    kept = Leaf.objects.filter(leaf_index__gte=kept_from()).order_by("-leaf_index")
    return kept if after is None else kept.filter(leaf_index__lt=after)


def _queued(after: uuid.UUID | None, *, descending: bool = False) -> QuerySet[QueueEntry]:
    """The waiting events behind one of them, in the direction that is asked for."""
    entries = QueueEntry.objects.order_by("-event_id" if descending else "event_id")
    if after is None:
        return entries
    return entries.filter(event_id__lt=after) if descending else entries.filter(event_id__gt=after)


def _numbered(columns: Mapping[str, Any], leaves: QuerySet[Leaf], number: int) -> _Found:
    leader = next((name for name in _LED_BY if name in columns), None)
    rest = {name: value for name, value in columns.items() if name != leader}
    if leader is not None:
        leaves = leaves.filter(**{leader: columns[leader]})
    known = [name for name in _LED_BY if name in rest]
    examined = EXAMINED if rest else number
    rows = list(leaves.values_list("leaf_index", "event_id", *known)[:examined])
    fitting = [
        row
        for row in rows
        if all(str(value) == str(rest[name]) for name, value in zip(known, row[2:], strict=True))
    ]
    # What no leaf tells apart is told by its event.
    taken = fitting if len(known) < len(rest) else fitting[:number]
    events = _events([event_id for _, event_id, *_ in taken], rest, known)
    found = [(events[row[1]], row[0]) for row in taken if row[1] in events]
    if len(found) > number:
        return _Found(found[:number], found[number - 1][1])
    if len(taken) < len(fitting):
        return _Found(found, taken[-1][0])
    return _Found(found, rows[-1][0] if len(rows) == examined else None)


def _waiting(columns: Mapping[str, Any], entries: QuerySet[QueueEntry], number: int) -> _Found:
    examined = EXAMINED if columns else number
    ids = list(entries.values_list("event_id", flat=True)[:examined])
    events = _events(ids, columns, ())
    found = [(events[pk], pk) for pk in ids if pk in events]
    if len(found) > number:
        return _Found(found[:number], found[number - 1][1])
    return _Found(found, ids[-1] if len(ids) == examined else None)


def _events(ids: list[uuid.UUID], columns: Mapping[str, Any], known: Iterable[str]) -> dict[uuid.UUID, Event]:
    """Those of the events that are still here and have the values that no leaf has told already."""
    asked = {name: value for name, value in columns.items() if name not in known}
    if not ids:
        return {}
    # With their bounds, so that no month is looked into that has none of them.
    found = Event.objects.filter(**asked, pk__gte=min(ids), pk__lte=max(ids))
    return found.prefetch_related("openings").in_bulk(ids)
