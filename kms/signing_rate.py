"""Limits token signing to what a throttling KMS accepts; refuses the rest before any work.

A refused signature would waste a proof, a row, an event and a call. The rate follows additive
increase and multiplicative decrease, as in TCP congestion control (RFC 5681): each process finds
its own share without coordination.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError

# A throttled call multiplies the rate by DECREASE, at most once a second. Each signature adds
# GROWTH, or 1/rate (one more per second, each second) if that is more.
DECREASE: Final = 0.95
GROWTH: Final = 0.02
LOWEST: Final = 1.0
# This many seconds' worth of signatures may come at once.
BURST_SECONDS: Final = 0.1
# Signatures are counted for a second to find the first rate. Throttled calls further apart than
# this (s) need no limit.
COUNTED_SECONDS: Final = 2.0
# Without a throttled call for this long (s) the limit is lifted.
FORGET_SECONDS: Final = 60.0


class SigningRateLimiter:
    """The rate limit of one process. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Signatures per second; None while the KMS does not throttle.
        self._rate: float | None = None
        # When the next call is due, and when the rate was last lowered.
        self._next = self._lowered_at = float("-inf")
        # Signatures since the first throttled call; the first rate is their number per second.
        self._signed, self._counting_since = 0, float("-inf")

    def admit(self) -> None:
        """Take a turn. Raises TemporarilyUnavailableError if none is due yet."""
        with self._lock:
            due = self._due()
            if self._rate is not None:
                self._next = due + 1 / self._rate

    def give_back(self) -> None:
        """Return a turn that was not used."""
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
                "The key service is throttled. Try again shortly.", retry_after=1
            )
        return due

    def record_signature(self) -> None:
        """Record a signature."""
        with self._lock:
            self._signed += 1
            if self._rate is not None:
                self._rate += max(1 / self._rate, GROWTH)

    def record_throttling(self) -> None:
        """Record a throttled call."""
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


PACE: Final = SigningRateLimiter()
