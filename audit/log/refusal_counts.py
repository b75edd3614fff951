"""Count anonymous refusals per minute in the database, so that a flood cannot fill the log."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError, transaction
from django.db.models import F

from agentauth.protocol.encoding import timestamp
from audit.models import RefusalCount

# Anonymous refusals recorded as single events per route, error and clock minute; more are only
# counted.
RECORDED_PER_MINUTE = 10
# With more keys than this, a process forgets those whose pause is over, to bound its memory.
_MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Flood:
    """One minute's suppressed refusals: its start (RFC 3339) and how many have no event."""

    route: str
    error: str
    minute: str
    count: int


class Batches:
    """Batches one process's refusals per key, so that a flood causes few database writes."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[str, int] = {}
        self._next_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, key: str, *, now: float) -> int:
        """How many refusals to write now: this one and the waiting ones, or 0 to wait.

        `now` is in monotonic seconds. Refusals that wait when a flood ends are written with the
        next one of the key. If there are more than _MAX_KEYS keys and none comes in time, only the
        metrics count them.
        """
        with self._lock:
            if len(self._next_at) > _MAX_KEYS:
                self._next_at = {key: at for key, at in self._next_at.items() if at > now}
                self._waiting = {key: n for key, n in self._waiting.items() if key in self._next_at}
            count = self._waiting.pop(key, 0) + 1
            if now < self._next_at.get(key, now):
                self._waiting[key] = count
                return 0
            self._next_at[key] = now + self._seconds
            return count

    def hold(self, key: str, *, now: float) -> bool:
        """Whether `add` would make this refusal wait; counts it only if so."""
        with self._lock:
            if now >= self._next_at.get(key, now):
                return False
            self._waiting[key] = self._waiting.get(key, 0) + 1
            return True


def count_refusal(*, route: str, error: str, at: datetime, count: int = 1) -> bool:
    """Count `count` refusals that one event would represent; True if the minute allows the event.

    Needs a transaction.
    """
    key = {
        "route": route[: RefusalCount.ROUTE_LENGTH],
        "error": error[: RefusalCount.ERROR_LENGTH],
        "minute": at.replace(second=0, microsecond=0),
    }
    if not _increment(key):
        try:
            with transaction.atomic():
                RefusalCount.objects.create(**key, count=1)
        except IntegrityError:
            # Another process inserted this minute's row first.
            _increment(key)
    if RefusalCount.objects.get(**key).count <= RECORDED_PER_MINUTE:
        return True
    _increment(key, by=count - 1)
    return False


def summarise_refusals(*, before: datetime) -> Iterator[Flood]:
    """Delete the counters of minutes that began before this; yield those that suppressed anything.

    Needs a transaction that also records what is yielded.
    """
    for row in RefusalCount.objects.filter(minute__lt=before):
        # Compare and delete: only one of two processes deletes the row, and a late count keeps it.
        deleted, _ = RefusalCount.objects.filter(pk=row.pk, count=row.count).delete()
        if deleted and row.count > RECORDED_PER_MINUTE:
            yield Flood(
                row.route, row.error, timestamp(row.minute), row.count - RECORDED_PER_MINUTE
            )


def _increment(key: dict[str, object], by: int = 1) -> int:
    return RefusalCount.objects.filter(**key).update(count=F("count") + by)
