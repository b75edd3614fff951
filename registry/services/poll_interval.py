"""How often a pending grant may be polled (RFC 8628 section 3.5)."""

from datetime import datetime, timedelta

from agentauth.protocol.errors import SlowDownError
from registry.models import Grant

SLOWER_BY_SECONDS = 5
MAX_INTERVAL_SECONDS = 60


def note_poll(*, grant: Grant, now: datetime) -> None:
    """Record a poll at `now`; one too soon after the last makes the interval longer.

    Raises SlowDownError with the interval to keep from now on. No event: the grant does not change.
    """
    interval = grant.poll_interval
    too_soon = grant.polled_at is not None and now - grant.polled_at < timedelta(seconds=interval)
    if too_soon:
        interval = min(interval + SLOWER_BY_SECONDS, MAX_INTERVAL_SECONDS)
    Grant.objects.filter(pk=grant.pk).update(polled_at=now, poll_interval=interval)
    grant.polled_at, grant.poll_interval = now, interval
    if too_soon:
        raise SlowDownError(
            f"Ask at most every {interval} seconds.", interval=interval, retry_after=interval
        )
