"""Refuses to act while this host's clock is more than CLOCK_SKEW_SECONDS from the database's, and
records it: each process one event, until the clock is right again.

The answering host's clock decides when a token expires, in which day a budget counts and whether a
passkey challenge is over. The read that renews the lease (`replay_cache_lease.py`) compares it with
the database's clock, at most once a second.
"""

import logging
import platform
import threading

from django.db import transaction
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.services import Actor, record
from registry.services import database_time
from verifier.services import replay_cache_lease, replay_epochs

logger = logging.getLogger(__name__)

_ACTOR = Actor("system", "clock")


def clock_problem() -> str:
    """What is wrong with this host's clock, and what to do; empty if it is not known to be wrong.

    Raises django.db errors.
    """
    earliest, database_now = timezone.now(), database_time.database_time()
    if database_now is None:
        return ""
    off = replay_epochs.host_clock_error(database_now, earliest, timezone.now())
    return f"{off.text[0].upper()}{off.text[1:]}." if off else ""


class HostClock:
    """Checks this host's clock, for all threads of the process."""

    def __init__(self) -> None:
        self._is_recorded = False
        self._recording = threading.Lock()

    def check(self) -> None:
        """Raise TemporarilyUnavailableError if this host's clock is off or the process may not act
        for the installation, or if the last read of the lease is too old to tell.

        Raises django.db errors.
        """
        if halt := replay_cache_lease.LEASE.halt():
            raise TemporarilyUnavailableError(halt.told)
        off = replay_cache_lease.LEASE.clock_off()
        self.record_wrong_clock(off)
        if off is not None:
            raise TemporarilyUnavailableError(replay_cache_lease.CLOCK_WRONG)

    def record_wrong_clock(self, off: replay_epochs.ClockOff | None) -> None:
        """Log and record a wrong clock: one event of this process until it is right again.

        Raises what `audit.services.record` raises. The event has the database's time, since this
        host's is wrong.
        """
        if off is None:
            self._is_recorded = False
        elif not self._is_recorded and self._recording.acquire(blocking=False):
            # Do not wait for a thread that records it. Look again: it may have finished just before
            # this one got the lock.
            try:
                if not self._is_recorded:
                    logger.error("%s", off.text)
                    data = {"host": platform.node(), "seconds_ahead": off.seconds_ahead}
                    with transaction.atomic():
                        record(kind=kinds.CLOCK_OFF, actor=_ACTOR, at=off.database_now, data=data)
                    self._is_recorded = True
            finally:
                self._recording.release()


CLOCK = HostClock()
