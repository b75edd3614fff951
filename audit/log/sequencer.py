"""The sequencer: gives committed events their numbers and links, in batches; never changes events.

This relies on three facts: an event commits together with its queue entry or its leaf; the head is
one row, moved only by compare-and-swap; leaves are only inserted. So a crash leaves either the
whole batch numbered or nothing, and the next run starts again. No separate recovery is needed.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection, transaction

from agentauth.protocol.log_hashes import (
    EMPTY_LINK,
    HASH_BYTES,
    TILE_HEIGHT,
    CompactTree,
    Subtree,
    leaf_hash,
    link,
)
from audit.db.bulk_copy import NULL, binary, copy_in, line
from audit.fault_injection import fault_point
from audit.log.event_encoding import COLUMNS, Columns, entry_of
from audit.models import Event, Head, Leaf, Node, QueueEntry

# At this size, the fixed cost of a batch is a twentieth of the cost of its events.
BATCH = 2_000
_COPY_LEAVES = """
COPY audit_leaf (leaf_index, event_id, entry, leaf_hash, link, agent_id, human_id, kind) FROM STDIN
"""
_DELETE_ENTRIES = "DELETE FROM audit_queueentry WHERE event_id = ANY(%s)"


def sequence_pending(*, now: datetime, batch: int = BATCH) -> int:
    """Number at most `batch` waiting events in one transaction; returns how many.

    0 means that nothing waited, or that another sequencer moved the head first: the caller may
    retry. Raises ChainError if the head's peaks do not fit its size: it was changed.
    """
    with transaction.atomic():
        # 1. Read the head before the queue. If the swap below succeeds, no sequencer numbered
        #    anything since this read, so every queue entry read after it is still unnumbered. In
        #    the other order, a queue entry that another sequencer has numbered could be combined
        #    with the head it left.
        head = _head()
        # 2. The queue decides what is numbered, not the ids: an event that commits late with a
        #    small id is still queued, and an uncommitted one is not visible. Select the queue in a
        #    subquery of its own, so that the rows read do not grow with the log, whatever plan the
        #    database chooses.
        waiting = QueueEntry.objects.order_by("event_id").values("event_id")[:batch]
        found = Event.objects.filter(id__in=waiting).order_by("id")
        events: Sequence[Columns] = list(found.values_list(*COLUMNS, named=True))
        if not events:
            return 0
        grown = _grown(head, (_numberable(event) for event in events))
        # 3. Compare and swap before any other write: on PostgreSQL the loser waits here for the
        #    winner's commit and then matches no row; on SQLite it cannot begin its transaction.
        if not _move(head, grown, now):
            return 0
        fault_point("sequence.after_head")
        # 4. Insert leaves and nodes, delete queue entries. If a leaf with this index or event
        #    exists, its unique constraint rolls back the whole batch: a fork cannot be written.
        _write(grown)
        _dequeue(grown.leaves)
        fault_point("sequence.before_commit")
    fault_point("sequence.after_commit")
    return len(grown.leaves)


def sequence_until_empty(*, now: datetime, batch: int = BATCH) -> int:
    """Number events until none waits; returns how many this call numbered. Safe in parallel."""
    total = 0
    while True:
        numbered = sequence_pending(now=now, batch=batch)
        total += numbered
        # If nothing was numbered but events wait, another sequencer won the swap: try again.
        if 0 < numbered < batch or (not numbered and not QueueEntry.objects.exists()):
            return total


class Numberable(NamedTuple):
    """What the log needs from an event: its entry, and the columns its leaf repeats."""

    id: uuid.UUID | str
    entry: bytes
    agent_id: uuid.UUID | str | None
    human_id: uuid.UUID | str | None
    kind: str


def _numberable(event: Columns) -> Numberable:
    return Numberable(event.id, entry_of(event), event.agent_id, event.human_id, event.kind)


def number_at_once(events: Sequence[Numberable], *, now: datetime) -> bool:
    """Number events in the transaction that writes them, in their order.

    Returns False if another sequencer holds the head, or the head does not exist yet: then the
    caller queues them. Raises django.db errors, for example if the head does not match the leaves,
    and ChainError if its peaks do not fit its size; call it in a savepoint to undo partial writes.
    """
    # Skip a locked head instead of waiting: the caller then queues its events.
    head = Head.objects.select_for_update(skip_locked=True).filter(id=Head.ONLY).first()
    if head is None:
        return False
    grown = _grown(head, events)
    if not _move(head, grown, now):
        return False
    _write(grown)
    return True


def _head() -> Head:
    # The first run inserts the row; parallel first runs cannot insert two, since the id is fixed.
    head, _ = Head.objects.get_or_create(id=Head.ONLY, defaults={"size": 0, "link": EMPTY_LINK})
    return head


class _Leaf(NamedTuple):
    """The columns of a leaf."""

    leaf_index: int
    event_id: uuid.UUID | str
    entry: bytes
    leaf_hash: bytes
    link: bytes
    agent_id: uuid.UUID | str | None
    human_id: uuid.UUID | str | None
    kind: str


class _Grown(NamedTuple):
    """What a batch adds to the log: its leaves, the nodes they complete, and the tree with them."""

    leaves: list[_Leaf]
    nodes: list[Subtree]
    tree: CompactTree


def _grown(head: Head, events: Iterable[Numberable]) -> _Grown:
    leaves: list[_Leaf] = []
    nodes: list[Subtree] = []
    tree, previous = tree_of(head), bytes(head.link)
    for leaf_index, (event_id, entry, agent_id, human_id, kind) in enumerate(
        events, start=head.size
    ):
        hashed = leaf_hash(entry)
        previous = link(previous, hashed)
        leaves.append(
            _Leaf(leaf_index, event_id, entry, hashed, previous, agent_id, human_id, kind)
        )
        tree.append(hashed, nodes)
    return _Grown(leaves, nodes, tree)


def tree_of(head: Head) -> CompactTree:
    """The tree that ends at `head`. Raises ChainError if its peaks do not fit its size."""
    peaks = bytes(head.peaks)
    return CompactTree(
        head.size, (peaks[at : at + HASH_BYTES] for at in range(0, len(peaks), HASH_BYTES))
    )


def _move(head: Head, grown: _Grown, now: datetime) -> bool:
    """Move the head past these leaves; False if another sequencer moved it since it was read."""
    moved = Head.objects.filter(id=Head.ONLY, size=head.size, link=head.link).update(
        size=grown.tree.size,
        link=grown.leaves[-1].link,
        peaks=b"".join(grown.tree.peaks),
        moved_at=now,
    )
    return moved == 1


def _write(grown: _Grown) -> None:
    if connection.vendor == "postgresql":
        copy_in(
            _COPY_LEAVES,
            (
                line(
                    str(leaf_index),
                    str(event_id),
                    binary(entry),
                    binary(hashed),
                    binary(linked),
                    NULL if agent_id is None else str(agent_id),
                    NULL if human_id is None else str(human_id),
                    kind,
                )
                for leaf_index, event_id, entry, hashed, linked, agent_id, human_id, kind in (
                    grown.leaves
                )
            ),
        )
    else:
        Leaf.objects.bulk_create(Leaf(**leaf._asdict()) for leaf in grown.leaves)
    if grown.nodes:
        Node.objects.bulk_create(
            Node(level=height // TILE_HEIGHT, index=number, hash=root)
            for height, number, root in grown.nodes
        )


def _dequeue(leaves: Sequence[_Leaf]) -> None:
    ids = [leaf.event_id for leaf in leaves]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_DELETE_ENTRIES, [ids])
    else:
        QueueEntry.objects.filter(event_id__in=ids).delete()
