"""Counting anonymous refusals in the database, so that a flood cannot fill the log: across processes, per minute."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError, transaction
from django.db.models import F

from agentauth.protocol.encoding import timestamp
from audit.models import RefusalCount

# Refusals of anonymous callers that are recorded one by one, per route, error and clock minute.
RECORDED_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class Flood:
    """What one minute suppressed: `minute` is its start (RFC 3339), `count` the refusals without their own event."""

    route: str
    error: str
    minute: str
    count: int


def count_refusal(*, route: str, error: str, at: datetime) -> bool:
    """Count one refusal; True while the minute's allowance lasts. Needs a transaction."""
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
    return RefusalCount.objects.get(**key).count <= RECORDED_PER_MINUTE


def summarise_refusals(*, now: datetime) -> Iterator[Flood]:
    """Take the minutes that have ended out of the counter and yield those that suppressed anything, once each.

    Needs a transaction that also records what is yielded.
    """
    for row in RefusalCount.objects.filter(minute__lt=now.replace(second=0, microsecond=0)):
        # A swap: of two processes that see the row only one deletes it, and a late count keeps it for next time.
        deleted, _ = RefusalCount.objects.filter(pk=row.pk, count=row.count).delete()
        if deleted and row.count > RECORDED_PER_MINUTE:
            yield Flood(row.route, row.error, timestamp(row.minute), row.count - RECORDED_PER_MINUTE)


def _increment(key: dict[str, object]) -> int:
    return RefusalCount.objects.filter(**key).update(count=F("count") + 1)
