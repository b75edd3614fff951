"""Check leaves, their events and openings. `audit.verify.verification` checks the tree."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

from django.db import DatabaseError
from django.db.models import Exists, OuterRef

from agentauth.protocol.log_hashes import EMPTY_LINK, leaf_hash, link
from audit.db.partition_dropping import DroppedEvents
from audit.log.erasure import ErasedOpenings
from audit.log.event_encoding import entry_of, is_committed
from audit.models import Event, Leaf, Opening

_T = TypeVar("_T")
FaultLocation = str | int


class BadError(Exception):
    """The log contradicts itself at `place`."""

    def __init__(self, place: FaultLocation, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


def check_leaf(
    leaf: Leaf, event: Event | None, expected_index: int, previous: bytes, gone: DroppedEvents
) -> None:
    """Check the leaf's index, its link to `previous`, and its event. Raises BadError."""
    if leaf.leaf_index != expected_index:
        raise missing(expected_index)
    if event is None and not gone.allows(leaf):
        raise BadError(
            str(leaf.event_id), f"Event {leaf.event_id} of leaf {leaf.leaf_index} was deleted."
        )
    if len(leaf.leaf_hash) != len(EMPTY_LINK) or link(previous, bytes(leaf.leaf_hash)) != bytes(
        leaf.link
    ):
        raise BadError(
            leaf.leaf_index,
            f"Leaf {leaf.leaf_index} does not continue the leaf before it: a leaf was "
            "changed, inserted, "
            "removed or moved here.",
        )
    if leaf_hash(bytes(leaf.entry)) != bytes(leaf.leaf_hash):
        raise BadError(
            leaf.leaf_index,
            f"The entry of leaf {leaf.leaf_index} does not match its leaf hash: it was changed.",
        )
    if event is None:
        # The event is in the archive; its entry was the last thing to check here.
        return
    if leaf_hash_of(event) != bytes(leaf.leaf_hash):
        raise BadError(
            str(event.id),
            f"Event {event.id} differs from what leaf {leaf.leaf_index} recorded: it was changed, "
            "or the leaf was pointed at another event.",
        )
    if (leaf.agent_id, leaf.human_id, leaf.kind) != (event.agent_id, event.human_id, event.kind):
        raise BadError(
            leaf.leaf_index,
            f"Leaf {leaf.leaf_index} contradicts event {event.id} on its kind or its owner: one "
            "of them was changed.",
        )


def leaf_hash_of(event: Event) -> bytes | None:
    """The leaf hash of the stored event; None if a value cannot be hashed, which we never write."""
    return readable(lambda: leaf_hash(entry_of(event)))


def read_leaves(start: int, end: int) -> Iterator[tuple[Leaf, Event | None]]:
    """Leaves start ≤ index < end with their events. Raises BadError for an unreadable row."""
    rows = readable(lambda: _join_events(start, end))
    if rows is not None:
        yield from rows
        return
    for index in range(start, end):
        row = readable(lambda at=index: _join_events(at, at + 1))  # type: ignore[misc]  # bound now, on purpose
        if row is None:
            raise BadError(
                index,
                f"Leaf {index} or its event holds values that cannot be read: it was changed.",
            )
        yield from row


def _join_events(start: int, end: int) -> list[tuple[Leaf, Event | None]]:
    leaves = list(
        Leaf.objects.filter(leaf_index__gte=start, leaf_index__lt=end).order_by("leaf_index")
    )
    events = Event.objects.in_bulk([leaf.event_id for leaf in leaves])
    return [(leaf, events.get(leaf.event_id)) for leaf in leaves]


def readable(read: Callable[[], _T]) -> _T | None:
    """The result of `read`, or None if a row holds a value that its column cannot hold."""
    try:
        return read()
    except DatabaseError:
        # An unavailable database does not make the log wrong.
        raise
    except Exception:  # noqa: BLE001 — a forged value may fail anywhere up to the hash
        return None


def check_openings_of(events: Sequence[Event], erased: ErasedOpenings) -> None:
    """Check the openings of these events, and that missing ones were erased. Raises BadError."""
    by_id = {event.pk: event for event in events}
    found = set()
    for opening in Opening.objects.filter(event_id__in=by_id):
        _check_opening(opening, by_id.get(opening.event_id))
        found.add((opening.event_id, opening.member))
    for event in events:
        for member in _committed_members(event):
            if (event.pk, member) not in found and not erased.allows(event):
                raise BadError(
                    str(event.pk),
                    f"The {member!r} of event {event.pk} is missing, and no event says that "
                    "it was erased: it was deleted.",
                )


def check_other_openings(batch: int) -> None:
    """Check openings of events without a number, and that each has an event. Raises BadError."""
    last = None
    numbered = Leaf.objects.filter(event_id=OuterRef("event_id"))
    others = Opening.objects.filter(~Exists(numbered)).order_by("id")
    while True:
        page: Sequence[Opening] = list((others.filter(id__gt=last) if last else others)[:batch])
        if not page:
            return
        events: Mapping[UUID, Event] = Event.objects.in_bulk({opening.event_id for opening in page})
        for opening in page:
            _check_opening(opening, events.get(opening.event_id))
        last = page[-1].id


def _committed_members(event: Event) -> list[str]:
    """The members of its data that are commitments."""
    return [
        name
        for name, value in event.data.items()
        if isinstance(value, dict) and [*value] == ["commitment"]
    ]


def _check_opening(opening: Opening, event: Event | None) -> None:
    if not readable(lambda: event is not None and is_committed(event, opening)):
        raise BadError(
            str(opening.event_id),
            f"The stored {opening.member!r} of event {opening.event_id} differs from what the "
            "event committed to: it was changed.",
        )


def missing(index: int) -> BadError:
    """The error for a missing leaf."""
    return BadError(index, f"Leaf {index} is missing: it was deleted.")
