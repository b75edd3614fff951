"""How many events may wait for their number: beyond that nothing new is begun, and what ends something still is."""

import logging
import threading
import time
from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import QueueEntry

logger = logging.getLogger(__name__)

# Beyond this the numbering is not behind but dead, and what we do would go unproved for too long.
MAX_WAITING_EVENTS: Final = 100_000
# From here on it is said.
ALARM_AT: Final = 0.7
# So often a process counts, at most: what comes in between may go beyond the bound by as much.
SAMPLED_SECONDS: Final = 1.0
# What takes something away, and what leads a person there: to stop an agent must not wait for the log to be well again.
# They are few, since there must be something to end.
PASSES: Final = frozenset(
    {
        kinds.KEY_DISABLED,
        kinds.KEY_CERTIFICATE_REVOKED,
        kinds.HUMAN_SUSPENDED,
        kinds.HUMAN_SESSIONS_ENDED,
        kinds.HUMAN_DELETED,
        kinds.SERVICE_PROVIDER_SECRETS_ENDED,
        kinds.SERVICE_PROVIDER_SUSPENDED,
        kinds.SERVICE_PROVIDER_REVOKED,
        kinds.AGENT_SUSPENDED,
        kinds.AGENT_REVOKED,
        kinds.AGENT_KEY_BARRED,
        kinds.GRANT_DENIED,
        kinds.GRANT_WITHDRAWN,
        kinds.GRANT_SUSPENDED,
        kinds.GRANT_VERSION_RAISED,
        kinds.GRANT_REVOKED,
        kinds.TOKEN_REVOKED,
        kinds.CONFIRMATION_DENIED,
        kinds.PRESENCE_ENDED,
        kinds.PASSKEY_REMOVED,
        kinds.HUMAN_SIGNED_IN,
        kinds.HUMAN_SIGNED_OUT,
        kinds.HUMAN_VERIFIED,
    }
)


class Backlog:
    """The number of waiting events as this process last counted it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._waiting = 0

    def waiting(self) -> int:
        """How many wait, as of the last second; never more than MAX_WAITING_EVENTS. Raises django.db errors."""
        # One thread counts, the others go by what was counted before.
        if time.monotonic() >= self._until and self._lock.acquire(blocking=False):
            try:
                self._waiting = QueueEntry.objects.order_by("pk")[:MAX_WAITING_EVENTS].count()
                self._until = time.monotonic() + SAMPLED_SECONDS
            finally:
                self._lock.release()
            if self._waiting >= ALARM_AT * MAX_WAITING_EVENTS:
                logger.warning(
                    "%s events wait for their number, of %s that may", self._waiting, MAX_WAITING_EVENTS
                )
        return self._waiting

    def is_full(self) -> bool:
        """Whether as many wait as may. Raises django.db errors."""
        return self.waiting() >= MAX_WAITING_EVENTS


_backlog = Backlog()


def check_backlog(*, kind: str, actor_kind: str) -> None:
    """Whether one more event of this kind may be written. Raises TemporarilyUnavailableError where too many wait.

    The system's own always may: the sums of refusals come before the numbering that empties the queue.
    """
    if actor_kind != "system" and kind not in PASSES and _backlog.is_full():
        raise TemporarilyUnavailableError


def check_backlog_of_many() -> None:
    """As `check_backlog`, for events that keep where they are until they are taken."""
    if _backlog.is_full():
        raise TemporarilyUnavailableError
