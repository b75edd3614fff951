"""Prove the stored log: each leaf against its event, each link against the previous, no extra rows.

A run checks the whole log, or what follows a signed point that an earlier run proved, and a part of
what precedes it. Reads in batches, so memory does not grow with the log. Needs no long transaction:
rows below the head read first never change, and each check of other rows is one statement.
"""

import base64
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Final, NamedTuple, cast

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import ChainError
from agentauth.protocol.log_hashes import EMPTY_LINK, TILE_HEIGHT, CompactTree, Subtree
from agentauth.protocol.merkle_proofs import verify_consistency
from audit.checkpoints.checkpoint_copies import ContradictedError
from audit.checkpoints.signed_checkpoint_reading import Anchor
from audit.db.partition_dropping import DroppedEvents
from audit.log.erasure import ErasedOpenings
from audit.log.tree_reader import consistency_proof, tree_at
from audit.models import Event, Head, Leaf, Node, QueueEntry
from audit.verify.entry_checks import (
    BadError,
    FaultLocation,
    check_leaf,
    check_openings_of,
    check_other_openings,
    missing,
    read_leaves,
)

BATCH: Final = 500
# This many nodes are compared in one query per level.
_NODES: Final = 256


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a run. `first_bad` is an event id or a leaf index.

    Size and root (base64) are those of the leaves proved before it. A checkpoint by a valid key
    signs the first `signed_size` of them. At `disabled_key_sizes` sizes, only keys disabled since
    (the last at `disabled_at`, empty if none) signed a checkpoint: it matches, but proves nothing.
    The run checked leaves from `checked_from` on and `rechecked_from` ≤ index < `rechecked_to`.
    `erased` counts the commitments of these events without an opening; an event says why each was
    erased.
    """

    ok: bool
    tree_size: int
    root_hash: str
    first_bad: FaultLocation | None
    problem: str
    signed_size: int = 0
    disabled_key_sizes: int = 0
    disabled_at: str = ""
    checked_from: int = 0
    rechecked_from: int = 0
    rechecked_to: int = 0
    erased: int = 0


class Point(NamedTuple):
    """The first `size` leaves were proved, end in this link, and a valid key signed their root."""

    size: int
    root: bytes
    link: bytes


class Part(NamedTuple):
    """To recheck below a Point: leaves `first` ≤ index < `end`, events `after` < id ≤ `until`."""

    first: int
    end: int
    after: uuid.UUID | None = None
    until: uuid.UUID | None = None


class Proof(NamedTuple):
    """The verdict and, if the log is whole, the largest Point that a valid key signed, if any."""

    verdict: Verdict
    point: Point | None


START: Final = Point(0, b"", EMPTY_LINK)


def verify_log(*, anchors: Iterable[Anchor] = (), batch: int = BATCH) -> Verdict:
    """Check the log up to the first contradiction. Reads `batch` leaves at a time, writes nothing.

    At the size of each of `anchors`, the tree must have its root. Raises what iterating `anchors`
    raises, except ContradictedError, which becomes a verdict.
    """
    return prove_log(anchors=anchors, batch=batch).verdict


def prove_log(
    *,
    anchors: Iterable[Anchor] = (),
    since: Point = START,
    again: Part | None = None,
    batch: int = BATCH,
) -> Proof:
    """As `verify_log`, but checks only what follows `since`, the stored tree there, and `again`.

    An attacker with write access to the database cannot forge a matching `since`: its root was
    signed and is kept outside the database.
    """
    run = _Run(since, again, batch)
    try:
        run.check(anchors)
    except BadError as bad:
        return Proof(run.verdict(bad), None)
    return Proof(run.verdict(None), run.met.point)


class _Run:
    """One run: the tree built so far, and the anchors met on the way."""

    def __init__(self, since: Point, again: Part | None, batch: int) -> None:
        self.since, self.again, self.batch = since, again, batch
        self.tree, self.met = CompactTree(), _Anchors(since)
        self.lowest: uuid.UUID | None = None
        self.erased = ErasedOpenings()

    def check(self, anchors: Iterable[Anchor]) -> None:
        self.met.read(anchors)
        # 1. Read the head first: leaves added after it are left to the next run.
        head = Head.objects.filter(id=Head.ONLY).first() or Head(size=0, link=EMPTY_LINK)
        # 2. The start: the stored tree has the signed root, so later leaves only add to it.
        if self.since.size:
            self._begin(head)
        # 3. Each leaf: present, in order, linked to the previous leaf, and the hash of its event,
        # whose openings are unchanged or erased.
        last_link = self._walk(self.tree, self.since.link, head.size, self.met)
        self.met.end(self.tree.size)
        # 4. The head against the last leaf, and its stored peaks against the tree.
        _check_head(head, last_link, self.tree)
        _check_no_nodes_beyond(head.size)
        # 5. Rows without a leaf below the head.
        _check_strays(self._new_events())
        # 6. The openings of events without a leaf; step 3 checked the others.
        if not self.since.size:
            check_other_openings(self.batch)
        # 7. Recheck a part of what earlier runs proved.
        if self.again is not None:
            self._check_again(self.again)

    def verdict(self, bad: BadError | None) -> Verdict:
        again = self.again or Part(0, 0)
        return Verdict(
            ok=bad is None,
            tree_size=self.tree.size,
            root_hash=base64.b64encode(self.tree.root()).decode("ascii"),
            first_bad=bad.place if bad else None,
            problem=bad.problem if bad else "",
            signed_size=self.met.signed,
            disabled_key_sizes=self.met.doubted,
            disabled_at=timestamp(self.met.disabled_at) if self.met.disabled_at else "",
            checked_from=self.since.size,
            rechecked_from=again.first,
            rechecked_to=again.end,
            erased=self.erased.count,
        )

    def _begin(self, head: Head) -> None:
        size = self.since.size
        if head.size < size:
            raise BadError(
                head.size,
                f"Leaf {head.size} is missing: {size} events were proved and signed before. "
                "The log was cut short, or set "
                "back to an older state. After a restore that is on record: "
                f"`{settings.COMMAND} verify_audit --full`.",
            )
        self.tree = _stored_tree(
            size, f"The stored tree of the first {size} events, which were proved before,"
        )
        if self.tree.root() != self.since.root:
            raise BadError(
                0,
                f"The stored tree of the first {size} events is not the one that was proved "
                "and signed before: some of it "
                f"was changed. Run `{settings.COMMAND} verify_audit --full` to find out where.",
            )
        self.met.pass_by()

    def _walk(self, tree: CompactTree, previous: bytes, end: int, met: "_Anchors") -> bytes:
        """Check leaves from the tree's size up to `end`; returns the link of the last one."""
        nodes, gone = list[Subtree](), DroppedEvents()
        met.meet(tree, previous)
        for start in range(tree.size, end, self.batch):
            stop = min(start + self.batch, end)
            ids, events = [], []
            for leaf, event in read_leaves(start, stop):
                check_leaf(leaf, event, tree.size, previous, gone)
                previous = bytes(leaf.link)
                tree.append(bytes(leaf.leaf_hash), nodes)
                met.meet(tree, previous)
                ids.append(leaf.event_id)
                events += [event] if event else []
            if tree.size < stop:
                raise missing(tree.size)
            check_openings_of(events, self.erased)
            if self.since.size:
                # Track the lowest id here: the database cannot find it quickly with an index on
                # ids.
                self.lowest = min(filter(None, (self.lowest, *ids)))
            if len(nodes) >= _NODES:
                _check_nodes(nodes)
                nodes.clear()
        _check_nodes(nodes)
        return previous

    def _new_events(self) -> Q:
        """All events; after a point, those from the lowest id of its last and later leaves on."""
        if not self.since.size:
            return Q()
        last = (
            Leaf.objects.filter(leaf_index=self.since.size - 1)
            .values_list("event_id", flat=True)
            .first()
        )
        return Q(pk__gte=min(filter(None, (last, self.lowest)))) if last or self.lowest else Q()

    def _check_again(self, part: Part) -> None:
        """Check these leaves again, and that the signed root covers them."""
        what = (
            f"The stored tree of leaves {part.first} to {part.end - 1}, which were proved before,"
        )
        tree = _stored_tree(part.first, what)
        before = Leaf.objects.filter(leaf_index=part.first - 1).first()
        if before is None and part.first:
            raise missing(part.first - 1)
        self._walk(tree, bytes(before.link) if before else EMPTY_LINK, part.end, _Anchors(START))
        _check_leads_to(tree.size, tree.root(), self.since, part.first, what)
        between = Q(pk__gt=part.after) if part.after else Q()
        _check_lost(between & Q(pk__lte=part.until) if part.until else between)


