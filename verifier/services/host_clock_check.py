"""Refuses to act on a host whose clock differs from the database's, and records that once.

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
    """What is wrong with this host's clock, and what to do; empty if it may be right.

    Raises django.db errors.
    """
    earliest, told = timezone.now(), database_time.database_time()
    off = told and replay_epochs.host_clock_error(told, earliest, timezone.now())
    return f"{off.text[0].upper()}{off.text[1:]}." if off else ""


class HostClock:
    """Whether this host's clock is right, for all threads of the process."""

    def __init__(self) -> None:
        self._told = False
        self._telling = threading.Lock()

    def check(self) -> None:
        """Raise TemporarilyUnavailableError if this host's clock is off or cannot be compared.

        Also if the process may not act for the installation. Raises django.db errors.
        """
        if halt := replay_cache_lease.LEASE.halt():
            raise TemporarilyUnavailableError(halt.told)
        off = replay_cache_lease.LEASE.clock_off()
        self.tell(off)
        if off is not None:
            raise TemporarilyUnavailableError(replay_cache_lease.CLOCK_WRONG)

    def tell(self, off: replay_epochs.ClockOff | None) -> None:
        """Record a wrong clock, once until it is right again. Raises as `audit.services.record`.

        The event has the database's time, since this host's is wrong.
        """
        if off is None:
            self._told = False
        elif not self._told and self._telling.acquire(blocking=False):
            try:
                if not self._told:
                    logger.error("%s", off.text)
                    data = {"host": platform.node(), "seconds_ahead": off.seconds_ahead}
                    with transaction.atomic():
                        record(kind=kinds.CLOCK_OFF, actor=_ACTOR, at=off.database_now, data=data)
                    self._told = True
            finally:
                self._telling.release()


# One for the process.
CLOCK = HostClock()
