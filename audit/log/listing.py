"""Read events in log order or reversed, by pages, at a cost that does not grow with the log.

Leaves repeat the event's agent, human and kind, so one of their indexes finds the next page. Other
filters are applied to a bounded number of leaves per page.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

from django.db.models import QuerySet

from audit.db.partition_dropping import kept_from
from audit.models import Event, Leaf, QueueEntry

# If no index covers the filters, a page examines at most this many leaves, or waiting events.
EXAMINED: Final = 5_000
# The indexed columns of a leaf, the most selective first. A leaf has no other columns of its event.
_LED_BY: Final = ("agent_id", "human_id", "kind")


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: the last leaf examined, and the last event without a leaf."""

    leaf_index: int = -1
    waiting: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"{self.leaf_index}.{self.waiting}" if self.waiting else str(self.leaf_index)


@dataclass(frozen=True, slots=True)
class Descent:
    """Where a reversed page ended: the last waiting event examined, or later the last leaf."""

    leaf_index: int | None = None
    waiting: uuid.UUID | None = None

    def __str__(self) -> str:
        return f"~.{self.waiting}" if self.leaf_index is None else f"~{self.leaf_index}"


End = TypeVar("End", Cursor, Descent)


class Page(NamedTuple, Generic[End]):
    """Events with their leaf index (None while waiting), and the next cursor (None at the end)."""

    events: list[tuple[Event, int | None]]
    end: End | None


class _Found(NamedTuple):
    """Events with their places, at most `number`; and the last place examined, None at the end."""

    events: list[tuple[Event, Any]]
    reached: Any


def page_of_log(*, wanted: Sequence[tuple[str, Any]], after: Cursor, limit: int) -> Page[Cursor]:
    """At most `limit` events that match the (column, value) pairs: first numbered, then waiting.

    Paging misses no event, whatever is numbered meanwhile. A page before the last may be short or
    empty.
    """
    columns = _columns(wanted)
    if columns is None:
        return Page([], None)
    # Read the queue first: an event numbered between the two queries is then in both, never in
    # neither.
    waiting = _waiting(columns, _queue_after(after.waiting), limit + 1)
    numbered = _find_numbered(columns, _leaves(max(after.leaf_index, kept_from() - 1)), limit + 1)
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


def page_newest_first(
    *, wanted: Sequence[tuple[str, Any]], after: Descent, limit: int
) -> Page[Descent]:
    """As `page_of_log`, reversed: waiting events, then numbered ones from the last to the first.

    Paging misses no event that existed at its start; later events belong before its first page.
    """
    columns = _columns(wanted)
    if columns is None:
        return Page([], None)
    events: list[tuple[Event, int | None]] = []
    if after.leaf_index is None:
        waiting = _waiting(columns, _queue_after(after.waiting, descending=True), limit + 1)
        events = [(event, None) for event, _ in waiting.events[:limit]]
        if len(events) == limit:
            return Page(events, Descent(waiting=events[-1][0].pk))
        if waiting.reached is not None:
            return Page(events, Descent(waiting=waiting.reached))
    ids = {event.pk for event, _ in events}
    numbered = _find_numbered(columns, _leaves(after.leaf_index, descending=True), limit + 1)
    # An event numbered between the two queries is in both: show it once, as waiting.
    later = [(event, at) for event, at in numbered.events if event.pk not in ids]
    shown = later[: limit - len(events)]
    reached = shown[-1][1] if len(shown) < len(later) else numbered.reached
    return Page([*events, *shown], None if reached is None else Descent(reached))


def _columns(wanted: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """The values by column; None if two values of one column differ, so that nothing matches."""
    columns: dict[str, Any] = {}
    for name, value in wanted:
        if str(columns.setdefault(name, value)) != str(value):
            return None
    return columns


def _leaves(after: int | None, *, descending: bool = False) -> QuerySet[Leaf]:
    """The leaves after a place, in the requested direction."""
    if not descending:
        return Leaf.objects.filter(leaf_index__gt=after).order_by("leaf_index")
    kept = Leaf.objects.filter(leaf_index__gte=kept_from()).order_by("-leaf_index")
    return kept if after is None else kept.filter(leaf_index__lt=after)


def _queue_after(after: uuid.UUID | None, *, descending: bool = False) -> QuerySet[QueueEntry]:
    """The waiting events after one of them, in the requested direction."""
    entries = QueueEntry.objects.order_by("-event_id" if descending else "event_id")
    if after is None:
        return entries
    return entries.filter(event_id__lt=after) if descending else entries.filter(event_id__gt=after)


def _find_numbered(columns: Mapping[str, Any], leaves: QuerySet[Leaf], number: int) -> _Found:
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
    # Filters on columns that leaves lack are applied to the events, so read more than `number`
    # then.
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


def _events(
    ids: list[uuid.UUID], columns: Mapping[str, Any], known: Iterable[str]
) -> dict[uuid.UUID, Event]:
    """The existing events among `ids` that match the columns that were not matched by leaf."""
    asked = {name: value for name, value in columns.items() if name not in known}
    if not ids:
        return {}
    # The id bounds let PostgreSQL skip the months (partitions) that hold none of them.
    found = Event.objects.filter(**asked, pk__gte=min(ids), pk__lte=max(ids))
    return found.prefetch_related("openings").in_bulk(ids)
