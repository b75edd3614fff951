"""The log's current state, for pages: what is signed, whether it matches, and where events are.

Cheap enough to run for each page, so it checks only what it reads: other parts of the tree may be
wrong. `audit.verify.verification` checks the whole log, `audit.checkpoints.signing` the external
store.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from django.db.models import Max, QuerySet
from django.utils.translation import gettext as _

from agentauth.protocol.errors import ChainError
from agentauth.protocol.merkle_proofs import verify_inclusion
from audit.checkpoints.checkpoint_copies import ContradictedError
from audit.checkpoints.signed_checkpoint_reading import any_anchor_of
from audit.checkpoints.signing import newest_checkpoint
from audit.log.sequencer import tree_of
from audit.log.tree_reader import inclusion_proofs, root_at
from audit.models import (
    Checkpoint,
    CheckpointCopy,
    Cosignature,
    Event,
    Head,
    Leaf,
    QueueEntry,
    Segment,
)
from audit.verify.entry_checks import leaf_hash_of

# Three times the interval at which a growing log is signed (60 s).
LATE = timedelta(seconds=180)
# Search the newest of each store and witness in this many rows: about one day for a single one.
RECENT = 1_500


@dataclass(frozen=True, slots=True)
class LogStatus:
    """The log's state: `size` events are numbered, `checkpoint` is the newest.

    `problem` says what does not match; empty if nothing. If `disabled_at` is set, the newest
    checkpoint matches but proves nothing: its key was disabled at that time. `unsigned_for` is how
    long the oldest numbered event that no checkpoint covers has waited for one; 0 if there is none.
    """

    size: int
    checkpoint: Checkpoint | None
    problem: str
    unsigned_for: timedelta
    disabled_at: datetime | None = None

    @property
    def signed(self) -> int:
        """How many events the newest checkpoint covers."""
        return self.checkpoint.size if self.checkpoint else 0

    @property
    def is_late(self) -> bool:
        """Whether an event has waited for a checkpoint for longer than LATE."""
        return self.unsigned_for > LATE


class EventStatus(StrEnum):
    """Where an event is.

    WRONG: changed since it was recorded, or never recorded. UNPROVED: the stored tree gives no
    valid proof from it to the checkpoint.
    """

    WAITING = "waiting"
    NUMBERED = "numbered"
    PROVED = "proved"
    UNPROVED = "unproved"
    WRONG = "wrong"


class EventPosition(NamedTuple):
    """An event's status, and its leaf index if it has one."""

    status: EventStatus
    number: int | None


class LogCoverage(NamedTuple):
    """How many events, from the first on, each store and witness covers; absent ones cover none."""

    copied: Mapping[str, int]
    cosigned: Mapping[str, int]
    archived: int


def log_coverage() -> LogCoverage:
    """How many events the stores, the witnesses and the archive cover. Raises django.db errors."""
    last = Segment.objects.order_by("-first").values_list("end", flat=True).first()
    return LogCoverage(
        copied=_newest(CheckpointCopy.objects.all(), "store"),
        cosigned=_newest(Cosignature.objects.all(), "witness"),
        archived=last or 0,
    )


def _newest(rows: QuerySet[Any], whose: str) -> dict[str, int]:
    """The largest checkpoint of each, among the newest RECENT rows: the table grows for ever."""
    recent = rows.filter(pk__in=rows.order_by("-pk").values("pk")[:RECENT])
    return dict(recent.values_list(whose).annotate(Max("checkpoint_id")).order_by(whose))


