"""The sequencer: gives committed events their numbers and links, in batches, and never touches the events.

What it relies on: an event commits together with its queue entry, or with its leaf; the head is one row, moved only by
compare-and-swap; leaves are only inserted. So a crash at any line leaves either the whole batch numbered or
nothing, and the next run goes the same road again: there is no recovery of its own.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection, transaction

from agentauth.protocol.chain import (
    EMPTY_LINK,
    HASH_BYTES,
    TILE_HEIGHT,
    CompactTree,
    Subtree,
    leaf_hash,
    link,
)
from audit.copying import NULL, binary, copy_in, line
from audit.entries import COLUMNS, Columns, entry_of
from audit.faults import fault_point
from audit.models import Event, Head, Leaf, Node, QueueEntry

# What a batch costs whatever its size is a twentieth of what its events cost.
BATCH = 2_000
_COPY_LEAVES = (
    """COPY audit_leaf (leaf_index, event_id, entry, leaf_hash, link, agent_id, human_id, kind) FROM STDIN"""
)
_DELETE_ENTRIES = "DELETE FROM audit_queueentry WHERE event_id = ANY(%s)"


def sequence_pending(*, now: datetime, batch: int = BATCH) -> int:
    """Number at most `batch` waiting events in one transaction; returns how many.

    0 means nothing was waiting, or another sequencer moved the head first: the caller may simply come again. Raises
    ChainError where the head is no end of a tree: it was changed.
    """
    with transaction.atomic():
        # 1. The head before the queue. If the swap below succeeds, nobody numbered anything since this read, so
        #    every entry read after it is still ours. The other way round, an entry another sequencer had already
        #    numbered could be seen together with the head that sequencer left.
        head = _head()
        # 2. The queue decides what is numbered, not the ids: an event that commits late with a small id is
        #    still here, while one that is not yet committed is not seen at all. Asked by itself, so that what is
        #    read does not grow with the log, whatever the planner makes of the two tables.
        waiting = QueueEntry.objects.order_by("event_id").values("event_id")[:batch]
        found = Event.objects.filter(id__in=waiting).order_by("id")
        events: Sequence[Columns] = list(found.values_list(*COLUMNS, named=True))
        if not events:
            return 0
        grown = _grown(head, (_numberable(event) for event in events))
        # 3. Compare and swap, before anything else is written: on PostgreSQL the loser waits here for the
        #    winner's commit and then matches no row; on SQLite it could not even begin.
        if not _move(head, grown, now):
            return 0
        fault_point("sequence.after_head")
        # 4. Leaves and nodes in, queue entries out. Should a leaf exist already, its primary key or its event refuses the
        #    second one and the whole batch rolls back: a fork cannot be written.
        _write(grown)
        _dequeue(grown.leaves)
        fault_point("sequence.before_commit")
    fault_point("sequence.after_commit")
    return len(grown.leaves)


def sequence_until_empty(*, now: datetime, batch: int = BATCH) -> int:
    """Number events until none waits; returns how many this call numbered. Others may be numbering as well."""
    total = 0
    while True:
        numbered = sequence_pending(now=now, batch=batch)
        total += numbered
        # Nothing numbered and something waiting: another sequencer won, which is progress too.
        if 0 < numbered < batch or (not numbered and not QueueEntry.objects.exists()):
            return total


class Numberable(NamedTuple):
    """What the log needs to know of an event: its entry, and what its leaf repeats."""

    id: uuid.UUID | str
    entry: bytes
    agent_id: uuid.UUID | str | None
    human_id: uuid.UUID | str | None
    kind: str


def _numberable(event: Columns) -> Numberable:
    return Numberable(event.id, entry_of(event), event.agent_id, event.human_id, event.kind)


def number_at_once(events: Sequence[Numberable], *, now: datetime) -> bool:
    """Number events in the very transaction that writes them, in their order.

    False where another sequencer holds the head just now, or no first run has made it: then they have to wait in the queue.
    Raises django.db errors, as where the head is not that of the leaves, and ChainError where it is no end of a tree;
    nothing of it stands then, so use a savepoint.
    """
    # Nobody waits for anybody here: whom it is locked from queues its events.
    head = Head.objects.select_for_update(skip_locked=True).filter(id=Head.ONLY).first()
    if head is None:
        return False
    grown = _grown(head, events)
    if not _move(head, grown, now):
        return False
    _write(grown)
    return True


def _head() -> Head:
    # The first run makes the row; two first runs cannot make two, since its id is always the same.
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
    for leaf_index, (event_id, entry, agent_id, human_id, kind) in enumerate(events, start=head.size):
        hashed = leaf_hash(entry)
        previous = link(previous, hashed)
        leaves.append(_Leaf(leaf_index, event_id, entry, hashed, previous, agent_id, human_id, kind))
        tree.append(hashed, nodes)
    return _Grown(leaves, nodes, tree)


def tree_of(head: Head) -> CompactTree:
    """The tree that ends at `head`. Raises ChainError where its peaks do not fit its size."""
    peaks = bytes(head.peaks)
    return CompactTree(head.size, (peaks[at : at + HASH_BYTES] for at in range(0, len(peaks), HASH_BYTES)))


def _move(head: Head, grown: _Grown, now: datetime) -> bool:
    """Move the head from where it was read to past these leaves; False where another one was faster."""
    moved = Head.objects.filter(id=Head.ONLY, size=head.size, link=head.link).update(
        size=grown.tree.size, link=grown.leaves[-1].link, peaks=b"".join(grown.tree.peaks), moved_at=now
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
                for leaf_index, event_id, entry, hashed, linked, agent_id, human_id, kind in grown.leaves
            ),
        )
    else:
        Leaf.objects.bulk_create(Leaf(**leaf._asdict()) for leaf in grown.leaves)
    if grown.nodes:
        Node.objects.bulk_create(
            Node(level=height // TILE_HEIGHT, index=number, hash=root) for height, number, root in grown.nodes
        )


def _dequeue(leaves: Sequence[_Leaf]) -> None:
    ids = [leaf.event_id for leaf in leaves]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_DELETE_ENTRIES, [ids])
    else:
        QueueEntry.objects.filter(event_id__in=ids).delete()
