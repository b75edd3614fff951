"""What every page shows around its content: what waits, and whether the human is here."""

from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from registry.models import Agent, Grant, Human
from verifier.services import presence
from verifier.services.confirmations import pending_for


def navigation(request: HttpRequest) -> dict[str, Any]:
    """Members of every template: the signed-in human, how much waits for them, and their presence."""
    human = getattr(request, "user", None)
    if not isinstance(human, Human):
        return {"me": None}
    now = timezone.now()
    waiting = Grant.objects.waiting(now).filter(agent__human=human).count()
    waiting += to_sign_again(human, now).count()
    return {
        "me": human,
        "waiting_count": waiting + pending_for(human, now).count(),
        "is_here": presence.is_online(human.pk, now),
        "section": request.path.split("/")[1],
    }


def to_sign_again(human: Human, now: datetime) -> QuerySet[Grant]:
    """Suspended for a cause only a signature mends: it waits for the human as much as a new request.

    What a revoked agent holds waits for nobody, what an admin holds for the admin.
    """
    suspended = Grant.objects.filter(
        agent__human=human, status=Grant.Status.SUSPENDED, suspended_by_admin=False, valid_until__gt=now
    ).exclude(suspension_cause=Grant.SuspensionCause.PERSON)
    return suspended.exclude(agent__status=Agent.Status.REVOKED)
