"""Deletes what has expired on the pages: challenges, sessions and unused invitations."""

from datetime import datetime, timedelta
from typing import Final

from django.contrib.sessions.models import Session

from approvals.models import Notification
from approvals.notifications.channel_management import forget_removed
from approvals.notifications.channel_secrets import encrypt_again
from approvals.services.challenges import forget_challenges
from approvals.services.receipt_key_backfill import fill_kids
from approvals.services.session_management import ended_sessions
from approvals.services.text_erasure import erase_again, forget_ended_invitations
from registry.models import Absence
from registry.services.database_time import not_ahead
from registry.services.expiry import forget

# How long an administrator can see what was sent and what failed. Longer than any request waits,
# or a row would be added again, and an absence would not count for what was asked during it.
KEPT: Final = timedelta(days=7)


def expire_everything(*, now: datetime) -> dict[str, int]:
    """Delete what has expired, and erase what is left of deleted humans.

    Challenges, sessions, unused invitations, old notifications and absences expire. That is judged
    by the database's clock too, so that a host whose clock is ahead deletes nothing early. Returns
    how many of each; for `people`, how many were looked at; for `receipts`, in how many the signing
    key was filled in; for `channels`, how many removed ones were deleted; for `webhooks`, how many
    keys were encrypted again under a new SECRET_KEY.
    """
    now = not_ahead(now)
    # Every visitor to the sign-in page gets a session.
    sessions = forget(Session.objects.filter(expire_date__lt=now))
    forget(ended_sessions())
    return {
        "challenges": forget_challenges(now=now),
        "sessions": sessions,
        "invitations": forget_ended_invitations(now=now),
        "people": erase_again(now=now),
        "receipts": fill_kids(),
        "notifications": forget(Notification.objects.filter(ended_at__lt=now - KEPT)),
        "channels": forget_removed(),
        "webhooks": encrypt_again(limit=500),
        "absences": forget(Absence.objects.filter(ends_at__lt=now - KEPT)),
    }
