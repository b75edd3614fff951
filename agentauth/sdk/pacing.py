"""Keep an agent's calls within the rate of its grant, so that verify refuses none of them.

The same algorithm (GCRA) as the registry's, for each grant, with the same arithmetic. The registry
counts a use at some moment between our request and its answer, so the state here is never behind
the registry's: it counts each use as of the moment of its answer. Other processes that use the
grant are not seen; their uses cost a 429, after which this process waits as long as it says.
"""

import asyncio
import time
from dataclasses import dataclass, field

from agentauth.protocol.limits import Rate

from .answers import Grant
from .choosing import granted_envelope
from .tokens import Locks


@dataclass(slots=True)
class _Pace:
    """The state of one grant; all times in microseconds of the monotonic clock."""

    rate: Rate
    # GCRA's theoretical arrival time, an upper bound of the registry's.
    tat_us: int | None = None
    in_flight: int = 0
    # The longest time from a request to its answer since the last moment without requests.
    lag_us: int = 0

    def wait_us(self, now_us: int) -> int:
        # Several requests may be judged as late as the slowest was.
        lag_us = self.lag_us if self.in_flight else 0
        wait_us = self.rate.wait_us(self.tat_us, now_us)
        return wait_us + lag_us if wait_us > 0 else wait_us


@dataclass(slots=True)
class Turn:
    """One use of a grant, from the request to its answer. Ends with one of its three methods."""

    _pace: _Pace
    _began_us: int
    _is_over: bool = field(default=False)

    def count(self) -> None:
        """The registry counted this use, or may have."""
        if not self._end():
            return
        pace, now_us = self._pace, _now_us()
        pace.lag_us = max(pace.lag_us, now_us - self._began_us) if pace.in_flight else 0
        pace.tat_us = max(pace.tat_us or 0, now_us + pace.rate.interval_us)

    def give_back(self) -> None:
        """The registry refused the call, so it counted nothing."""
        if self._end() and self._pace.tat_us is not None:
            self._pace.tat_us -= self._pace.rate.interval_us

    def wait_for(self, seconds: int) -> None:
        """The registry refused the call by its rate, and allows the next one after `seconds`."""
        if self._end():
            pace = self._pace
            allowed_us = _now_us() + seconds * 1_000_000
            pace.tat_us = max(pace.tat_us or 0, allowed_us + pace.rate.tolerance_us)

    def _end(self) -> bool:
        if self._is_over:
            return False
        self._is_over = True
        self._pace.in_flight -= 1
        return True


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
            while (wait_us := pace.wait_us(_now_us())) > 0:  # noqa: ASYNC110 — ends by the clock
                await asyncio.sleep(wait_us / 1_000_000)
            now_us = _now_us()
            pace.tat_us = pace.rate.advance(pace.tat_us, now_us)
            pace.in_flight += 1
            return Turn(pace, now_us)


def _now_us() -> int:
    return time.monotonic_ns() // 1_000
