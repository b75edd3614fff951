"""Load shedding: if too many events wait for their number, only acts that end something proceed."""

import logging
import threading
import time
from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import QueueEntry

logger = logging.getLogger(__name__)

# With more waiting, the sequencer is not just behind but dead: new acts would stay unproved too
# long.
MAX_WAITING_EVENTS: Final = 100_000
# Log a warning from this share of MAX_WAITING_EVENTS on.
ALARM_AT: Final = 0.7
# A process counts at most this often; events recorded in between may exceed the limit.
SAMPLED_SECONDS: Final = 1.0
# Kinds that are always accepted: those that end a right, and the sign-in steps that lead there.
# Stopping an agent must not wait until the log has recovered. They are few: each needs something to
# end.
ALWAYS_ACCEPTED: Final = frozenset(
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
    """This process's last count of the waiting events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._waiting = 0

    def waiting(self) -> int:
        """How many wait, at most MAX_WAITING_EVENTS; up to 1 s old. Raises django.db errors."""
        # One thread counts; the others use the previous count instead of waiting.
        if time.monotonic() >= self._until and self._lock.acquire(blocking=False):
            try:
                self._waiting = QueueEntry.objects.order_by("pk")[:MAX_WAITING_EVENTS].count()
                self._until = time.monotonic() + SAMPLED_SECONDS
            finally:
                self._lock.release()
            if self._waiting >= ALARM_AT * MAX_WAITING_EVENTS:
                logger.warning(
                    "%s of at most %s events are waiting for their number",
                    self._waiting,
                    MAX_WAITING_EVENTS,
                )
        return self._waiting

    def is_full(self) -> bool:
        """Whether MAX_WAITING_EVENTS wait. Raises django.db errors."""
        return self.waiting() >= MAX_WAITING_EVENTS


_backlog = Backlog()


def check_backlog(*, kind: str, actor_kind: str) -> None:
    """Raises TemporarilyUnavailableError if too many events wait to record one of this kind.

    Events of the system are always accepted: `seal_audit` records sums of refusals before it
    empties the queue.
    """
    if actor_kind != "system" and kind not in ALWAYS_ACCEPTED and _backlog.is_full():
        raise TemporarilyUnavailableError


def check_backlog_of_many() -> None:
    """As `check_backlog`, for events whose source keeps them until they are accepted."""
    if _backlog.is_full():
        raise TemporarilyUnavailableError
