"""Keep an agent's calls within the rate of its grant, so that verify refuses none of them.

The same algorithm (GCRA) as the registry's, for each grant, with the same arithmetic. The registry
counts a use at some moment between our request and its answer. So a use that was answered counts
here as of its answer, which is never before the registry counted it, and a use in flight counts as
of now; if it takes longer than `JUDGED_SECONDS`, as of then. A grant without a burst therefore has
at most one request in flight within that time. Other processes that use the grant are not seen:
their uses cost a 429, after which this process waits as long as it says.
"""

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Final

from agentauth.protocol.usage_counters import Rate

from .client_cache import Locks
from .grant_choice import granted_envelope
from .registry_answers import Grant

# Seconds from a request until its service provider has asked the registry, at the latest.
JUDGED_SECONDS: Final = 1
# Seconds. The slowest rate, one call per minute, asks for no longer wait.
LONGEST_WAIT_SECONDS: Final = 60
_SECOND_US: Final = 1_000_000
_JUDGED_US: Final = JUDGED_SECONDS * _SECOND_US


@dataclass(slots=True)
class _Pace:
    """The state of one grant; all times in microseconds of the monotonic clock."""

    rate: Rate
    # GCRA's theoretical arrival time after all uses that are no longer in flight.
    tat_us: int | None = None
    # When each use in flight began, oldest first.
    in_flight: list[int] = field(default_factory=list)
    # Of the call whose turn is next: done when a use ends.
    next_call: asyncio.Future[None] | None = None
    # A turn may end in another thread than that of the loop: see SyncAgentAuthClient.
    lock: threading.RLock = field(default_factory=threading.RLock)

    def take(self, now_us: int) -> int:
        """Begin a use if one is allowed now; else return the microseconds until then."""
        with self.lock:
            wait_us = self.wait_us(now_us)
            if wait_us <= 0:
                self.in_flight.append(now_us)
            return wait_us

    def wait_us(self, now_us: int) -> int:
        """Until the next use is allowed whenever the registry judges it; 0 or less means now."""
        while self.in_flight and self.in_flight[0] + _JUDGED_US <= now_us:
            judged_us = self.in_flight.pop(0) + _JUDGED_US
            self.tat_us = self.rate.advance(self.tat_us, judged_us)
        # All in flight may be judged together with the next one, as one burst.
        too_many = len(self.in_flight) - (self.rate.burst - 1)
        if too_many > 0:
            return self.in_flight[too_many - 1] + _JUDGED_US - now_us
        ahead_us = len(self.in_flight) * self.rate.interval_us
        return 0 if self.tat_us is None else self.rate.wait_us(self.tat_us + ahead_us, now_us)

    async def wait(self, wait_us: int) -> None:
        """Wait that long, or until a use ends."""
        self.next_call = asyncio.get_running_loop().create_future()
        sleeping = asyncio.ensure_future(asyncio.sleep(wait_us / _SECOND_US))
        try:
            await asyncio.wait({sleeping, self.next_call}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.next_call = None
            sleeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sleeping


@dataclass(slots=True)
class Turn:
    """One use of a grant, from the request to its answer. The first of its three methods counts."""

    _pace: _Pace
    _began_us: int
    _is_over: bool = False

    def count(self) -> None:
        """The registry counted this use, or may have."""
        pace = self._pace
        with pace.lock:
            if not self._is_over and self._end():
                pace.tat_us = pace.rate.advance(pace.tat_us, _now_us())

    def give_back(self) -> None:
        """The registry refused the call, so it counted nothing."""
        pace = self._pace
        with pace.lock:
            if not self._is_over and not self._end() and pace.tat_us is not None:
                pace.tat_us -= pace.rate.interval_us

    def wait_for(self, seconds: int) -> None:
        """The registry refused the call by its rate, and allows the next one after `seconds`.

        The service provider passes this on. More than a rate can ask for is not believed: the call
        is only given back.
        """
        pace = self._pace
        with pace.lock:
            if not self._is_over:
                self.give_back()
                if seconds > LONGEST_WAIT_SECONDS:
                    return
                allowed_us = _now_us() + seconds * _SECOND_US
                pace.tat_us = max(pace.tat_us or 0, allowed_us + pace.rate.tolerance_us)

    def _end(self) -> bool:
        """End the turn; False if it was counted already, because it took so long."""
        self._is_over = True
        pace = self._pace
        is_in_flight = self._began_us in pace.in_flight
        if is_in_flight:
            pace.in_flight.remove(self._began_us)
        if pace.next_call is not None:
            # A closed loop has no call left to wake.
            with contextlib.suppress(RuntimeError):
                pace.next_call.get_loop().call_soon_threadsafe(_wake, pace.next_call)
        return is_in_flight


class Pacing:
    """The turns of all grants of one client, in the order in which calls ask for them."""

    def __init__(self) -> None:
        self._paces: dict[str, _Pace] = {}
        self._locks = Locks()

    async def take_turn(self, grant: Grant) -> Turn | None:
        """Wait until the grant's rate allows a use; None if it has no rate."""
        envelope = granted_envelope(grant)
        rate = None if envelope is None else envelope.rate
        if rate is None:
            return None
        pace = self._paces.setdefault(grant.grant_id, _Pace(rate))
        pace.rate = rate
        # Held while waiting, so that calls take their turns in order.
        async with self._locks.of(grant.grant_id):
            while (wait_us := pace.take(now_us := _now_us())) > 0:
                await pace.wait(wait_us)
            return Turn(pace, now_us)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _now_us() -> int:
    return time.monotonic_ns() // 1_000
