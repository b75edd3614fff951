"""The sequencer: gives committed events their numbers and links, in batches, and never touches the events.

What it relies on: an event and its queue entry commit together; the head is one row, moved only by
compare-and-swap; leaves are only inserted. So a crash at any line leaves either the whole batch numbered or
nothing, and the next run goes the same road again: there is no recovery of its own.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection, transaction

from agentauth.protocol.chain import EMPTY_LINK, leaf_hash, link
from audit.copying import binary, copy_in, line
from audit.entries import COLUMNS, Columns, entry_of
from audit.faults import fault_point
from audit.models import Event, Head, Leaf, QueueEntry

# What a batch costs whatever its size is a twentieth of what its events cost.
BATCH = 2_000
_COPY_LEAVES = "COPY audit_leaf (leaf_index, event_id, leaf_hash, link) FROM STDIN"
_DELETE_ENTRIES = "DELETE FROM audit_queueentry WHERE event_id = ANY(%s)"


def sequence_pending(*, now: datetime, batch: int = BATCH) -> int:
    """Number at most `batch` waiting events in one transaction; returns how many.

    0 means nothing was waiting, or another sequencer moved the head first: the caller may simply come again.
    """
    with transaction.atomic():
        # 1. The head before the queue. If the swap below succeeds, nobody numbered anything since this read, so
        #    every entry read after it is still ours. The other way round, an entry another sequencer had already
        #    numbered could be seen together with the head that sequencer left.
        head = _head()
        # 2. The queue decides what is numbered, not the ids: an event that commits late with a small id is
        #    still here, while one that is not yet committed is not seen at all.
        waiting = Event.objects.filter(queue_entry__isnull=False).order_by("id")
        events: Sequence[Columns] = list(waiting.values_list(*COLUMNS, named=True)[:batch])
        if not events:
            return 0
        leaves = _leaves(head, events)
        # 3. Compare and swap, before anything else is written: on PostgreSQL the loser waits here for the
        #    winner's commit and then matches no row; on SQLite it could not even begin.
        moved = Head.objects.filter(id=Head.ONLY, size=head.size, link=head.link).update(
            size=head.size + len(leaves), link=leaves[-1].link, moved_at=now
        )
        if not moved:
            return 0
        fault_point("sequence.after_head")
        # 4. Leaves in, queue entries out. Should a leaf exist already, its primary key or its event refuses the
        #    second one and the whole batch rolls back: a fork cannot be written.
        _write(leaves)
        fault_point("sequence.before_commit")
    fault_point("sequence.after_commit")
    return len(leaves)


def sequence_until_empty(*, now: datetime, batch: int = BATCH) -> int:
    """Number events until none waits; returns how many this call numbered. Others may be numbering as well."""
    total = 0
    while True:
        numbered = sequence_pending(now=now, batch=batch)
        total += numbered
        # Nothing numbered and something waiting: another sequencer won, which is progress too.
        if not numbered and not QueueEntry.objects.exists():
            return total


def _head() -> Head:
    # The first run makes the row; two first runs cannot make two, since its id is always the same.
    head, _ = Head.objects.get_or_create(id=Head.ONLY, defaults={"size": 0, "link": EMPTY_LINK})
    return head


class _Leaf(NamedTuple):
    """The columns of a leaf."""

    leaf_index: int
    event_id: uuid.UUID
    leaf_hash: bytes
    link: bytes


def _leaves(head: Head, events: Sequence[Columns]) -> list[_Leaf]:
    leaves = []
    previous = bytes(head.link)
    for leaf_index, event in enumerate(events, start=head.size):
        hashed = leaf_hash(entry_of(event))
        previous = link(previous, hashed)
        leaves.append(_Leaf(leaf_index, event.id, hashed, previous))
    return leaves


def _write(leaves: Sequence[_Leaf]) -> None:
    ids = [leaf.event_id for leaf in leaves]
    if connection.vendor == "postgresql":
        copy_in(
            _COPY_LEAVES,
            (
                line(str(leaf.leaf_index), str(leaf.event_id), binary(leaf.leaf_hash), binary(leaf.link))
                for leaf in leaves
            ),
        )
        with connection.cursor() as cursor:
            cursor.execute(_DELETE_ENTRIES, [ids])
    else:
        Leaf.objects.bulk_create(Leaf(**leaf._asdict()) for leaf in leaves)
        QueueEntry.objects.filter(event_id__in=ids).delete()
