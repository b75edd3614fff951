"""The names of the keys in Redis, and what is under each.

All keys of one call carry the hash tag of the grant's shard, so they are on one node of a cluster:

    aa:{07}:epoch     text: the epoch of this replay cache, written when it begins. Missing: all is
                      forgotten
    aa:{07}:p:<16 B>  a spent proof, the first half of SHA-256 over `jkt NUL jti`; expires with the
                      proof. Empty, or for a call with a name (an Idempotency-Key) its mark, 32 B;
                      then, for a hold, the time, and `tat before` and `tat after` if a use was
                      reserved; otherwise `=`, its event's letter, the time, `tat after`, `wait` and
                      the answer
    aa:{07}:r:<16 B>  text: a grant's theoretical arrival time
                      (agentauth.protocol.usage_counters.Rate), µs since 1970
    aa:{07}:events    stream: `e` epoch, `n` number, `o` outcome (a allowed, v as in the base, r
                      replayed, l rate), `b` base JSON, `m` its MAC (stream_entry_macs.py), and
                      `f`, the entry's format if that is not 1 (decision_stream_reader.py)
    aa:{07}:count     the number of the epoch's last event in that stream: 1, 2, 3 …

Two keys belong to no shard: `aa:registry` (redis_owner.py) and `aa:mark` (log_size_mark.py).
"""

import hashlib
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

SHARDS: Final = 16


def shard_of(grant_id: uuid.UUID) -> int:
    """The shard of a grant's keys, 0 to 15: the last bits of its id, which are random."""
    return grant_id.int & (SHARDS - 1)


def tag_of(shard: int) -> bytes:
    """The hash tag of a shard: two digits."""
    return b"%02d" % shard


_PREFIXES: Final = tuple(b"aa:{%s}:" % tag_of(shard) for shard in range(SHARDS))


def epoch_key(shard: int) -> bytes:
    """The marker of the epoch."""
    return _PREFIXES[shard] + b"epoch"


def events_key(shard: int) -> bytes:
    """The stream of events."""
    return _PREFIXES[shard] + b"events"


def count_key(shard: int) -> bytes:
    """The number of the last event."""
    return _PREFIXES[shard] + b"count"


def absent_key(shard: int) -> bytes:
    """A key that is never written."""
    return _PREFIXES[shard] + b"absent"


def proof_key(shard: int, jkt: str, jti: str) -> bytes:
    """One proof, by half a SHA-256.

    A collision costs 2^64 attempts, and lets only one proof pass.
    """
    return _PREFIXES[shard] + b"p:" + hashlib.sha256(f"{jkt}\x00{jti}".encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class GrantKeys:
    """A grant's shard, and the keys there that each of its calls needs."""

    shard: int
    epoch: bytes
    rate: bytes
    events: bytes
    count: bytes


@lru_cache(maxsize=16_384)
def keys_of(grant_id: str) -> GrantKeys:
    """The place of a grant, by its id as text."""
    parsed = uuid.UUID(grant_id)
    shard = shard_of(parsed)
    return GrantKeys(
        shard, epoch_key(shard), rate_key(shard, parsed), events_key(shard), count_key(shard)
    )


def rate_key(shard: int, grant_id: uuid.UUID) -> bytes:
    """A grant's theoretical arrival time."""
    return _PREFIXES[shard] + b"r:" + grant_id.bytes
