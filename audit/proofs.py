"""What the log shows to everybody: its signed word, proofs against it, and its tiles. HTTP is in `audit.proofs_api`."""

import math
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from agentauth.protocol.chain import TILE_HEIGHT
from agentauth.protocol.errors import ChainError, InvalidRequestError, NotFoundError, NotYetLoggedError
from agentauth.protocol.log_texts import LogProof
from agentauth.protocol.notes import MAX_SIGNATURES
from audit import tree
from audit.checkpoints import EVERY, newest_signed
from audit.models import Checkpoint, Head, Leaf, QueueEntry

# An event gets its number within about a second, and so does the first checkpoint once there is one.
SOON_SECONDS = 1
_LENGTH_BYTES = 2


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Leaf `leaf_index` stands in the tree of `tree_size` leaves: `path` leads from `leaf_hash` up to `root`. Hashes of 32 bytes."""

    leaf_index: int
    tree_size: int
    leaf_hash: bytes
    path: Sequence[bytes]
    root: bytes


def signed_checkpoint(*, now: datetime) -> str:
    """The newest checkpoint as a signed note, with the cosignatures kept for it. Raises NotYetLoggedError where there is none yet."""
    return _note(_newest(now))


def prove_inclusion(*, event: uuid.UUID, tree_size: int | None, now: datetime) -> Inclusion:
    """That the event is in the tree of `tree_size` leaves, or of the newest checkpoint (RFC 9162 section 2.1.3).

    Raises NotFoundError for an id that is no event's, NotYetLoggedError for an event that is not numbered or, where no
    size is named, not in a checkpoint, InvalidRequestError for a size beyond the log or that leaves the event out.
    """
    leaf = _leaf(event)
    if tree_size is None:
        tree_size = _covering(leaf, now).size
    elif tree_size > (longest := _head_size()):
        raise InvalidRequestError(f"`tree_size` is at most {longest}, the size of the log.")
    elif tree_size <= leaf.leaf_index:
        raise InvalidRequestError(f"`tree_size` is above {leaf.leaf_index}, the number of this event.")
    with _whole_tree():
        path = tree.inclusion_proof(leaf.leaf_index, tree_size)
        root = tree.root_at(tree_size)
    return Inclusion(leaf.leaf_index, tree_size, bytes(leaf.leaf_hash), path, root)


def prove_consistency(*, first: int, second: int) -> list[bytes]:
    """That the tree of `second` leaves adds to that of `first` (RFC 9162 section 2.1.4). Raises InvalidRequestError."""
    longest = _head_size()
    if not 1 <= first <= second <= longest:
        raise InvalidRequestError(
            f"`first` is at least 1, `second` not below it and at most {longest}, the size of the log."
        )
    with _whole_tree():
        return tree.consistency_proof(first, second)


def prove_event(*, event: uuid.UUID, now: datetime) -> str:
    """The event's proof in one text with the newest checkpoint and its cosignatures (c2sp.org/tlog-proof).

    Raises as `prove_inclusion` without a size.
    """
    leaf = _leaf(event)
    checkpoint = _covering(leaf, now)
    with _whole_tree():
        path = tree.inclusion_proof(leaf.leaf_index, checkpoint.size)
    return LogProof(leaf.leaf_index, tuple(path), _note(checkpoint)).text


def tile(*, level: int, number: int, width: int, now: datetime) -> bytes:
    """The first `width` hashes of a tile, one after the other (c2sp.org/tlog-tiles). Raises NotFoundError."""
    _within_checkpoint(level, number, width, now)
    return b"".join(_exactly(width, tree.tile(level, number, width)))


def entry_bundle(*, number: int, width: int, now: datetime) -> bytes:
    """The entries behind the tile of level 0 with this number, each after its length in two bytes. Raises NotFoundError."""
    _within_checkpoint(0, number, width, now)
    found = _exactly(width, tree.entries(number, width))
    return b"".join(len(entry).to_bytes(_LENGTH_BYTES, "big") + entry for entry in found)


def _newest(now: datetime) -> Checkpoint:
    checkpoint = newest_signed(now=now)
    if checkpoint is None:
        raise NotYetLoggedError(
            "No key of the log has signed a checkpoint yet.", retry_after=_due_in(None, now)
        )
    return checkpoint


def _due_in(newest: Checkpoint | None, now: datetime) -> int:
    """Seconds until the next checkpoint may be expected, at least one."""
    if newest is None:
        return SOON_SECONDS
    left = math.ceil((newest.at + EVERY - now).total_seconds())
    return min(max(left, SOON_SECONDS), int(EVERY.total_seconds()))


def _note(checkpoint: Checkpoint) -> str:
    lines = checkpoint.cosignatures.order_by("id").values_list("line", flat=True)
    # A note with more signatures than that would be read by nobody; the first one is the log's own.
    return checkpoint.note + "".join(lines[: MAX_SIGNATURES - 1])


def _leaf(event: uuid.UUID) -> Leaf:
    # The queue first: an event that is numbered between the two questions is then in both answers, never in none.
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
            "This event has its number, and no checkpoint covers it yet.",
            retry_after=_due_in(checkpoint, now),
        )
    return checkpoint


def _head_size() -> int:
    head = Head.objects.filter(id=Head.ONLY).first()
    return head.size if head is not None else 0


def _within_checkpoint(level: int, number: int, width: int, now: datetime) -> None:
    """What no checkpoint vouches for is not shown, and an empty tile is none."""
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
    """The sizes were looked at before: what the tree lacks now is a fault of ours, and no bad question."""
    try:
        yield
    except ChainError as error:
        raise RuntimeError("the stored tree is shorter than its head") from error
