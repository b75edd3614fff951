"""Checkpoints: the log signs its size and root, and copies what it signed to an external store.

This relies on three facts: a checkpoint is committed before anyone else sees it; the external store
writes a key once; the tree only grows. So a crash leaves at worst a checkpoint without its copy,
and the next run makes that copy first. No separate recovery is needed. A database that was set
back, cut short or rewritten contradicts its own copies; then nothing more is signed, since a second
history under our key is worse than no signature.
"""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from django.conf import settings

from agentauth.protocol import checkpoint as notes
from agentauth.protocol.errors import ChainError
from audit.checkpoints.checkpoint_copies import (
    PREFIX,
    ContradictedError,
    check_store_unchanged,
    key_of,
    size_of,
    store_name,
)
from audit.checkpoints.endings_in_store import copy_endings, ended_since
from audit.checkpoints.log_breaks import copy_break, log_store, origin
from audit.checkpoints.signed_checkpoint_reading import anchor_of, any_anchor_of
from audit.checkpoints.signer_lookup import audit_signer
from audit.fault_injection import fault_point
from audit.log.sequencer import tree_of
from audit.log.tree_reader import root_at
from audit.models import Checkpoint, CheckpointCopy, Head
from audit.stores import Store

logger = logging.getLogger(__name__)

# How often to sign while the log grows; sooner if something ended (revoked, suspended, deleted).
EVERY = timedelta(seconds=60)
EVERY_ENDING = timedelta(seconds=5)
# The most leaves between two checkpoints. A segment of the archive ends at a checkpoint, so after a
# long delay one checkpoint for everything would make a segment of unlimited size.
MOST_BETWEEN = 65_536
# How many of the newest rows `newest_signed` examines.
LOOK = 16


def newest_checkpoint() -> Checkpoint | None:
    """The newest checkpoint; None if there is none."""
    return Checkpoint.objects.order_by("-size").first()


def newest_signed(*, now: datetime) -> Checkpoint | None:
    """The newest of the last LOOK checkpoints that a log key valid at `now` signed; else None.

    Rows that no valid key signed are skipped, since a client could not verify them. After a key was
    disabled the log is signed again within moments; a much older checkpoint would look like a log
    that was set back, so do not search further.
    """
    rows = Checkpoint.objects.order_by("-size")[:LOOK].iterator(chunk_size=1)
    return next((row for row in rows if _counts(row, now)), None)


def _counts(checkpoint: Checkpoint, now: datetime) -> bool:
    try:
        anchor_of(checkpoint, now=now)
    except ContradictedError:
        return False
    return True


def checkpoint_log(*, now: datetime, at_once: bool = False) -> int | None:
    """Sign the log if it grew and EVERY has passed since a valid key signed it.

    `at_once` skips the wait. Returns the signed size, or None if nothing was signed. Raises
    ContradictedError if the external store or the log's own rows contradict what it signed before
    (its subclass StoreChangedError if the copies are in another store); ImmutableError if another
    log writes to the same store; TemporarilyUnavailableError if the key or the store does not
    answer. Without the store nothing is signed: only the store shows that the database was set
    back.
    """
    store = log_store()
    newest, head = newest_checkpoint(), Head.objects.filter(id=Head.ONLY).first()
    uncopied = store is not None and newest is not None and not _is_copied(newest)
    head = head or Head(size=0)
    due = _due(head, newest, now, timedelta(0) if at_once else EVERY)
    if not due and not uncopied:
        return None
    # 1. Check that the tree still matches what was signed, here and in the external store.
    if newest is not None:
        check_signed(newest, head)
    check_store_unchanged()
    if store is not None:
        check_outside(store, newest)
    # 2. Copy the previous checkpoint, in case a crash came before its copy.
    if store is not None and newest is not None and _is_signed(newest, now):
        _copy(store, newest, now)
    # 3. Commit the new checkpoint, then copy it.
    if not due:
        return None
    for size in _sizes(newest.size if newest is not None else 0, head.size):
        signed = _sign(size, head, now)
        fault_point("checkpoint.after_commit")
        if store is not None:
            _copy(store, signed, now)
        fault_point("checkpoint.after_copy")
    return head.size


def _sizes(signed: int, size: int) -> Iterator[int]:
    """The sizes to sign after `signed`: up to `size`, in steps of MOST_BETWEEN."""
    yield from range(signed + MOST_BETWEEN, size, MOST_BETWEEN)
    yield size


def _is_signed(checkpoint: Checkpoint, now: datetime) -> bool:
    """Whether a valid key signed it. Copies stay, so an inserted row must not become one."""
    if _is_copied(checkpoint):
        return True
    try:
        anchor = any_anchor_of(checkpoint, now=now)
    except ContradictedError:
        logger.exception("not copying a checkpoint that no key of the log signed")
        return False
    if not anchor.vouched:
        logger.warning("%s is not copied: the next checkpoint replaces it", anchor.place)
    return anchor.vouched


