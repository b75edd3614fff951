"""Deletes what has expired on the pages: challenges, sessions and unused invitations."""

from datetime import datetime

from django.contrib.sessions.models import Session

from approvals.services.challenges import forget_challenges
from approvals.services.receipt_key_backfill import fill_kids
from approvals.services.text_erasure import erase_again, forget_ended_invitations
from registry.services.database_time import not_ahead
from registry.services.expiry import forget


def expire_everything(*, now: datetime) -> dict[str, int]:
    """Delete what has expired, and erase what is left of deleted humans.

    Challenges, sessions and unused invitations expire. That is judged by the database's clock too,
    so that a host whose clock is ahead deletes nothing early. Returns how many of each; for
    `people`, how many were looked at; for `receipts`, in how many the signing key was filled in.
    """
    now = not_ahead(now)
    # Every visitor to the sign-in page gets a session.
    sessions = forget(Session.objects.filter(expire_date__lt=now))
    return {
        "challenges": forget_challenges(now=now),
        "sessions": sessions,
        "invitations": forget_ended_invitations(now=now),
        "people": erase_again(now=now),
        "receipts": fill_kids(),
    }
