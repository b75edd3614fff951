"""The scripts that run inside Redis, and their answers. Each runs as a whole or not at all.

Every script answers `[code, tat after, wait, number, tat before]`, all integers or nil, and AGAIN a
sixth (`read_reply`). Times are µs: a Lua number is exact below 2^53. Numeric arguments are decimal
text. `redis_keys` has the names of the keys.

JUDGE   KEYS epoch, proof, rate, events, count. ARGV:
        1   epoch
        2   ms to remember the proof, at least 1; or 0: a dry run, which only looks
        3   `yes`; `no`: refused already, the event is of the verdict in the base; or `hold`: the
            database decides after this, and writes the event
        4   now
        5   the rate's interval; 0: no rate
        6   the rate's tolerance
        7   a lower bound of the remembered time, and its value if none is remembered; 0: none
        8   base JSON of the event
        9   how many events the stream may hold
        10  `1` if the call counts: an action, and no dry run
        11  `1` if there is an action
        12  how much the server's clock may differ from now
        13  ms that a rate's time is remembered beyond its end
        14  the mark of a call with a name, else empty
        15  yes, no: the MAC of 8. hold: for how many µs after the proof was spent under that mark
            the same call passes again
        16  yes, no: the answer (id of a yes, body of a no). hold: after how many µs the same call
            is REPLAYED; between 15 and 16 it is UNSURE
        17  yes, no: `1` for a refusal that outranks a yes which the same call got before
        18… yes, no: further fields of the entry, names and values: `f`, unless its format is 1
        Answers, in this order: LOST if another epoch is marked, or none, or the clock differs by
        more; FULL (not for hold); AGAIN with `kept`; HELD (not for hold); UNSURE (hold only);
        REPLAYED; RATE with `wait` (not for no); OK. REPLAYED, RATE and OK write their event, except
        for hold.
        `tat before` is what the rate was judged by, so 7 if nothing was remembered. Both are None
        without a rate, and for no.
GIVE_BACK   KEYS epoch, rate. ARGV epoch, interval, `tat after` and `tat before` (0 for None) of the
        hold, and the time now: with the call's own, it would also return part of what others used
        since. OK or LOST.
NOTE    KEYS epoch, events, count. ARGV epoch, base JSON, bound, MAC, and further fields as above.
        Writes the event of a refusal made before the store. OK, LOST or FULL.
MARK    KEYS epoch, count. ARGV epoch. Begins the epoch unless it has begun. LOST if a later
        one has: `number`.
MARKER  KEYS epoch, and one that never exists. Returns the marker or nil, and fails where JUDGE
        would: JUDGE also names missing keys, which no node serves while a slot is half moved. Not
        in `SCRIPTS`: only the epoch keeper uses it.
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from agentauth.protocol.fast_dataclass import per_call

# Events that may wait in one shard's stream for the log.
MAX_STREAM: Final = 100_000


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and the name by which Redis knows it."""

    source: bytes
    sha1: bytes


def _script(name: str) -> Script:
    source = (Path(__file__).parent / f"{name}.lua").read_bytes()
    # Redis names scripts by their SHA-1. It is not used for security.
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


JUDGE: Final = _script("judge")
GIVE_BACK: Final = _script("give_back")
NOTE: Final = _script("note")
MARK: Final = _script("mark")
MARKER: Final = _script("marker")
SCRIPTS: Final = (JUDGE, GIVE_BACK, NOTE, MARK)


class Code(IntEnum):
    """The first element of a script's answer."""

    OK = 0
    REPLAYED = 1
    RATE = 2
    # The server does not know this epoch, so it may have forgotten proofs.
    LOST = 3
    # The stream holds as many events as it may.
    FULL = 4
    # The same call spent the proof, too long ago to know its outcome.
    UNSURE = 5
    # The same call was answered before. `kept` holds the answer.
    AGAIN = 6
    # The database decided the same call before.
    HELD = 7


_CODES: Final = {code.value: code for code in Code}


@per_call(frozen=True, slots=True)
class Reply:
    """A script's answer.

    `number`: the event's place in its shard and epoch, 0 if none was written.
    """

    code: Code
    tat_us: int | None
    wait_us: int
    number: int
    before_us: int | None
    # For AGAIN: the kept answer, after its `=`.
    kept: bytes = b""


def read_reply(raw: Any) -> Reply:
    """Parse a script's answer, with or without `kept`.

    Raises ValueError or TypeError if it is none.
    """
    code, tat_us, wait_us, number, before_us, *kept = raw
    known = _CODES.get(code)
    if known is None:
        raise ValueError("a script answered with an unknown code")
    return Reply(known, tat_us, wait_us, number, before_us, *kept)
