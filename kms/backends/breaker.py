"""When a home of keys is asked no more for a while, and how many calls may be tried again. All of it per process."""

import logging
import math
import random
import threading
import time
from typing import Final

from kms.backends.errors import NotAskedError

logger = logging.getLogger(__name__)

# So many in a row that were not answered, and it is asked no more.
FAILURES: Final = 3
# Then it is tried after at most so long, each time twice as long as the time before, up to the second (s).
FIRST_PAUSE_SECONDS: Final = 3.0
LONGEST_PAUSE_SECONDS: Final = 30.0
# A call earns 1, one that is tried again costs 6: so of 100 calls at first there never are more than 120 in all.
RETRY_COSTS: Final = 6
MOST_RETRIES_SAVED: Final = 10


class Breaker:
    """Lets calls pass while the home answers. Once it does not, one at a time tries, and the others are told so at once.

    Whatever the home says is an answer, also a refusal and "too many": only silence and its own faults are none.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._failures = 0
        # How often it was found away since it last answered: 0 while it is asked.
        self._opened = 0
        self._until = 0.0
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for the one that tries."""
        return self._opened > 0

    def admit(self) -> bool:
        """Whether this call is the one that tries. Raises NotAskedError where it may not be made."""
        with self._lock:
            if not self._opened:
                return False
            left = self._until - time.monotonic()
            if self._trying or left > 0:
                raise NotAskedError(
                    f"The home of keys {self._home!r} is away, and not asked.",
                    retry_after=max(1, math.ceil(left)),
                )
            self._trying = True
            return True

    def report(self, *, answered: bool | None, tried: bool) -> None:
        """How an admitted call went; None where it was not made after all. `tried`: what `admit` said of it."""
        with self._lock:
            if tried:
                self._trying = False
            elif self._opened:
                # It began before; the one that tries tells how it is now.
                return
            if answered:
                if self._opened:
                    logger.warning("the home of keys %r answers again", self._home)
                self._failures = self._opened = 0
            elif answered is not None:
                self._failures += 1
                if self._failures >= FAILURES:
                    self._open()

    def _open(self) -> None:
        longest = min(FIRST_PAUSE_SECONDS * 2**self._opened, LONGEST_PAUSE_SECONDS)
        self._opened += 1
        # Processes and hosts do not come back all at once.
        pause = random.uniform(longest / 2, longest)  # noqa: S311 — no secret
        self._until = time.monotonic() + pause
        logger.error("the home of keys %r does not answer; it is asked again in %.1f s", self._home, pause)


class Budget:
    """How many calls may be tried again, so that a home that has too many does not get more of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._saved = 0

    def earn(self) -> None:
        """A call was made."""
        with self._lock:
            self._saved = min(self._saved + 1, MOST_RETRIES_SAVED * RETRY_COSTS)

    def spend(self) -> bool:
        """Whether one more may be tried again."""
        with self._lock:
            if self._saved < RETRY_COSTS:
                return False
            self._saved -= RETRY_COSTS
            return True
