"""How many tokens a second a home of keys signs that said "too many": whoever it would refuse is told before anything is done.

Such a call would cost a proof, a row and an event, and the home another call. By additive increase and multiplicative decrease,
as TCP finds its share of a line (RFC 5681): each process finds its own share, without asking the others.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError

# What is left of the pace when the home says "too many", once a second at most; with each signature it grows by this much of
# one a second, or by one in all of a second, whichever is more.
DECREASE: Final = 0.95
GROWTH: Final = 0.02
LOWEST: Final = 1.0
# So much (s) of the pace may come at once.
BURST_SECONDS: Final = 0.1
# It is counted for a second; who was refused only now and then, so far apart (s), needs no pace.
COUNTED_SECONDS: Final = 2.0
# After so long (s) without a "too many" there is no pace any more.
FORGET_SECONDS: Final = 60.0


class Pace:
    """Of one process; for all its threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Calls a second; None while the home is not known to say "too many".
        self._rate: float | None = None
        # When the next call is due, and when the pace was last lowered.
        self._next = self._lowered_at = float("-inf")
        # Signatures since it first said "too many": how many it signs in a second tells the first pace.
        self._signed, self._counting_since = 0, float("-inf")

    def admit(self) -> None:
        """Take a turn. Raises TemporarilyUnavailableError where it has not come."""
        with self._lock:
            due = self._due()
            if self._rate is not None:
                self._next = due + 1 / self._rate

    def give_back(self) -> None:
        """The turn that was taken was for nothing."""
        with self._lock:
            if self._rate is not None:
                self._next -= 1 / self._rate

    def _due(self) -> float:
        now = self._clock()
        if now - self._lowered_at > FORGET_SECONDS:
            self._rate = None
        due = max(self._next, now - BURST_SECONDS)
        if self._rate is not None and due > now:
            raise TemporarilyUnavailableError(
                "The key service signs no more tokens just now. Try again shortly.", retry_after=1
            )
        return due

    def signed(self) -> None:
        """The home signed one."""
        with self._lock:
            self._signed += 1
            if self._rate is not None:
                self._rate += max(1 / self._rate, GROWTH)

    def throttled(self) -> None:
        """The home said "too many"."""
        with self._lock:
            now = self._clock()
            if self._rate is not None:
                if now - self._lowered_at >= 1:
                    self._rate, self._lowered_at = max(LOWEST, self._rate * DECREASE), now
                return
            counted = now - self._counting_since
            if counted > COUNTED_SECONDS:
                self._signed, self._counting_since = 0, now
            elif counted >= 1:
                self._rate, self._lowered_at = max(LOWEST, self._signed / counted), now


PACE: Final = Pace()
