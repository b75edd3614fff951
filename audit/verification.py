"""Proving the stored log: every leaf against its event, every link against the one before, and nothing left over.

Reads in batches and keeps none, so memory does not grow with the log. It needs no long transaction: what lies
below the head it read first never changes, and each question about the rest is one statement.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from django.db import DatabaseError
from django.db.models import Exists, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from agentauth.protocol.chain import EMPTY_LINK, TILE_HEIGHT, CompactTree, Subtree, leaf_hash, link
from audit.anchors import Anchor
from audit.copies import ContradictedError
from audit.dropping import Gone
from audit.entries import commitment, entry_of
from audit.models import Event, Head, Leaf, Node, Opening, QueueEntry

BATCH = 500
_T = TypeVar("_T")
Place = str | int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`first_bad` is an event id or a leaf index; size and root (base64) are those of the leaves proved before it.

    Of these leaves a checkpoint by a key that counts signs the first `signed_size`. At `disabled_key_sizes` sizes there are
    only checkpoints by keys that were disabled since: they fit, and prove nothing by themselves.
    """

    ok: bool
    tree_size: int
    root_hash: str
    first_bad: Place | None
    problem: str
    signed_size: int = 0
    disabled_key_sizes: int = 0


class _BadError(Exception):
    """The log contradicts itself at `place`."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


def verify_log(*, anchors: Iterable[Anchor] = (), batch: int = BATCH) -> Verdict:
    """Check the whole log; the first contradiction ends it. Reads `batch` leaves at a time, writes nothing.

    At the size of each of `anchors` the tree has to have its root. Raises what reading them raises, but for
    ContradictedError, which is a verdict.
    """
    tree, nodes, waiting = CompactTree(), list[Subtree](), _Anchors()
    try:
        waiting.read(anchors)
        # 1. Where the log says it ends, before anything else: later leaves are another run's business.
        head = Head.objects.filter(id=Head.ONLY).first() or Head(size=0, link=EMPTY_LINK)
        # 2. Each leaf: present, in order, linked to the one before, and the hash of its event.
        last_link = _check_leaves(tree, head.size, batch, nodes, waiting)
        # 3. The head against the last leaf, and what the tree grows from against the tree.
        _check_head(head, last_link, tree)
        _check_nodes(nodes)
        # 4. Rows that no leaf below the head accounts for.
        _check_strays()
        # 5. What was said to be hidden in an event, against what the event committed to.
        _check_openings(batch)
    except _BadError as bad:
        return _verdict(tree, waiting, bad)
    return _verdict(tree, waiting, None)


def _verdict(tree: CompactTree, met: "_Anchors", bad: _BadError | None) -> Verdict:
    return Verdict(
        ok=bad is None,
        tree_size=tree.size,
        root_hash=base64.b64encode(tree.root()).decode("ascii"),
        first_bad=bad.place if bad else None,
        problem=bad.problem if bad else "",
        signed_size=met.signed,
        disabled_key_sizes=met.doubted,
    )


def _check_head(head: Head, last_link: bytes, tree: CompactTree) -> None:
    if last_link != bytes(head.link):
        raise _BadError(
            max(head.size - 1, 0), "The head does not hold the link of the last leaf: it was changed."
        )
    if bytes(head.peaks) != b"".join(tree.peaks):
        raise _BadError(
            max(head.size - 1, 0),
            "The head does not hold the peaks of the tree over the leaves: it was changed.",
        )


def _check_nodes(nodes: Sequence[Subtree]) -> None:
    """Proofs are made of these; one that was changed would make them fail, one too many could be taken for later leaves'."""
    wanted = {(each.height // TILE_HEIGHT, each.number): each.root for each in nodes}
    strays = []
    for node in Node.objects.order_by("level", "index").iterator():
        root = wanted.pop((node.level, node.index), None)
        if root is None:
            strays.append(node)
        elif root != bytes(node.hash):
            raise _BadError(
                _first_leaf(node.level, node.index),
                f"Node {node.index} of level {node.level} is not that of the leaves below it: it was changed.",
            )
    # Later leaves have nodes as well: what counts is where the log ends by now.
    size = Head.objects.filter(id=Head.ONLY).values_list("size", flat=True).first() or 0
    for node in strays:
        if _first_leaf(node.level, node.index + 1) > size:
            raise _BadError(
                _first_leaf(node.level, node.index),
                f"Node {node.index} of level {node.level} lies outside the head: it was inserted.",
            )
    for level, index in wanted:
        raise _BadError(
            _first_leaf(level, index), f"Node {index} of level {level} is missing: it was deleted."
        )


def _first_leaf(level: int, index: int) -> int:
    return index << (TILE_HEIGHT * level)


class _Anchors:
    """What is to be met on the way, by size; `signed` and `doubted` are what `Verdict` tells of those that were met."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[Anchor]] = {}
        self.signed = self.doubted = 0

    def read(self, anchors: Iterable[Anchor]) -> None:
        try:
            for anchor in anchors:
                self._by_size.setdefault(anchor.size, []).append(anchor)
        except ContradictedError as error:
            raise _BadError(0, error.description) from error

    def meet(self, tree: CompactTree) -> None:
        here = self._by_size.pop(tree.size, [])
        for anchor in here:
            if tree.root() != anchor.root:
                raise _BadError(
                    max(anchor.size - 1, 0),
                    f"The first {anchor.size} events are not those of {anchor.place}: one of them was changed, and the log "
                    "after it made to fit.",
                )
        if any(anchor.vouched for anchor in here):
            self.signed = tree.size
        elif here:
            self.doubted += 1

    def end(self, size: int) -> None:
        for beyond in sorted(self._by_size):
            raise _BadError(
                size,
                f"Leaf {size} is missing: {self._by_size[beyond][0].place} tells of {beyond} events. The log was cut "
                "short, or set back to an older state.",
            )


def _check_leaves(tree: CompactTree, size: int, batch: int, nodes: list[Subtree], anchors: _Anchors) -> bytes:
    anchors.meet(tree)
    previous, gone = EMPTY_LINK, Gone()
    for start in range(0, size, batch):
        for leaf, event in _leaves(start, min(start + batch, size)):
            _check_leaf(leaf, event, tree.size, previous, gone)
            previous = bytes(leaf.link)
            tree.append(bytes(leaf.leaf_hash), nodes)
            anchors.meet(tree)
        if tree.size < min(start + batch, size):
            raise _missing(tree.size)
    anchors.end(tree.size)
    return previous


def _check_leaf(leaf: Leaf, event: Event | None, expected_index: int, previous: bytes, gone: Gone) -> None:
    if leaf.leaf_index != expected_index:
        raise _missing(expected_index)
    if event is None and not gone.allows(leaf):
        raise _BadError(str(leaf.event_id), f"Event {leaf.event_id} of leaf {leaf.leaf_index} was deleted.")
    if len(leaf.leaf_hash) != len(EMPTY_LINK) or link(previous, bytes(leaf.leaf_hash)) != bytes(leaf.link):
        raise _BadError(
            leaf.leaf_index,
            f"Leaf {leaf.leaf_index} does not continue the leaf before it: a leaf was changed, inserted, "
            "removed or moved here.",
        )
    if leaf_hash(bytes(leaf.entry)) != bytes(leaf.leaf_hash):
        raise _BadError(
            leaf.leaf_index,
            f"The entry of leaf {leaf.leaf_index} is not what its leaf hash is of: it was changed.",
        )
    if event is None:
        # The archive has it; its entry was the last thing to check here.
        return
    if leaf_hash_of(event) != bytes(leaf.leaf_hash):
        raise _BadError(
            str(event.id),
            f"Event {event.id} is not what leaf {leaf.leaf_index} recorded: it was changed, or the leaf was "
            "pointed at another event.",
        )
    if (leaf.agent_id, leaf.human_id, leaf.kind) != (event.agent_id, event.human_id, event.kind):
        raise _BadError(
            leaf.leaf_index,
            f"Leaf {leaf.leaf_index} says of event {event.id} what it is not: whose it is, or of which kind, was changed.",
        )


def leaf_hash_of(event: Event) -> bytes | None:
    """The leaf hash of an event as it is stored now; None where it holds what cannot be hashed, as no event of ours does."""
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
