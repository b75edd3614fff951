"""Checkpoints: the log signs how long it is and what its root is, and what it signed stands outside the database too.

What this relies on: a checkpoint is committed before anybody else is shown it; the store outside writes a key once; the
tree only grows. So a crash anywhere leaves a checkpoint whose copy is missing, and the next run makes the copy first: there
is no recovery of its own. And a database that was set back, cut short or written anew stands against its own signed word,
outside: then nothing is signed any more, since a second story under our key is worse than none.
"""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from django.conf import settings

from agentauth.protocol import checkpoint as notes
from agentauth.protocol.errors import ChainError
from audit.anchors import anchor_of, any_anchor_of
from audit.breaks import copy_break, log_store, origin
from audit.copies import PREFIX, ContradictedError, check_place, key_of, size_of, store_name
from audit.endings import copy_endings, ended_since
from audit.faults import fault_point
from audit.models import Checkpoint, CheckpointCopy, Head
from audit.sequencer import tree_of
from audit.signing import audit_signer
from audit.stores import Store
from audit.tree import root_at

logger = logging.getLogger(__name__)

# While there is news, as often as this.
EVERY = timedelta(seconds=60)
EVERY_ENDING = timedelta(seconds=5)
# However much came at once: a segment of the archive ends at a checkpoint, and may not be as long as the log was late.
MOST_BETWEEN = 65_536
# So many rows are looked through for one that can be shown.
LOOK = 16


def newest_checkpoint() -> Checkpoint | None:
    """What the log says of itself now; None before it said anything."""
    return Checkpoint.objects.order_by("-size").first()


