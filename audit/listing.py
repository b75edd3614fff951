"""Reading events in the order of the log, a page at a time, at a cost that does not grow with the log.

Leaves say whose event they are of and of which kind, so one of their indexes leads from page to page; what it does not tell
apart is looked through, a bounded number of leaves for each page.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

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


class Page(NamedTuple):
    """Events with their leaf index, None while they wait; and where the next page begins, None where nothing follows."""

    events: list[tuple[Event, int | None]]
    end: Cursor | None


class _Found(NamedTuple):
    """Events at their places, at most one more than a page holds; and the last place looked at, None where nothing follows."""

    events: list[tuple[Event, Any]]
    reached: Any


def page_of_log(*, wanted: Sequence[tuple[str, Any]], after: Cursor, limit: int) -> Page:
    """At most `limit` events with all the values `wanted`, pairs of column and value: numbered ones, then those that wait.

    Following the cursor misses none, whatever is numbered meanwhile. A page before the last may hold fewer, even none.
    """
    columns: dict[str, Any] = {}
    for name, value in wanted:
        if str(columns.setdefault(name, value)) != str(value):
            return Page([], None)
    # Waiting ones first: one that is numbered between the two questions is then in both answers, never in none.
    waiting = _waiting(columns, after.waiting, limit + 1)
    numbered = _numbered(columns, max(after.leaf_index, kept_from() - 1), limit + 1)
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


def _numbered(columns: Mapping[str, Any], after: int, number: int) -> _Found:
    leader = next((name for name in _LED_BY if name in columns), None)
    rest = {name: value for name, value in columns.items() if name != leader}
    leaves = Leaf.objects.filter(leaf_index__gt=after).order_by("leaf_index")
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


def _waiting(columns: Mapping[str, Any], after: uuid.UUID | None, number: int) -> _Found:
    entries = QueueEntry.objects.order_by("event_id")
    if after is not None:
        entries = entries.filter(event_id__gt=after)
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
