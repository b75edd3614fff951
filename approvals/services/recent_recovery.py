"""For 14 days after a recovery: a notice on the human's pages and a sentence in what they sign."""

from datetime import datetime, timedelta

from django.db.models import Q

from approvals import sentences
from approvals.models import Recovery
from registry.models import Human

# Long enough that a person who signs in once a week sees the notice.
RECENT = timedelta(days=14)


def recovery_news(human: Human, *, now: datetime) -> Recovery | None:
    """The recovery to show this human: used, cancelled or expired in the last 14 days, or open."""
    ended = Q(cancelled_at__gt=now - RECENT) | Q(cancelled_at=None, expires_at__gt=now - RECENT)
    unused = Recovery.objects.filter(ended, human=human, used_at=None).order_by("-begun_at")
    return recent_recovery(human, now=now) or unused.first()


def recent_recovery(human: Human, *, now: datetime) -> Recovery | None:
    """The recovery that replaced this human's passkeys within the last 14 days."""
    used = Recovery.objects.filter(human=human, used_at__gt=now - RECENT)
    return used.order_by("-used_at").first()


def recovery_marks(human: Human, *, now: datetime) -> list[str]:
    """The sentence about a recent recovery for a text to sign; an empty list if there was none.

    It is about the account, not one passkey: a recovery removes all passkeys, so each later one was
    added with the new one.
    """
    row = recent_recovery(human, now=now)
    return [recovery_mark(row, zone=human.time_zone)] if row else []


def recovery_mark(row: Recovery, *, zone: str) -> str:
    """The sentence about a used recovery."""
    assert row.used_at is not None
    return sentences.recovery_sentence(row.used_at, zone)