def read_log_status(*, now: datetime) -> LogStatus:
    """Check the newest checkpoint and the head against the log's keys and the stored tree.

    1. A key of the log, possibly disabled since, signed the checkpoint, and its row matches its
    note.
    2. The stored tree, at the checkpoint's size, has the signed root.
    3. The stored tree, at the head's size, has the root of the head's peaks.

    A handful of queries for any size of the log. Raises django.db errors.
    """
    # Read the checkpoint first: if the log grows in between, the head is only further ahead.
    checkpoint = newest_checkpoint()
    head = Head.objects.filter(id=Head.ONLY).first() or Head(size=0)
    problem = ""
    disabled_at = None
    try:
        if checkpoint is not None:
            disabled_at = any_anchor_of(checkpoint, now=now).disabled_at
            if not _leads_to(checkpoint.size, bytes(checkpoint.root), head):
                raise ContradictedError(
                    _("The %(n)d stored events do not lead to the root hash that was signed.")
                    % {"n": checkpoint.size}
                )
        if not _leads_to(head.size, tree_of(head).root(), head):
            raise ContradictedError(
                _(
                    "The %(n)d stored events do not lead to the root hash from which the log "
                    "continues."
                )
                % {"n": head.size}
            )
    except ChainError as error:
        problem = error.description
    return LogStatus(
        head.size, checkpoint, problem, _unsigned_for(head, checkpoint, now), disabled_at
    )


def event_positions(
    events: Sequence[Event], checkpoint: Checkpoint | None
) -> dict[uuid.UUID, EventPosition]:
    """Where each event is: hashed, compared with its leaf, and proved against `checkpoint`.

    Some events may wait for their number. The number of queries grows only with the height of the
    tree. Raises django.db errors.
    """
    ids = [event.pk for event in events]
    # Read the queue first: an event numbered after this query has its leaf in the next one.
    waiting = set(QueueEntry.objects.filter(event_id__in=ids).values_list("event_id", flat=True))
    leaves = {leaf.event_id: leaf for leaf in Leaf.objects.filter(event_id__in=ids)}
    right = [
        leaf
        for event in events
        if (leaf := leaves.get(event.pk)) is not None
        and leaf_hash_of(event) == bytes(leaf.leaf_hash)
    ]
    statuses = _prove_statuses(right, checkpoint)
    found = {}
    for pk in ids:
        if leaf := leaves.get(pk):
            found[pk] = EventPosition(statuses.get(pk, EventStatus.WRONG), leaf.leaf_index)
        else:
            found[pk] = EventPosition(
                EventStatus.WAITING if pk in waiting else EventStatus.WRONG, None
            )
    return found


def _prove_statuses(
    leaves: Iterable[Leaf], checkpoint: Checkpoint | None
) -> Mapping[uuid.UUID, EventStatus]:
    """NUMBERED for leaves beyond the checkpoint; PROVED or UNPROVED for the others."""
    size = checkpoint.size if checkpoint else 0
    statuses = {leaf.event_id: EventStatus.NUMBERED for leaf in leaves}
    if checkpoint is None:
        return statuses
    old = [leaf for leaf in leaves if leaf.leaf_index < size]
    statuses |= {leaf.event_id: EventStatus.UNPROVED for leaf in old}
    try:
        paths = inclusion_proofs((leaf.leaf_index for leaf in old), size)
    except ChainError:
        # Parts of the tree are missing, so nothing can be proved.
        return statuses
    for leaf in old:
        try:
            verify_inclusion(
                leaf.leaf_index,
                size,
                bytes(leaf.leaf_hash),
                paths[leaf.leaf_index],
                bytes(checkpoint.root),
            )
        except ChainError:
            continue
        statuses[leaf.event_id] = EventStatus.PROVED
    return statuses


def _leads_to(size: int, root: bytes, head: Head) -> bool:
    """Whether the stored tree has this root at this size."""
    try:
        return size <= head.size and root_at(size) == root
    except ChainError:
        return False


def _unsigned_for(head: Head, checkpoint: Checkpoint | None, now: datetime) -> timedelta:
    signed = checkpoint.size if checkpoint else 0
    if head.size <= signed:
        return timedelta(0)
    oldest = Event.objects.filter(leaf__leaf_index=signed).values_list("at", flat=True).first()
    # An event may be older than the checkpoint but numbered after it: then it waits since that
    # checkpoint.
    known = (oldest, checkpoint.at if checkpoint else None)
    since = max((at for at in known if at is not None), default=now)
    return max(timedelta(0), now - since)
