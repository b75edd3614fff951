"""Reads a shard's stream of decisions: each entry with its number and its event.

Two releases may run side by side (docs/upgrade.md). An entry in a later format than ours names it
in the field `f`. It and the entries after it stay in the stream for the jobs of the release that
wrote it. Without `f` the format is 1.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

from agentauth.protocol.encoding import MAX_INTEGER
from audit.services import NewEvent
from verifier.stores.stream_entry_decoding import UnreadableError, event_of
from verifier.stores.stream_entry_encoding import WITH_ARGUMENTS
from verifier.stores.stream_entry_macs import is_ours

logger = logging.getLogger(__name__)

# The latest entry format that this release reads. A new format gets the next number, in the field
# `f`.
FORMAT: Final = WITH_ARGUMENTS
_FORMAT_DIGITS: Final = 6


class Waiting(NamedTuple):
    """One entry of a stream. `event` is None if it cannot be logged, and `lost` says why.

    Without a number, `epoch` and `number` are 0.
    """

    epoch: int
    number: int
    event: NewEvent | None
    lost: str


class Batch(NamedTuple):
    """What was read of one shard: entries, the epochs of those with a number, the last entry's id.

    `held`: the next entry can be read only by a later release.
    """

    shard: int
    read: list[Waiting]
    epochs: set[int]
    last: str
    held: bool


def read_batch(shard: int, entries: Sequence[Any], *, proved: bool) -> Batch:
    """Read a shard's entries, oldest first, up to one of a later format.

    `proved`: a MAC is required.
    """
    ours = list(takewhile(lambda entry: _is_of_known_format(entry[1]), entries))
    held = len(ours) < len(entries)
    if held:
        logger.error(
            "entry %s of shard %s is of a later release than these jobs: run the jobs of that "
            "release",
            entries[len(ours)][0].decode(),
            shard,
        )
    read = [_read(shard, entry_id, fields, proved=proved) for entry_id, fields in ours]
    last = ours[-1][0].decode() if ours else ""
    return Batch(shard, read, {each.epoch for each in read if each.number}, last, held)


def _is_of_known_format(fields: Mapping[bytes, bytes]) -> bool:
    """Whether this release can read the format.

    A value that is no short number is no later format.
    """
    told = fields.get(b"f", b"1")
    return not told.isdigit() or len(told) > _FORMAT_DIGITS or int(told) <= FORMAT


def is_past(batch: Batch, present: int) -> bool:
    """Whether no entry of an epoch before `present` waits in the shard."""
    if batch.read:
        return batch.read[0].epoch == present
    return not batch.held


def _read(shard: int, entry_id: bytes, fields: dict[bytes, bytes], *, proved: bool) -> Waiting:
    mac = fields.get(b"m", b"" if proved else None)
    if mac is not None and not is_ours(fields.get(b"b", b""), mac):
        logger.error(
            "entry %s of shard %s has no MAC of this installation: something else writes into "
            "this Redis",
            entry_id.decode(),
            shard,
        )
        # Ignore its number too, or an attacker could move the cursor.
        return Waiting(0, 0, None, "unproved")
    epoch, number, event = 0, 0, None
    try:
        epoch, number = _count(fields[b"e"]), _count(fields[b"n"])
        event = event_of(fields[b"b"], fields[b"o"])
    except (UnreadableError, KeyError, ValueError):
        logger.exception("entry %s of shard %s cannot be read", entry_id.decode(), shard)
    return Waiting(epoch if number else 0, number, event, "unreadable")


def _count(text: bytes) -> int:
    value = int(text)
    if not 0 < value <= MAX_INTEGER:
        raise ValueError("the number is out of range")
    return value
