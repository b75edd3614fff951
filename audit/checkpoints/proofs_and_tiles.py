"""Proofs and tiles of the log, and its signed checkpoint. HTTP is in `audit.public_log_api`."""

import math
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from agentauth.protocol.checkpoint_proofs import LogProof
from agentauth.protocol.errors import (
    ChainError,
    InvalidRequestError,
    NotFoundError,
    NotYetLoggedError,
)
from agentauth.protocol.log_hashes import TILE_HEIGHT
from agentauth.protocol.signed_notes import MAX_SIGNATURES
from audit.checkpoints.signing import EVERY, newest_signed
from audit.log import tree_reader
from audit.models import Checkpoint, Head, Leaf, QueueEntry

# An event is numbered within about a second, and the first event signed within about one more.
SOON_SECONDS = 1
_LENGTH_BYTES = 2


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Proof that leaf `leaf_index` is in the tree of `tree_size` leaves.

    `path` leads from `leaf_hash` up to `root`. Hashes have 32 bytes.
    """

    leaf_index: int
    tree_size: int
    leaf_hash: bytes
    path: Sequence[bytes]
    root: bytes


def signed_checkpoint(*, now: datetime) -> str:
    """The newest checkpoint, a note with its cosignatures. Raises NotYetLoggedError if none."""
    return _note(_newest(now))


def prove_inclusion(*, event: uuid.UUID, tree_size: int | None, now: datetime) -> Inclusion:
    """Prove that the event is in the tree of `tree_size` leaves (RFC 9162 section 2.1.3).

    Without `tree_size`, the tree is that of the newest checkpoint. Raises NotFoundError if no event
    has this id; NotYetLoggedError if the event has no number or, without `tree_size`, no checkpoint
    covers it; InvalidRequestError if `tree_size` is beyond the log or does not cover the event.
    """
    leaf = _leaf(event)
    if tree_size is None:
        tree_size = _covering(leaf, now).size
    elif tree_size > (longest := _head_size()):
        raise InvalidRequestError(f"`tree_size` must be at most {longest}, the size of the log.")
    elif tree_size <= leaf.leaf_index:
        raise InvalidRequestError(
            f"`tree_size` must be above {leaf.leaf_index}, the number of this event."
        )
    with _whole_tree():
        path = tree_reader.inclusion_proof(leaf.leaf_index, tree_size)
        root = tree_reader.root_at(tree_size)
    return Inclusion(leaf.leaf_index, tree_size, bytes(leaf.leaf_hash), path, root)


def prove_consistency(*, first: int, second: int) -> list[bytes]:
    """Prove that the tree of `second` leaves extends that of `first` (RFC 9162 section 2.1.4).

    Raises InvalidRequestError unless 1 ≤ first ≤ second ≤ the size of the log.
    """
    longest = _head_size()
    if not 1 <= first <= second <= longest:
        raise InvalidRequestError(
            "`first` must be at least 1, and `second` must be from `first` to "
            f"{longest}, the size of the log."
        )
    with _whole_tree():
        return tree_reader.consistency_proof(first, second)


def prove_event(*, event: uuid.UUID, now: datetime) -> str:
    """The event's proof with the newest checkpoint and its cosignatures (c2sp.org/tlog-proof).

    Raises as `prove_inclusion` without a size.
    """
    leaf = _leaf(event)
    checkpoint = _covering(leaf, now)
    with _whole_tree():
        path = tree_reader.inclusion_proof(leaf.leaf_index, checkpoint.size)
    return LogProof(leaf.leaf_index, tuple(path), _note(checkpoint)).text


def tile(*, level: int, number: int, width: int, now: datetime) -> bytes:
    """The first `width` hashes of a tile, joined (c2sp.org/tlog-tiles). Raises NotFoundError."""
    _within_checkpoint(level, number, width, now)
    return b"".join(_exactly(width, tree_reader.tile(level, number, width)))


def entry_bundle(*, number: int, width: int, now: datetime) -> bytes:
    """The entries of level 0 tile `number`, each after its 2-byte length. Raises NotFoundError."""
    _within_checkpoint(0, number, width, now)
    found = _exactly(width, tree_reader.entries(number, width))
    return b"".join(len(entry).to_bytes(_LENGTH_BYTES, "big") + entry for entry in found)


def _newest(now: datetime) -> Checkpoint:
    checkpoint = newest_signed(now=now)
    if checkpoint is None:
        raise NotYetLoggedError(
            "No key of the log has signed a checkpoint yet.", retry_after=_due_in(None, now)
        )
    return checkpoint


def _due_in(newest: Checkpoint | None, now: datetime) -> int:
    """Seconds until the next checkpoint is due, 1 to 60."""
    if newest is None:
        return SOON_SECONDS
    left = math.ceil((newest.at + EVERY - now).total_seconds())
    return min(max(left, SOON_SECONDS), int(EVERY.total_seconds()))


def _note(checkpoint: Checkpoint) -> str:
    lines = checkpoint.cosignatures.order_by("id").values_list("line", flat=True)
    # Readers refuse a note with more than MAX_SIGNATURES; the log's own signature takes one.
    return checkpoint.note + "".join(lines[: MAX_SIGNATURES - 1])


def _leaf(event: uuid.UUID) -> Leaf:
    # Read the queue first: an event numbered between the two queries is then in both, never in
    # neither.
    waiting = QueueEntry.objects.filter(event_id=event).exists()
    leaf = Leaf.objects.filter(event_id=event).first()
    if leaf is not None:
        return leaf
    if waiting:
        raise NotYetLoggedError("This event has no number yet.", retry_after=SOON_SECONDS)
    raise NotFoundError("There is no event with this id.")


def _covering(leaf: Leaf, now: datetime) -> Checkpoint:
    """The newest checkpoint, if this leaf is in it."""
    checkpoint = _newest(now)
    if checkpoint.size <= leaf.leaf_index:
        raise NotYetLoggedError(
            "This event has a number, but no checkpoint covers it yet.",
            retry_after=_due_in(checkpoint, now),
        )
    return checkpoint


def _head_size() -> int:
    head = Head.objects.filter(id=Head.ONLY).first()
    return head.size if head is not None else 0


def _within_checkpoint(level: int, number: int, width: int, now: datetime) -> None:
    """Raises NotFoundError unless the newest checkpoint covers the whole (partial) tile."""
    checkpoint = newest_signed(now=now)
    hashes = checkpoint.size >> level * TILE_HEIGHT if checkpoint is not None else 0
    if (number << TILE_HEIGHT) + width > hashes:
        raise NotFoundError("There is no such tile within the newest checkpoint.")


def _exactly(width: int, found: list[bytes]) -> list[bytes]:
    if len(found) != width:
        raise RuntimeError("the stored tree lacks hashes within a signed checkpoint")
    return found


@contextmanager
def _whole_tree() -> Iterator[None]:
    """The sizes were checked before, so a missing hash is a server error, not a bad request."""
    try:
        yield
    except ChainError as error:
        raise RuntimeError("the stored tree is shorter than its head") from error
