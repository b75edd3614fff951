"""The scripts that run inside Redis, their keys, and how their answers are read. Each runs as a whole or not at all.

All keys of one call carry the hash tag of the grant's shard, so that they lie on one node of a cluster:

    aa:{07}:epoch       text: the epoch whose memory this is. Written when an epoch begins; not there: all is forgotten.
    aa:{07}:p:<16 B>    a spent proof, the first half of SHA-256 over `jkt NUL jti`; lives as long as the proof could. Empty, or of
                        a call with a name: its mark, 32 B; then, of a hold, the time, and `tat before` and `tat after` if a
                        use was set aside; else `=`, the letter of its event, the time, `tat after`, `wait` and what was told
    aa:{07}:r:<16 B>    text: a grant's theoretical arrival time (agentauth.protocol.limits.Rate) in µs since 1970
    aa:{07}:events      stream: `e` epoch, `n` number, `o` a allowed, v as in the base, r replayed, l rate, `b` base JSON,
                        `m` its MAC (entry_macs.py; release 3 writes none); and `f`, the number of the entry's format,
                        where that is not 1 (waiting.py)
    aa:{07}:count       the number of the epoch's last event in that stream: 1, 2, 3 …

Every script answers `[code, tat after, wait, number, tat before]`, all integers or nil, and AGAIN a sixth (`read_reply`);
times are µs, exact since a Lua number is below 2^53. Numbers among the arguments are decimal text. The scripts:

JUDGE   KEYS epoch, proof, rate, events, count. ARGV 1 epoch; 2 ms the proof is remembered, at least 1, or 0: a
        rehearsal, which only looks; 3 `yes`, `no` (it was judged: the event is of the verdict in the base) or `hold`
        (the database judges and writes the event after this); 4 now; 5 the rate's interval, 0: no rate; 6 its
        tolerance; 7 what counts where no time is remembered, 0: nothing; 8 base JSON of the event; 9 how many events
        the stream may hold; 10 `1` if the call counts: an action, not rehearsed; 11 `1` if there is an action; 12 by how
        much the server's clock may differ from now; 13 ms that a rate's time is remembered beyond its end; 14 the mark of a
        call with a name, else empty; for yes and no 15 the MAC of 8, 16 what is told (the id of a yes, the body of a no), 17
        `1` for a no that outranks the yes which the same call had before. For hold 15 for how many µs after the proof was
        spent under that mark it is as if it was not; 16 from how many on it is REPLAYED, UNSURE in between.
        LOST if another epoch is marked, or none, or the clock differs by more; else FULL (not for hold); else AGAIN with
        `kept`, or HELD (not for hold); else UNSURE or REPLAYED; else, for yes and hold, RATE with `wait`; else OK. REPLAYED,
        RATE and OK write their event, but for hold; the others write nothing.
        `tat before` is what was judged by, so 7 where nothing was remembered; both are None without a rate or for no.
GIVE_BACK   KEYS epoch, rate. ARGV epoch, interval, `tat after` and `tat before` (0 for None) of the hold, and the time as
        it is given back, not as the call began: what others used in between is not to be given back too. OK or LOST.
NOTE    KEYS epoch, events, count. ARGV epoch, base JSON, bound, MAC. OK, LOST or FULL: the event of a no before the store.
MARK    KEYS epoch, count. ARGV epoch. Begins the epoch; nothing if it has begun. LOST if a later one has: `number`.
MARKER  KEYS epoch, and one that is never there. The marker or nil, and an error where JUDGE would be one, which also names
        keys that are not there: of a slot that is half moved no node answers that. Not `SCRIPTS`: only the keeper asks.
"""

import hashlib
import uuid
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from agentauth.protocol.values import per_call

SHARDS: Final = 16
# Events that may wait in one shard's stream.
MAX_STREAM: Final = 100_000


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and the name Redis knows it by."""

    source: bytes
    sha1: bytes


def _script(name: str) -> Script:
    source = (Path(__file__).parent / f"{name}.lua").read_bytes()
    # Redis names scripts by their SHA-1. It protects nothing here.
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


JUDGE: Final = _script("judge")
GIVE_BACK: Final = _script("give_back")
NOTE: Final = _script("note")
MARK: Final = _script("mark")
MARKER: Final = _script("marker")
SCRIPTS: Final = (JUDGE, GIVE_BACK, NOTE, MARK)


class Code(IntEnum):
    """What a script says first."""

    OK = 0
    REPLAYED = 1
    RATE = 2
    # The server does not know this epoch: it may have forgotten proofs.
    LOST = 3
    # The stream holds as many events as it may.
    FULL = 4
    # The proof was spent by this very call, too long ago to know what became of it.
    UNSURE = 5
    # The very same call was answered before: here is that answer.
    AGAIN = 6
    # The very same call was the database's before.
    HELD = 7


_CODES: Final = {code.value: code for code in Code}


@per_call(frozen=True, slots=True)
class Reply:
    """A script's answer. `number` is the event's in the stream of its shard and epoch, 0 where none was written."""

    code: Code
    tat_us: int | None
    wait_us: int
    number: int
    before_us: int | None
    # Of AGAIN: what lies under the proof after `=`.
    kept: bytes = b""


def read_reply(raw: Any) -> Reply:
    """Of `[code, tat after, wait, number, tat before]`, and `kept`. Raises ValueError or TypeError for anything else."""
    code, tat_us, wait_us, number, before_us, *kept = raw
    known = _CODES.get(code)
    if known is None:
        raise ValueError("a script answered with no code of ours")
    return Reply(known, tat_us, wait_us, number, before_us, *kept)


def shard_of(grant_id: uuid.UUID) -> int:
    """Where a grant's keys are: 0 to 15, by the last byte of its id, which is random."""
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
    """One that nobody writes."""
    return _PREFIXES[shard] + b"absent"


def proof_key(shard: int, jkt: str, jti: str) -> bytes:
    """One proof, by half a SHA-256: whoever finds two proofs with one key, in 2^64 attempts, can use only one of them."""
    return _PREFIXES[shard] + b"p:" + hashlib.sha256(f"{jkt}\x00{jti}".encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one grant is: its shard, and the keys there that each of its calls needs."""

    shard: int
    epoch: bytes
    rate: bytes
    events: bytes
    count: bytes


@lru_cache(maxsize=16_384)
def place_of(grant_id: str) -> Place:
    """Of a grant by its id as it is written."""
    parsed = uuid.UUID(grant_id)
    shard = shard_of(parsed)
    return Place(shard, epoch_key(shard), rate_key(shard, parsed), events_key(shard), count_key(shard))


def rate_key(shard: int, grant_id: uuid.UUID) -> bytes:
    """One grant's theoretical arrival time."""
    return _PREFIXES[shard] + b"r:" + grant_id.bytes
