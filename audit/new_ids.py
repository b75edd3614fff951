"""Row ids: UUIDv7 from the clock and system randomness. `agentauth.protocol` defines the layout."""

import os
import threading
import time
import uuid
from datetime import datetime
from functools import lru_cache
from typing import Final

from agentauth.protocol.identifiers import ENTROPY_BYTES, uuid7_text

_NANOSECONDS_PER_MILLISECOND: Final = 1_000_000
# RFC 9562 section 6.2, method 3: 12 bits after the milliseconds hold their fraction, in steps of
# 244 ns. So ids of two processes on one host sort by its clock if they are made further apart than
# that.
_FRACTION_BITS: Final = 12
# Method 2 below it: 62 random bits, of which the first is 0 so that steps rarely carry into the
# time.
_RANDOM_BITS: Final = 62
# A random step between two ids of one tick, so that the next id cannot be guessed from the last.
_STEP_BITS: Final = 32
# If the clock is set back by less than this, ids continue from the last one. If by more, they
# follow the clock: an hour of ids from a wrong future would be worse than one change of order.
MAX_SET_BACK_SECONDS: Final = 600
_MAX_SET_BACK: Final = (MAX_SET_BACK_SECONDS * 1000) << _FRACTION_BITS

# Caches the text of ids in use, since formatting a UUID on each use is slow.
id_text = lru_cache(maxsize=16_384)(str)


class _Mint:
    """The last id of this process, as a number: ticks of the clock, then the random bits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        """The next number, larger than all before it.

        Unless the clock was set back by MAX_SET_BACK_SECONDS or more.
        """
        with self._lock:
            # Read the clock inside the lock: before it, a waiting thread would use an old time.
            now, last = _ticks(), self._last >> _RANDOM_BITS
            if now > last or now <= last - _MAX_SET_BACK:
                self._last = now << _RANDOM_BITS | _random(_RANDOM_BITS - 1)
            else:
                self._last += 1 + _random(_STEP_BITS)
            return self._last

    def begin_anew(self) -> None:
        """Reset in a forked child: use a new lock, and continue past the parent's last id.

        The distance is random, so that two children do not make the same ids.
        """
        self._lock = threading.Lock()
        if self._last:
            self._last = ((self._last >> _RANDOM_BITS) + 1) << _RANDOM_BITS | _random(
                _RANDOM_BITS - 1
            )


def _ticks() -> int:
    """The clock, in milliseconds and _FRACTION_BITS of their fraction."""
    whole, rest = divmod(time.time_ns(), _NANOSECONDS_PER_MILLISECOND)
    return whole << _FRACTION_BITS | (rest << _FRACTION_BITS) // _NANOSECONDS_PER_MILLISECOND


def _random(bits: int) -> int:
    return int.from_bytes(os.urandom(8), "big") >> (64 - bits)


_mint = _Mint()


def _after_fork() -> None:
    _mint.begin_anew()


os.register_at_fork(after_in_child=_after_fork)


def new_id() -> uuid.UUID:
    """A fresh UUIDv7; ordered as by `new_id_text`."""
    return uuid.UUID(new_id_text())


def new_id_text() -> str:
    """A fresh UUIDv7 as text, larger than every earlier one of this process.

    This holds across threads and forks, unless the clock was set back by MAX_SET_BACK_SECONDS or
    more in between. Ids of other processes sort by their clocks.
    """
    number = _mint.next()
    bits = _FRACTION_BITS + _RANDOM_BITS
    rest = number & ((1 << bits) - 1)
    return uuid7_text(number >> bits, rest.to_bytes(ENTROPY_BYTES, "big"))


def made_at(made: uuid.UUID) -> float:
    """When the id was made, in seconds since 1970, to the millisecond."""
    return (made.int >> 80) / 1000


def first_id_at(at: datetime) -> uuid.UUID:
    """The smallest id that could be made at this time: ids from then on are not below it."""
    milliseconds = max(0, int(at.timestamp() * 1000))
    return uuid.UUID(uuid7_text(milliseconds, bytes(ENTROPY_BYTES)))