def _due(head: Head, newest: Checkpoint | None, now: datetime, every: timedelta) -> bool:
    if newest is None:
        return head.size > 0
    if head.size < newest.size:
        # The log was cut short: run now, so that the check in step 1 reports it.
        return True
    # A restore must not undo what ended, so copy endings to the external store sooner.
    every = min(every, EVERY_ENDING) if ended_since(newest.size) else every
    # A checkpoint from the future means that the clock was set back: do not wait for that time
    # again. A checkpoint whose key was disabled since cannot be verified any more: sign again at
    # once.
    is_recent = timedelta(0) <= now - newest.at < every
    return head.size > newest.size and not (is_recent and _counts(newest, now))


def _sign(size: int, head: Head, now: datetime) -> Checkpoint:
    root = tree_of(head).root() if size == head.size else root_at(size)
    _check(size, root, head)
    text = notes.sign_checkpoint(
        notes.Checkpoint(origin(), size, root), signer=audit_signer(now=now)
    )
    # A process that signs at the same time signs the same tree; the first note stays and both copy
    # it.
    row, _ = Checkpoint.objects.get_or_create(
        size=size, defaults={"root": root, "note": text, "at": now}
    )
    return row


def check_signed(newest: Checkpoint, head: Head) -> None:
    """Check that the log still begins with what it signed last. Raises ContradictedError."""
    _check(newest.size, bytes(newest.root), head)


def _check(size: int, root: bytes, head: Head) -> None:
    """Check that the tree at `size` has this root, and is neither too short nor has gaps."""
    try:
        found = root_at(size) if size <= head.size else None
    except ChainError:
        found = None
    if found != root:
        raise ContradictedError(
            f"The log of {size} events is not the one that was signed. Run `{settings.COMMAND} "
            "verify_audit` and compare with the copies in the external store. Nothing is signed "
            "until then."
        )


def check_outside(store: Store, newest: Checkpoint | None) -> None:
    """Check that the external checkpoints since the last recorded copy are the ones kept here.

    Raises ContradictedError; TemporarilyUnavailableError if the store does not answer.
    """
    known = CheckpointCopy.objects.filter(store=store_name()).order_by("-checkpoint").first()
    compare_outside(store, newest, after=known.checkpoint_id - 1 if known else 0)


def compare_outside(store: Store, newest: Checkpoint | None, *, after: int = 0) -> None:
    """Check that each checkpoint of more than `after` leaves in `store` equals the one kept here.

    Raises ContradictedError.
    """
    size = newest.size if newest is not None else 0
    for key, found in checkpoints_in(store, after=after):
        note = store.get(key)
        # Read this row after listing the copy: another process may have signed it meanwhile.
        kept = Checkpoint.objects.filter(size=found).first()
        if kept is None and found > size:
            raise ContradictedError(
                f"The external store has a checkpoint of {found} events, but the database has "
                f"only {size}: the database was set back, or the store belongs to another log. "
                "Nothing is signed until the newer database is back."
            )
        if note is None or kept is None or note.decode(errors="replace") != kept.note:
            raise ContradictedError(
                f"The checkpoint of {found} events in the external store differs from the one in "
                "the database: the database was set back and then continued, or the store belongs "
                "to another log. Nothing is signed until an operator resolves this."
            )


def checkpoints_in(store: Store, *, after: int = 0) -> Iterator[tuple[str, int]]:
    """The key and size of each checkpoint of more than `after` leaves in a store, by size.

    Objects under other names are ignored here; `verify_audit` lists them.
    """
    for key in store.keys(PREFIX, after=key_of(after)):
        if (size := size_of(key)) is not None:
            yield key, size


def _is_copied(checkpoint: Checkpoint) -> bool:
    return checkpoint.copies.filter(store=store_name()).exists()


def _copy(store: Store, checkpoint: Checkpoint, now: datetime) -> None:
    if _is_copied(checkpoint):
        return
    copy_break(store)
    # Endings first, so that a copied checkpoint implies copied endings; also those of earlier
    # checkpoints that were never copied.
    earlier = Checkpoint.objects.filter(size__lt=checkpoint.size).order_by("size")
    copied = earlier.filter(copies__store=store_name()).values_list("size", flat=True).last() or 0
    sizes = earlier.filter(size__gt=copied).values_list("size", flat=True)
    for first, end in pairwise([copied, *sizes, checkpoint.size]):
        copy_endings(store, first, end)
    store.put_once(key_of(checkpoint.size), checkpoint.note.encode())
    # If the log left this store since the last check, the new store may lack this copy: do not
    # record it.
    check_store_unchanged()
    fault_point("checkpoint.before_copied")
    CheckpointCopy.objects.get_or_create(
        checkpoint=checkpoint, store=store_name(), defaults={"at": now}
    )
