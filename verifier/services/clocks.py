"""A host whose clock is not the database's: nothing is changed there, and the log says so once.

When a token ends, in which day a budget counts, whether a passkey's challenge is over: each is told by the clock of the
host that answers. It is compared with the database's by the same look that keeps the lease (`home.py`), at most once a second.
"""

import logging
import platform
import threading

from django.db import transaction

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.services import Actor, record
from verifier.services import home

logger = logging.getLogger(__name__)

_ACTOR = Actor("system", "clock")


class HostClock:
    """What one process found, for all its threads."""

    def __init__(self) -> None:
        self._told = False
        self._telling = threading.Lock()

    def check(self) -> None:
        """Raises TemporarilyUnavailableError where this host's clock is off, or cannot be compared, or the process may not act for
        the installation; django.db errors.
        """
        if halt := home.LEASE.halt():
            raise TemporarilyUnavailableError(halt.told)
        off = home.LEASE.clock_off()
        self.tell(off)
        if off is not None:
            raise TemporarilyUnavailableError(home.CLOCK_WRONG)

    def tell(self, off: home.ClockOff | None) -> None:
        """Record that it is off, once until it was right in between. Raises what `audit.services.record` raises.

        The event's time is the database's, since this host has no good one.
        """
        if off is None:
            self._told = False
        elif not self._told and self._telling.acquire(blocking=False):
            try:
                if not self._told:
                    logger.error("the clock of this host is %s s ahead of the database's", off.seconds_ahead)
                    data = {"host": platform.node(), "seconds_ahead": off.seconds_ahead}
                    with transaction.atomic():
                        record(kind=kinds.CLOCK_OFF, actor=_ACTOR, at=off.database_now, data=data)
                    self._told = True
            finally:
                self._telling.release()


# This process's own.
CLOCK = HostClock()
