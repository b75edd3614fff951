"""An owner asks to have a grant renewed: as a request of its own, with its own messages."""

from datetime import datetime

from django.db import transaction

from approvals.models import Notification
from approvals.notifications.outbox import forget_sent
from audit.services import Actor
from registry.models import Grant
from registry.services import grant_renewal


def request_renewal(*, grant: Grant, actor: Actor, now: datetime) -> None:
    """Ask that the grant end later. Does nothing if a renewal is already waiting.

    Raises InvalidStateError.
    """
    what = Notification.What
    with transaction.atomic():
        if grant_renewal.request_renewal(grant=grant, actor=actor, now=now):
            forget_sent(grant.pk, what.REQUEST, what.REQUEST_ENDS, what.DECIDED)
