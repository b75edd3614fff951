"""Counting anonymous refusals in the database, so that a flood cannot fill the log: across processes, per minute."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError, transaction
from django.db.models import F

from agentauth.protocol.encoding import timestamp
from audit.models import RefusalCount

# Refusals of anonymous callers that are recorded one by one, per route, error and clock minute.
RECORDED_PER_MINUTE = 10
# Keys with their own pace in a process, before those that may be written again are forgotten.
_MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Flood:
    """What one minute suppressed: `minute` is its start (RFC 3339), `count` the refusals without their own event."""

    route: str
    error: str
    minute: str
    count: int


class Batches:
    """Refusals of one process put together per key, so that a flood does not write to the database each time."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[str, int] = {}
        self._next_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, key: str, *, now: float) -> int:
        """How many refusals to write now: this one and what waited, or 0 for none yet. `now` is monotonic seconds.

        What waits when a flood ends is written with the next refusal of the key; where there are very many keys, and none
        comes for a while, it is in the metrics alone.
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
        """Whether `add` would have this refusal wait; then it is counted. Where it is to be written, nothing is counted."""
        with self._lock:
            if now >= self._next_at.get(key, now):
                return False
            self._waiting[key] = self._waiting.get(key, 0) + 1
            return True


def count_refusal(*, route: str, error: str, at: datetime, count: int = 1) -> bool:
    """Count `count` refusals, one of which would be an event; True while the minute's allowance of events lasts.

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
            # Another process opened this minute first.
            _increment(key)
    if RefusalCount.objects.get(**key).count <= RECORDED_PER_MINUTE:
        return True
    _increment(key, by=count - 1)
    return False


def summarise_refusals(*, now: datetime) -> Iterator[Flood]:
    """Take the minutes that have ended out of the counter and yield those that suppressed anything, once each.

    Needs a transaction that also records what is yielded.
    """
    for row in RefusalCount.objects.filter(minute__lt=now.replace(second=0, microsecond=0)):
        # A swap: of two processes that see the row only one deletes it, and a late count keeps it for next time.
        deleted, _ = RefusalCount.objects.filter(pk=row.pk, count=row.count).delete()
        if deleted and row.count > RECORDED_PER_MINUTE:
            yield Flood(row.route, row.error, timestamp(row.minute), row.count - RECORDED_PER_MINUTE)


def _increment(key: dict[str, object], by: int = 1) -> int:
    return RefusalCount.objects.filter(**key).update(count=F("count") + by)
