"""Proving the stored log: every leaf against its event, every link against the one before, and nothing left over.

Reads in batches and keeps none, so memory does not grow with the log. It needs no long transaction: what lies
below the head it read first never changes, and each question about the rest is one statement.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from django.db import DatabaseError
from django.db.models import Exists, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from agentauth.protocol.chain import EMPTY_LINK, CompactTree, leaf_hash, link
from audit.entries import commitment, entry_of
from audit.models import Event, Head, Leaf, Opening, QueueEntry

BATCH = 500
_T = TypeVar("_T")
Place = str | int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`first_bad` is an event id or a leaf index; size and root (base64) are those of the leaves proved before it."""

    ok: bool
    tree_size: int
    root_hash: str
    first_bad: Place | None
    problem: str


class _BadError(Exception):
    """The log contradicts itself at `place`."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


def verify_log(*, batch: int = BATCH) -> Verdict:
    """Check the whole log; the first contradiction ends it. Reads `batch` leaves at a time, writes nothing."""
    tree = CompactTree()
    try:
        # 1. Where the log says it ends, before anything else: later leaves are another run's business.
        head = Head.objects.filter(id=Head.ONLY).first() or Head(size=0, link=EMPTY_LINK)
        # 2. Each leaf: present, in order, linked to the one before, and the hash of its event.
        last_link = _check_leaves(tree, head.size, batch)
        # 3. The head against the last leaf.
        _check_head(head, last_link)
        # 4. Rows that no leaf below the head accounts for.
        _check_strays()
        # 5. What was said to be hidden in an event, against what the event committed to.
        _check_openings(batch)
    except _BadError as bad:
        return _verdict(tree, bad)
    return _verdict(tree, None)


def _verdict(tree: CompactTree, bad: _BadError | None) -> Verdict:
    root = base64.b64encode(tree.root()).decode("ascii")
    if bad is None:
        return Verdict(ok=True, tree_size=tree.size, root_hash=root, first_bad=None, problem="")
    return Verdict(ok=False, tree_size=tree.size, root_hash=root, first_bad=bad.place, problem=bad.problem)


def _check_head(head: Head, last_link: bytes) -> None:
    if last_link != bytes(head.link):
        raise _BadError(
            max(head.size - 1, 0), "The head does not hold the link of the last leaf: it was changed."
        )


def _check_leaves(tree: CompactTree, size: int, batch: int) -> bytes:
    previous = EMPTY_LINK
    for start in range(0, size, batch):
        for leaf, event in _leaves(start, min(start + batch, size)):
            _check_leaf(leaf, event, tree.size, previous)
            previous = bytes(leaf.link)
            tree.append(bytes(leaf.leaf_hash))
        if tree.size < min(start + batch, size):
            raise _missing(tree.size)
    return previous


def _check_leaf(leaf: Leaf, event: Event | None, expected_index: int, previous: bytes) -> None:
    if leaf.leaf_index != expected_index:
        raise _missing(expected_index)
    if event is None:
        raise _BadError(str(leaf.event_id), f"Event {leaf.event_id} of leaf {leaf.leaf_index} was deleted.")
    if len(leaf.leaf_hash) != len(EMPTY_LINK) or link(previous, bytes(leaf.leaf_hash)) != bytes(leaf.link):
        raise _BadError(
            leaf.leaf_index,
            f"Leaf {leaf.leaf_index} does not continue the leaf before it: a leaf was changed, inserted, "
            "removed or moved here.",
        )
    if _entry_hash(event) != bytes(leaf.leaf_hash):
        raise _BadError(
            str(event.id),
            f"Event {event.id} is not what leaf {leaf.leaf_index} recorded: it was changed, or the leaf was "
            "pointed at another event.",
        )


def _entry_hash(event: Event) -> bytes | None:
    return _readable(lambda: leaf_hash(entry_of(event)))


def _leaves(start: int, end: int) -> Iterator[tuple[Leaf, Event | None]]:
    """Leaves start ≤ index < end with their events. A row that cannot even be read is named by its leaf."""
    rows = _readable(lambda: _joined(start, end))
    if rows is not None:
        yield from rows
        return
    for index in range(start, end):
        row = _readable(lambda at=index: _joined(at, at + 1))  # type: ignore[misc]  # bound now, on purpose
        if row is None:
            raise _BadError(
                index, f"Leaf {index} or its event holds values that cannot be read: it was changed."
            )
        yield from row


def _joined(start: int, end: int) -> list[tuple[Leaf, Event | None]]:
    leaves = list(Leaf.objects.filter(leaf_index__gte=start, leaf_index__lt=end).order_by("leaf_index"))
    events = Event.objects.in_bulk([leaf.event_id for leaf in leaves])
    return [(leaf, events.get(leaf.event_id)) for leaf in leaves]


def _readable(read: Callable[[], _T]) -> _T | None:
    """What `read` gives, or None where the rows hold what no column of ours can hold."""
    try:
        return read()
    except DatabaseError:
        # The database being away is not the log being wrong.
        raise
    except Exception:  # noqa: BLE001 — a forged value may fail anywhere between the driver and the hash
        return None


def _check_strays() -> None:
    """Leaves past the head, events that nothing will ever number, and queue entries of no event."""
    head_size = Coalesce(Subquery(Head.objects.filter(id=Head.ONLY).values("size")), 0)
    outside = Leaf.objects.filter(Q(leaf_index__gte=head_size) | Q(leaf_index__lt=0)).order_by("leaf_index")
    if (index := outside.values_list("leaf_index", flat=True).first()) is not None:
        raise _BadError(
            index, f"Leaf {index} lies outside the head: it was inserted, or the head was moved back."
        )
    numbered = Leaf.objects.filter(event_id=OuterRef("pk"))
    waiting = QueueEntry.objects.filter(event_id=OuterRef("pk"))
    lost = Event.objects.filter(~Exists(numbered), ~Exists(waiting)).order_by("id")
    if (event_id := lost.values_list("id", flat=True).first()) is not None:
        raise _BadError(
            str(event_id),
            f"Event {event_id} has neither a leaf nor a queue entry: it was inserted, or one was deleted.",
        )
    orphans = QueueEntry.objects.filter(~Exists(Event.objects.filter(pk=OuterRef("event_id"))))
    if (event_id := orphans.values_list("event_id", flat=True).first()) is not None:
        raise _BadError(str(event_id), f"Event {event_id} waits for its number but is gone: it was deleted.")


def _check_openings(batch: int) -> None:
    last = None
    while True:
        rows = Opening.objects.order_by("id")
        page: Sequence[Opening] = list((rows.filter(id__gt=last) if last else rows)[:batch])
        if not page:
            return
        events = Event.objects.in_bulk({opening.event_id for opening in page})
        for opening in page:
            _check_opening(opening, events.get(opening.event_id))
        last = page[-1].id


def _check_opening(opening: Opening, event: Event | None) -> None:
    matches = _readable(
        lambda: (
            event is not None
            and event.data.get(opening.member) == commitment(opening.value, bytes(opening.salt))
        )
    )
    if not matches:
        raise _BadError(
            str(opening.event_id),
            f"What is kept as {opening.member!r} of event {opening.event_id} is not what the event committed to.",
        )


def _missing(index: int) -> _BadError:
    return _BadError(index, f"Leaf {index} is missing: it was deleted.")
