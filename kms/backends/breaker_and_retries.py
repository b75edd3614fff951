"""Circuit breaker and retry budget for key backends, both per process."""

import logging
import math
import random
import threading
import time
from typing import Final

from kms.backends.errors import CallRejectedError

logger = logging.getLogger(__name__)

# Consecutive calls without an answer that open the breaker.
FAILURES: Final = 3
# Seconds. The first pause is random, between half of this and all of it. It doubles with each
# failed probe, up to LONGEST_PAUSE_SECONDS.
FIRST_PAUSE_SECONDS: Final = 3.0
LONGEST_PAUSE_SECONDS: Final = 30.0
# Each request earns 1, a retry too, and a retry costs 6: at most 120 requests for 100 calls, over
# time. At most 10 unused retries are saved.
RETRY_COSTS: Final = 6
MOST_RETRIES_SAVED: Final = 10


class Breaker:
    """Passes calls while the backend answers. While it does not, one call at a time probes it,
    after a pause.

    All others fail at once. A refusal and a throttled call are answers too; silence and server
    faults are not.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._failures = 0
        # How often it opened since the last answer; 0 while closed.
        self._opened = 0
        self._until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, except one that probes."""
        return self._opened > 0

    def admit(self) -> bool:
        """Whether this call is the probe. Raises CallRejectedError if it may not be made."""
        with self._lock:
            if not self._opened:
                return False
            left = self._until - time.monotonic()
            if self._probing or left > 0:
                raise CallRejectedError(
                    f"The key backend {self._home!r} does not answer, and is not called now.",
                    retry_after=max(1, math.ceil(left)),
                )
            self._probing = True
            return True

    def report(self, *, answered: bool | None, is_probe: bool) -> None:
        """Record the end of an admitted call.

        `answered` is None if it was not made, `is_probe` what `admit` returned.
        """
        with self._lock:
            if is_probe:
                self._probing = False
            elif self._opened:
                # It began before the breaker opened. Only the probe decides.
                return
            if answered:
                if self._opened:
                    logger.warning("the key backend %r answers again", self._home)
                self._failures = self._opened = 0
            elif answered is not None:
                self._failures += 1
                if self._failures >= FAILURES:
                    self._open()

    def _open(self) -> None:
        # Bounded: after hours of failures, 2**n no longer fits into a float.
        doublings = min(self._opened, 10)
        longest = min(FIRST_PAUSE_SECONDS * 2**doublings, LONGEST_PAUSE_SECONDS)
        self._opened += 1
        # Random, so that processes and hosts do not come back all at once.
        pause = random.uniform(longest / 2, longest)  # noqa: S311 — no secret
        self._until = time.monotonic() + pause
        logger.error(
            "the key backend %r does not answer; it is called again in %.1f s", self._home, pause
        )


class Budget:
    """The retry budget: retries must not overload a backend that has too many calls already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._saved = 0

    def earn(self) -> None:
        """Record a request that was sent, first try or retry."""
        with self._lock:
            self._saved = min(self._saved + 1, MOST_RETRIES_SAVED * RETRY_COSTS)

    def spend(self) -> bool:
        """Take one retry; False if the budget is used up."""
        with self._lock:
            if self._saved < RETRY_COSTS:
                return False
            self._saved -= RETRY_COSTS
            return True
