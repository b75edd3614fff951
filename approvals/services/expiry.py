"""What time has ended on the pages: challenges nobody can use any more, and sessions."""

from datetime import datetime

from django.contrib.sessions.models import Session

from approvals.services.challenges import forget_challenges
from approvals.services.forgetting import erase_again, forget_ended_invitations
from approvals.services.receipt_keys import fill_kids
from registry.services.database_time import not_ahead
from registry.services.expiry import forget


def expire_everything(*, now: datetime) -> dict[str, int]:
    """Delete the challenges, sessions and unused invitations that have ended, by the database's clock too; erase what is left of deleted people.

    Returns how many of each; of people, how many were looked at, and of receipts, of how many it is written down which key
    signed them.
    """
    now = not_ahead(now)
    # Anybody who opens the sign-in page has a session.
    sessions = forget(Session.objects.filter(expire_date__lt=now))
    return {
        "challenges": forget_challenges(now=now),
        "sessions": sessions,
        "invitations": forget_ended_invitations(now=now),
        "people": erase_again(now=now),
        "receipts": fill_kids(),
    }
