"""Elapsed time on a host that may have been suspended meanwhile."""

from math import inf
from time import monotonic, time
from typing import Final, NamedTuple, Self

from agentauth.protocol.dpop import SPEND_SECONDS, WINDOW_SECONDS

# A host's clock may differ from the database's by at most this (s): the replay cache remembers a
# proof for this much longer than any verifier accepts it.
CLOCK_SKEW_SECONDS: Final = SPEND_SECONDS - WINDOW_SECONDS
# If the two clocks disagree by at most this (s), it is rounding or a time correction; if by more,
# the host was suspended.
_CLOCK_JITTER_SECONDS: Final = 0.1


def elapsed_seconds(by_monotonic: float, by_wall: float) -> float:
    """The seconds elapsed, given those by the monotonic clock and those by the wall clock.

    The monotonic clock stops while a host is suspended, so the wall clock counts if it is clearly
    ahead. If the wall clock was set back by more than CLOCK_SKEW_SECONDS, the true time is unknown:
    the result is infinite, so that callers treat their state as stale.
    """
    if by_wall < by_monotonic - CLOCK_SKEW_SECONDS:
        return inf
    return by_wall if by_wall > by_monotonic + _CLOCK_JITTER_SECONDS else by_monotonic


class ClockReading(NamedTuple):
    """A moment by both clocks of the host, in seconds.

    The monotonic clock stops while the host is suspended; the wall clock is corrected when it
    resumes.
    """

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        return cls(monotonic(), time())

    def age(self) -> float:
        """Seconds since this moment."""
        return elapsed_seconds(monotonic() - self.monotonic, time() - self.wall)
