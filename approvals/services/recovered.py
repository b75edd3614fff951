"""What a recovery leaves behind: for 14 days a notice on the person's pages, and a mark on what they sign."""

from datetime import datetime, timedelta

from django.db.models import Q

from approvals import sentences
from approvals.models import Recovery
from registry.models import Human

# Long enough that a person who signs in once a week sees the notice.
RECENT = timedelta(days=14)


def recovery_news(human: Human, *, now: datetime) -> Recovery | None:
    """The recovery to tell this person of: used, cancelled or ended within the last 14 days, or under way."""
    ended = Q(cancelled_at__gt=now - RECENT) | Q(cancelled_at=None, expires_at__gt=now - RECENT)
    unused = Recovery.objects.filter(ended, human=human, used_at=None).order_by("-begun_at")
    return recent_recovery(human, now=now) or unused.first()


def recent_recovery(human: Human, *, now: datetime) -> Recovery | None:
    """The recovery that made this person's passkeys new within the last 14 days."""
    used = Recovery.objects.filter(human=human, used_at__gt=now - RECENT)
    return used.order_by("-used_at").first()


def recovery_marks(human: Human, *, now: datetime) -> list[str]:
    """What a text to sign says of the recovery: one sentence, or none if the account was not recovered recently.

    It is about the account, not one passkey: a recovery removes all passkeys, so each later one goes back to it.
    """
    row = recent_recovery(human, now=now)
    return [recovery_mark(row, zone=human.time_zone)] if row else []


def recovery_mark(row: Recovery, *, zone: str) -> str:
    """The sentence of a used recovery."""
    assert row.used_at is not None
    return sentences.recovered(row.used_at, zone)
