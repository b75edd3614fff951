"""Elapsed time on a host that may have been suspended meanwhile."""

from math import inf
from time import monotonic, time
from typing import Final, NamedTuple, Self

from agentauth.protocol.dpop import SPEND_SECONDS, WINDOW_SECONDS

# How far (s) a host's clock may differ from the database's.
CLOCK_SECONDS: Final = SPEND_SECONDS - WINDOW_SECONDS
# A difference (s) between the two clocks up to this is rounding or time
# correction, not a suspension.
_ALIKE: Final = 0.1


def elapsed_seconds(passed: float, by_wall: float) -> float:
    """The seconds that passed, given those by the monotonic clock and by the wall clock.

    The larger counts, since the monotonic clock stops while a host is suspended. If the wall clock
    was set back by more than CLOCK_SECONDS, the current time is unknown, so the result is infinite.
    """
    if by_wall < passed - CLOCK_SECONDS:
        return inf
    return by_wall if by_wall > passed + _ALIKE else passed


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