def newest_signed(*, now: datetime) -> Checkpoint | None:
    """The newest checkpoint that a key of the log signed which counts at `now`, among the last LOOK; else None.

    A row that nobody of us signed is passed over, as are those of a key that was disabled: nobody could check them. The log
    is signed again within moments then, so an answer from long ago would only look like a log that was set back.
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
    """Sign the log as it is, if it grew and EVERY has passed since a key that counts signed it; its size then, else None.

    With `at_once` EVERY need not have passed. Raises ContradictedError where the log is not what it signed before, as the
    store outside or its own rows tell; StoreChangedError, one of these, where its copies stand in another store;
    ImmutableError where another log writes into the same store; TemporarilyUnavailableError where the key or the store
    cannot be asked: without the store nothing is signed, since a database that was set back does not know it.
    """
    store = log_store()
    newest, head = newest_checkpoint(), Head.objects.filter(id=Head.ONLY).first()
    uncopied = store is not None and newest is not None and not _copied(newest)
    head = head or Head(size=0)
    due = _due(head, newest, now, timedelta(0) if at_once else EVERY)
    if not due and not uncopied:
        return None
    # 1. What was signed is still what the tree is, here and outside.
    if newest is not None:
        check_signed(newest, head)
    check_place()
    if store is not None:
        check_outside(store, newest)
    # 2. The copy of the last one, should a crash have come in between.
    if store is not None and newest is not None and _is_signed(newest, now):
        _copy(store, newest, now)
    # 3. The new one: committed, then shown.
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
    """What is to be signed after `signed`: up to `size`, in steps."""
    yield from range(signed + MOST_BETWEEN, size, MOST_BETWEEN)
    yield size


def _is_signed(checkpoint: Checkpoint, now: datetime) -> bool:
    """Whether a key of the log signed it: whoever may add rows may add one that nobody signed, and what is outside stays."""
    if _copied(checkpoint):
        return True
    try:
        anchor = any_anchor_of(checkpoint, now=now)
    except ContradictedError:
        logger.exception("a checkpoint that no key of the log signed is not copied")
        return False
    if not anchor.vouched:
        logger.warning("%s is not copied: the next one takes its place", anchor.place)
    return anchor.vouched


def _due(head: Head, newest: Checkpoint | None, now: datetime, every: timedelta) -> bool:
    if newest is None:
        return head.size > 0
    if head.size < newest.size:
        # Nothing new to sign, and yet the sooner it is said the better.
        return True
    # A clock that was set back must not keep the log silent until it is as late again; and what nobody can check any more,
    # since its key was disabled, is no word of ours.
    # A restore must not undo what ended, so copy endings outside sooner.
    every = min(every, EVERY_ENDING) if ended_since(newest.size) else every
    is_recent = timedelta(0) <= now - newest.at < every
    return head.size > newest.size and not (is_recent and _counts(newest, now))


def _sign(size: int, head: Head, now: datetime) -> Checkpoint:
    root = tree_of(head).root() if size == head.size else root_at(size)
    _check(size, root, head)
    text = notes.sign_checkpoint(notes.Checkpoint(origin(), size, root), signer=audit_signer(now=now))
    # Whoever signs at the same time signs the same tree; the first one's note stays, and is what both copy.
    row, _ = Checkpoint.objects.get_or_create(size=size, defaults={"root": root, "note": text, "at": now})
    return row


def check_signed(newest: Checkpoint, head: Head) -> None:
    """See that the log still begins with what it signed last. Raises ContradictedError."""
    _check(newest.size, bytes(newest.root), head)


def _check(size: int, root: bytes, head: Head) -> None:
    """The tree at `size` has this root. What is not there any more counts as another root."""
    try:
        found = root_at(size) if size <= head.size else None
    except ChainError:
        found = None
    if found != root:
        raise ContradictedError(
            f"The log of {size} events is not the one that was signed. Run `{settings.COMMAND} verify_audit` and compare with "
            "the copies outside; nothing is signed before that."
        )


def check_outside(store: Store, newest: Checkpoint | None) -> None:
    """Everything outside since the last copy we know of is ours, and there is nothing outside that we do not know.

    Raises ContradictedError; TemporarilyUnavailableError where the store does not answer.
    """
    known = CheckpointCopy.objects.filter(store=store_name()).order_by("-checkpoint").first()
    compare_outside(store, newest, after=known.checkpoint_id - 1 if known else 0)


def compare_outside(store: Store, newest: Checkpoint | None, *, after: int = 0) -> None:
    """See that each checkpoint of more than `after` leaves in `store` equals the one kept here. Raises ContradictedError."""
    size = newest.size if newest is not None else 0
    for key, found in checkpoints_in(store, after=after):
        note = store.get(key)
        # Asked after the copy was seen: another of us may have signed it meanwhile.
        kept = Checkpoint.objects.filter(size=found).first()
        if kept is None and found > size:
            raise ContradictedError(
                f"A checkpoint of {found} events stands outside, and the database knows of {size}: it was set back, or "
                "the store is another log's. Nothing is signed until the newer database is back."
            )
        if note is None or kept is None or note.decode(errors="replace") != kept.note:
            raise ContradictedError(
                f"The checkpoint of {found} events outside is not the one kept here: the database was set back and "
                "went on, or the store is another log's. Nothing is signed before a person has looked."
            )


def checkpoints_in(store: Store, *, after: int = 0) -> Iterator[tuple[str, int]]:
    """The key and size of each checkpoint of more than `after` leaves in a store, by size. Objects under other names say nothing of the log, and `verify_audit` shows them."""
    for key in store.keys(PREFIX, after=key_of(after)):
        if (size := size_of(key)) is not None:
            yield key, size


def _copied(checkpoint: Checkpoint) -> bool:
    return checkpoint.copies.filter(store=store_name()).exists()


def _copy(store: Store, checkpoint: Checkpoint, now: datetime) -> None:
    if _copied(checkpoint):
        return
    copy_break(store)
    # The endings first: if a checkpoint is outside, so is what ended before it.
    # Also those of checkpoints that were never copied.
    earlier = Checkpoint.objects.filter(size__lt=checkpoint.size).order_by("size")
    copied = earlier.filter(copies__store=store_name()).values_list("size", flat=True).last() or 0
    sizes = earlier.filter(size__gt=copied).values_list("size", flat=True)
    for first, end in pairwise([copied, *sizes, checkpoint.size]):
        copy_endings(store, first, end)
    store.put_once(key_of(checkpoint.size), checkpoint.note.encode())
    # The log may have left this store since it was last asked, and this may not be in the new one.
    check_place()
    fault_point("checkpoint.before_copied")
    CheckpointCopy.objects.get_or_create(checkpoint=checkpoint, store=store_name(), defaults={"at": now})