def _stored_tree(size: int, what: str) -> CompactTree:
    try:
        return tree_at(size)
    except ChainError as error:
        raise BadError(0, f"{what} has gaps: some of it was deleted.") from error


def _check_leads_to(size: int, root: bytes, later: Point, place: FaultLocation, what: str) -> None:
    """Check that the tree of `later` extends the one of `size` leaves with this `root`."""
    try:
        verify_consistency(size, later.size, consistency_proof(size, later.size), root, later.root)
    except ChainError as error:
        raise BadError(
            place,
            f"{what} does not lead to the root that was signed for {later.size}: it was changed.",
        ) from error


def _check_head(head: Head, last_link: bytes, tree: CompactTree) -> None:
    # The next leaf is appended to these two: changed, they would make every later root wrong.
    if last_link != bytes(head.link):
        raise BadError(
            max(head.size - 1, 0),
            "The head does not hold the link of the last leaf: it was changed.",
        )
    if bytes(head.peaks) != b"".join(tree.peaks):
        raise BadError(
            max(head.size - 1, 0),
            "The head does not hold the peaks of the tree over the leaves: it was changed.",
        )


def _check_nodes(nodes: Sequence[Subtree]) -> None:
    """Check the stored nodes: proofs use them, and a changed node would make them fail."""
    by_level = sorted((each.height // TILE_HEIGHT, each.number, each.root) for each in nodes)
    for level, group in groupby(by_level, key=lambda each: each[0]):
        wanted = {index: root for _, index, root in group}
        there = Node.objects.filter(level=level, index__gte=min(wanted), index__lte=max(wanted))
        found = {index: bytes(kept) for index, kept in there.values_list("index", "hash")}
        for index, root in wanted.items():
            if index not in found:
                raise BadError(
                    _first_leaf(level, index),
                    f"Node {index} of level {level} is missing: it was deleted.",
                )
            if found[index] != root:
                raise BadError(
                    _first_leaf(level, index),
                    f"Node {index} of level {level} is not that of the leaves below it: it "
                    "was changed.",
                )


def _check_no_nodes_beyond(size: int) -> None:
    """Check that no nodes lie beyond the head: they could be taken for nodes of later leaves."""
    full = [size >> (TILE_HEIGHT * level) for level in range(64 // TILE_HEIGHT)]
    beyond = Q(level__gte=len(full)) | Q(level__lt=1)
    for level, number in enumerate(full):
        beyond |= Q(level=level, index__gte=number)
    strays = list(
        Node.objects.filter(beyond).order_by("level", "index").values_list("level", "index")
    )
    # The log may have grown since, so compare with the current head.
    now = Head.objects.filter(id=Head.ONLY).values_list("size", flat=True).first() or 0
    for level, index in strays:
        if level < 1 or _first_leaf(level, index + 1) > now:
            raise BadError(
                _first_leaf(level, index),
                f"Node {index} of level {level} lies outside the head: it was inserted.",
            )


def _first_leaf(level: int, index: int) -> int:
    return index << (TILE_HEIGHT * level)


class _Anchors:
    """The anchors not yet reached, by size, and what `Verdict` reports of those reached.

    `point` is the last one that a valid key signed; at least `since`.
    """

    def __init__(self, since: Point) -> None:
        self._by_size: dict[int, list[Anchor]] = {}
        self._since, self.point = since, since if since.size else None
        self.doubted, self.disabled_at = 0, cast("datetime | None", None)

    @property
    def signed(self) -> int:
        return self.point.size if self.point else 0

    def read(self, anchors: Iterable[Anchor]) -> None:
        try:
            for anchor in anchors:
                self._by_size.setdefault(anchor.size, []).append(anchor)
        except ContradictedError as error:
            raise BadError(0, error.description) from error

    def pass_by(self) -> None:
        """Check the anchors below `since`, which the walk skips: `since` must extend them."""
        for size in sorted(size for size in self._by_size if size < self._since.size):
            here = self._by_size.pop(size)
            for anchor in here:
                _check_leads_to(
                    size, anchor.root, self._since, max(size - 1, 0), f"What {anchor.place} says"
                )
            if not any(anchor.vouched for anchor in here):
                self._doubt(here)

    def meet(self, tree: CompactTree, link: bytes) -> None:
        if tree.size not in self._by_size:
            return
        here, root = self._by_size.pop(tree.size), tree.root()
        for anchor in here:
            if root != anchor.root:
                raise BadError(
                    max(anchor.size - 1, 0),
                    f"The first {anchor.size} events are not those of {anchor.place}: one of "
                    "them was changed, and the log "
                    "after it made to fit.",
                )
        if any(anchor.vouched for anchor in here):
            self.point = Point(tree.size, root, link)
        else:
            self._doubt(here)

    def _doubt(self, here: Iterable[Anchor]) -> None:
        self.doubted += 1
        dates = [self.disabled_at, *(anchor.disabled_at for anchor in here)]
        self.disabled_at = max(at for at in dates if at is not None)

    def end(self, size: int) -> None:
        for beyond in sorted(self._by_size):
            raise BadError(
                size,
                f"Leaf {size} is missing: {self._by_size[beyond][0].place} covers {beyond} "
                "events. The log was cut "
                "short, or set back to an older state.",
            )


def _check_strays(events: Q) -> None:
    """Check for leaves past the head, events neither numbered nor queued, and orphaned entries."""
    head_size = Coalesce(Subquery(Head.objects.filter(id=Head.ONLY).values("size")), 0)
    outside = Leaf.objects.filter(Q(leaf_index__gte=head_size) | Q(leaf_index__lt=0)).order_by(
        "leaf_index"
    )
    if (index := outside.values_list("leaf_index", flat=True).first()) is not None:
        raise BadError(
            index,
            f"Leaf {index} lies outside the head: it was inserted, or the head was moved back.",
        )
    _check_lost(events)
    orphans = QueueEntry.objects.filter(~Exists(Event.objects.filter(pk=OuterRef("event_id"))))
    if (event_id := orphans.values_list("event_id", flat=True).first()) is not None:
        raise BadError(
            str(event_id), f"Event {event_id} waits for its number but is gone: it was deleted."
        )


def _check_lost(events: Q) -> None:
    numbered = Leaf.objects.filter(event_id=OuterRef("pk"))
    waiting = QueueEntry.objects.filter(event_id=OuterRef("pk"))
    lost = Event.objects.filter(events, ~Exists(numbered), ~Exists(waiting)).order_by("id")
    if (event_id := lost.values_list("id", flat=True).first()) is not None:
        raise BadError(
            str(event_id),
            f"Event {event_id} has neither a leaf nor a queue entry: it was inserted, or one "
            "was deleted.",
        )
