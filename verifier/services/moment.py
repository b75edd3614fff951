"""How long ago something was, on a host that may have been halted in between."""

from math import inf
from time import monotonic, time
from typing import Final, NamedTuple, Self

from agentauth.protocol.dpop import SPEND_SECONDS, WINDOW_SECONDS

# By how much a host's clock may differ from the database's.
CLOCK_SECONDS: Final = SPEND_SECONDS - WINDOW_SECONDS
# Clocks that went on so differently, in seconds, were not halted: it is how they are rounded and set right.
_ALIKE: Final = 0.1


def longer(passed: float, by_wall: float) -> float:
    """Of the seconds by the monotonic clock and by the other those that count: where a host was halted the first one slept.

    Where the other was set back by more than clocks may differ nothing is known of now: it is as if for ever had passed.
    """
    if by_wall < passed - CLOCK_SECONDS:
        return inf
    return by_wall if by_wall > passed + _ALIKE else passed


class Moment(NamedTuple):
    """By both clocks of the host, in seconds: its monotonic one, which sleeps where the host is halted, and the one that is set
    right when it wakes up.
    """

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        return cls(monotonic(), time())

    def age(self) -> float:
        """Seconds since then."""
        return longer(monotonic() - self.monotonic, time() - self.wall)
