"""How the log stands at this moment, for whoever looks: what is signed, whether it still fits, and where single events are in it.

What is asked here is cheap enough to be asked for each page and says no more than it checked: whole levels of the tree that
nobody looks at may be wrong below it. The whole log is `audit.verification`; what stands outside, `audit.checkpoints`.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from django.db.models import Max, QuerySet

from agentauth.protocol.chain import verify_inclusion
from agentauth.protocol.errors import ChainError
from audit.anchors import any_anchor_of
from audit.checkpoints import newest_checkpoint
from audit.copies import ContradictedError
from audit.leaf_checks import leaf_hash_of
from audit.models import Checkpoint, CheckpointCopy, Cosignature, Event, Head, Leaf, QueueEntry, Segment
from audit.sequencer import tree_of
from audit.tree import inclusion_proofs, root_at

# Three times as long as news may wait for a signature.
LATE = timedelta(seconds=180)
# Among so many copies and cosignatures the newest of each store and witness are looked for: a day of one alone.
RECENT = 1_500


@dataclass(frozen=True, slots=True)
class Standing:
    """`size` events are numbered, `checkpoint` is the newest; `problem` says what does not fit, and is empty otherwise.

    With `disabled_at` the newest checkpoint fits and proves nothing: the key that signed it was disabled then.
    `unsigned_for` is how long the oldest numbered event that no checkpoint signs has waited for one, 0 without such.
    """

    size: int
    checkpoint: Checkpoint | None
    problem: str
    unsigned_for: timedelta
    disabled_at: datetime | None = None

    @property
    def signed(self) -> int:
        """How many events the newest checkpoint signs."""
        return self.checkpoint.size if self.checkpoint else 0

    @property
    def is_late(self) -> bool:
        """Whether events wait for the next checkpoint for longer than they may."""
        return self.unsigned_for > LATE


class Place(StrEnum):
    """Where an event is. WRONG: it is not what was recorded, or never was; UNPROVED: no proof leads from it to the checkpoint."""

    WAITING = "waiting"
    NUMBERED = "numbered"
    PROVED = "proved"
    UNPROVED = "unproved"
    WRONG = "wrong"


class Stand(NamedTuple):
    """An event's place, and its number where it has one."""

    place: Place
    number: int | None


class Reach(NamedTuple):
    """How far the copies come, each in events from the first one on; a store or a witness that is not named has none."""

    copied: Mapping[str, int]
    cosigned: Mapping[str, int]
    archived: int


def log_reach() -> Reach:
    """How many events the copies in stores, the signatures of witnesses, and the archive cover. Raises django.db errors."""
    last = Segment.objects.order_by("-first").values_list("end", flat=True).first()
    return Reach(
        copied=_newest(CheckpointCopy.objects.all(), "store"),
        cosigned=_newest(Cosignature.objects.all(), "witness"),
        archived=last or 0,
    )


def _newest(rows: QuerySet[Any], whose: str) -> dict[str, int]:
    """The largest checkpoint of each, among the newest rows: there is one for each minute, for ever."""
    recent = rows.filter(pk__in=rows.order_by("-pk").values("pk")[:RECENT])
    return dict(recent.values_list(whose).annotate(Max("checkpoint_id")).order_by(whose))


def log_standing(*, now: datetime) -> Standing:
    """Look at the newest checkpoint and the head, and check them against the log's keys and the stored tree.

    1. The checkpoint is signed by a key of the log, if only by one that was disabled since, and its row says what its note
    says.
    2. The stored tree, at the size of the checkpoint, has the root that was signed.
    3. The stored tree, at the size of the head, is the one the head continues from.

    A handful of queries, whatever the size of the log. Raises django.db errors.
    """
    # In this order: the log may grow in between, and never becomes shorter than what it signed.
    checkpoint, head = newest_checkpoint(), Head.objects.filter(id=Head.ONLY).first() or Head(size=0)
    problem, disabled_at = "", None
    try:
        if checkpoint is not None:
            disabled_at = any_anchor_of(checkpoint, now=now).disabled_at
            _check(checkpoint.size, bytes(checkpoint.root), head, "that was signed")
        _check(head.size, tree_of(head).root(), head, "it is continued from")
    except ChainError as error:
        problem = error.description
    return Standing(head.size, checkpoint, problem, _unsigned_for(head, checkpoint, now), disabled_at)


def stands_of(events: Sequence[Event], checkpoint: Checkpoint | None) -> dict[uuid.UUID, Stand]:
    """Where each event is: recomputed, compared with its leaf, and proved to be in `checkpoint` if it is that old.

    Events as they were read, of which some may wait for their number. The number of queries grows with the height of the
    tree alone. Raises django.db errors.
    """
    ids = [event.pk for event in events]
    # The queue first: what is numbered after this look has its leaf by the next one.
    waiting = set(QueueEntry.objects.filter(event_id__in=ids).values_list("event_id", flat=True))
    leaves = {leaf.event_id: leaf for leaf in Leaf.objects.filter(event_id__in=ids)}
    right = [
        leaf
        for event in events
        if (leaf := leaves.get(event.pk)) is not None and leaf_hash_of(event) == bytes(leaf.leaf_hash)
    ]
    places = _proved(right, checkpoint)
    found = {}
    for pk in ids:
        if leaf := leaves.get(pk):
            found[pk] = Stand(places.get(pk, Place.WRONG), leaf.leaf_index)
        else:
            found[pk] = Stand(Place.WAITING if pk in waiting else Place.WRONG, None)
    return found


def _proved(leaves: Iterable[Leaf], checkpoint: Checkpoint | None) -> Mapping[uuid.UUID, Place]:
    """NUMBERED for what the checkpoint does not tell of yet; of the rest, whether a proof leads to it."""
    size = checkpoint.size if checkpoint else 0
    places = {leaf.event_id: Place.NUMBERED for leaf in leaves}
    if checkpoint is None:
        return places
    old = [leaf for leaf in leaves if leaf.leaf_index < size]
    places |= {leaf.event_id: Place.UNPROVED for leaf in old}
    try:
        paths = inclusion_proofs((leaf.leaf_index for leaf in old), size)
    except ChainError:
        # Parts of the tree are gone: then nothing is proved.
        return places
    for leaf in old:
        try:
            verify_inclusion(
                leaf.leaf_index, size, bytes(leaf.leaf_hash), paths[leaf.leaf_index], bytes(checkpoint.root)
            )
        except ChainError:
            continue
        places[leaf.event_id] = Place.PROVED
    return places


def _check(size: int, root: bytes, head: Head, what: str) -> None:
    try:
        found = root_at(size) if size <= head.size else None
    except ChainError:
        found = None
    if found != root:
        raise ContradictedError(f"The stored log of {size} events is not the one {what}.")


def _unsigned_for(head: Head, checkpoint: Checkpoint | None, now: datetime) -> timedelta:
    signed = checkpoint.size if checkpoint else 0
    if head.size <= signed:
        return timedelta(0)
    oldest = Event.objects.filter(leaf__leaf_index=signed).values_list("at", flat=True).first()
    # A checkpoint that was signed after it happened did not know its number yet.
    known = (oldest, checkpoint.at if checkpoint else None)
    since = max((at for at in known if at is not None), default=now)
    return max(timedelta(0), now - since)
