"""Move the log's store: copy everything from the old one to the new one, and mark the old as left.

Safe to repeat, since both stores write once: the next run finishes what a killed run began.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import ChainError
from audit import kinds
from audit.archive.parallel_calls import ParallelCalls
from audit.archive.scratch import scratch
from audit.checkpoints.checkpoint_copies import (
    MOVED,
    check_store_unchanged,
    key_of,
    name_of,
    store_left_behind,
    store_name,
)
from audit.checkpoints.endings_in_store import copy_endings
from audit.checkpoints.log_breaks import check_records, copy_break, seen_store
from audit.checkpoints.signing import checkpoints_in, compare_outside, newest_checkpoint
from audit.fault_injection import fault_point
from audit.models import Checkpoint, CheckpointCopy
from audit.services import Actor, record
from audit.stores import Store, is_key
from audit.stores.store_factory import store_at


class MovingError(ChainError):
    """The store cannot be moved. The text says why, and what to do first."""


def move_store(*, source: str | None, actor: Actor, now: datetime) -> Mapping[str, Any]:
    """Copy the store `source` to the one in AUDIT_STORE and continue there; returns the event data.

    Without `source` the old store is lost: only what the database holds is written to the new one,
    and the event says so. Raises MovingError; ContradictedError if a store has a checkpoint that
    the database does not know; ImmutableError if the new store holds another object under the same
    key; TemporarilyUnavailableError if a store does not answer.
    """
    former = store_left_behind()
    if not settings.AUDIT_STORE:
        raise MovingError("AUDIT_STORE is not set: set it to the store to move to.")
    if not former:
        raise MovingError(
            f"The log's copies are already in {store_name()}, or there are none yet: nothing "
            "to move."
        )
    if source is not None and name_of(source) != former:
        raise MovingError(
            f"The log's copies are in {former}, not in {name_of(source)}: pass the former store "
            "with --from."
        )
    target = store_at(settings.AUDIT_STORE)
    # 1. The database knows everything in both stores, and the log never left the new one.
    if target.get(MOVED) is not None:
        raise MovingError(
            f"The log has left {store_name()} before and cannot return to it: set AUDIT_STORE "
            "to a new prefix."
        )
    _check_known(settings.AUDIT_STORE)
    if source is not None:
        _check_known(source)
        # 2. From here on no process or database from before the move signs anything in the old
        # store.
        store_at(source).put_once(MOVED, canonical_json({"to": store_name()}))
        fault_point("move.after_mark")
    # 3. Copy every object, byte by byte; then what the database has, since the old store may lack a
    # copy.
    copied = _copy_all(store_at(source), target) if source is not None else None
    own = _put_own(former)
    objects = own if copied is None else copied
    fault_point("move.after_copy")
    # 4. Record the move, with the event.
    with transaction.atomic():
        moved = {"from": former, "to": store_name(), "objects": objects, "lost": source is None}
        _note_copies(now)
        record(kind=kinds.STORE_MOVED, actor=actor, at=now, data=moved)
    check_store_unchanged()
    return moved


def _check_known(uri: str) -> None:
    check_records(store_at(uri))
    compare_outside(seen_store(uri), newest_checkpoint())


def _put_own(former: str) -> int:
    """Write the former store's checkpoints, their endings and the newest break's record.

    Returns how many checkpoints.
    """
    store, rows = seen_store(settings.AUDIT_STORE), Checkpoint.objects.filter(copies__store=former)
    copy_break(store)
    size = 0
    for row in rows.order_by("size").iterator():
        for end in Checkpoint.objects.filter(size__gt=size, size__lte=row.size).order_by("size"):
            copy_endings(store, size, end.size)
            size = end.size
        store.put_once(key_of(row.size), row.note.encode())
    return rows.count()


def _copy_all(source: Store, target: Store) -> int:
    number = 0
    with scratch() as folder, ParallelCalls() as calls:
        for number, key in enumerate(
            (key for key in source.keys() if key != MOVED and is_key(key)), start=1
        ):
            calls.start(_copy, source, target, key, folder / str(number))
    return number


def _copy(source: Store, target: Store, key: str, draft: Path) -> None:
    with draft.open("xb") as file:
        if not source.fetch(key, file):
            raise MovingError(
                f"{source!r} lists {key} but does not return it: restore that object, then "
                "run this again."
            )
    target.put_once(key, draft)
    draft.unlink()


def _note_copies(now: datetime) -> None:
    """Record as copied only what the new store lists.

    A process with the old setting may still be copying to the old store.
    """
    there = {size for _key, size in checkpoints_in(seen_store(settings.AUDIT_STORE))}
    unnoted = Checkpoint.objects.exclude(copies__store=store_name()).values_list("size", flat=True)
    CheckpointCopy.objects.bulk_create(
        (
            CheckpointCopy(checkpoint_id=size, store=store_name(), at=now)
            for size in unnoted.order_by("size")
            if size in there
        ),
        batch_size=1000,
    )
