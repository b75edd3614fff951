"""What waits and what happened: the inbox and the activity feed."""

import uuid
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from agentauth.protocol.capability import parse_action
from agentauth.protocol.identifiers import parse_id
from approvals import sentences
from approvals.context import to_sign_again
from approvals.services.recovery import recent_recovery
from approvals.views.access import human_of, signed_in
from approvals.views.described import describe_permissions, standing
from approvals.views.happened import tell
from audit.models import Event, Head
from registry.models import Grant
from verifier.services.confirmations import pending_for

PAGE = 50


@require_safe
@signed_in
def inbox(request: HttpRequest) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    mine = Grant.objects.filter(agent__human=human).select_related("agent", "service_provider")
    waiting = list(mine.filter(pk__in=Grant.objects.waiting(now)).order_by("created_at"))
    anew = mine.filter(pk__in=to_sign_again(human, now))
    confirmations = [
        {"row": row, "act": sentences.act(parse_action(row.action), row.grant.service_provider.name)}
        for row in pending_for(human, now)
    ]
    history = mine.exclude(status=Grant.Status.PENDING).order_by("-created_at", "-id")
    after = _cursor(request)
    if after is not None:
        history = history.filter(pk__lt=after)
    page = list(history[: PAGE + 1])
    context: dict[str, Any] = {
        # A short list leaves out the harmless, never the dangerous.
        "waiting": [
            {"grant": each, "permits": describe_permissions(each, riskiest_first=True)}
            for each in [*waiting, *anew]
        ],
        "confirmations": confirmations,
        "history": [{"grant": grant, "status": standing(grant, now)} for grant in page[:PAGE]],
        "next": page[PAGE - 1].pk if len(page) > PAGE else None,
        "first_page": after is None,
        "recovery": recent_recovery(human, now=now),
    }
    return render(request, "inbox.html", context)


@require_safe
@signed_in
def activity(request: HttpRequest) -> HttpResponse:
    human = human_of(request)
    events = Event.objects.filter(human_id=human.pk).order_by("-id")
    if (after := _cursor(request)) is not None:
        events = events.filter(pk__lt=after)
    if agent := request.GET.get("agent", ""):
        events = events.filter(agent_id=_uuid(agent))
    page = list(events[: PAGE + 1])
    head = Head.objects.first()
    context = {
        "lines": tell(page[:PAGE]),
        "next": page[PAGE - 1].pk if len(page) > PAGE else None,
        "agent": agent,
        "log_size": head.size if head else 0,
    }
    return render(request, "activity.html", context)


def _cursor(request: HttpRequest) -> uuid.UUID | None:
    return _uuid(request.GET["after"]) if "after" in request.GET else None


def _uuid(text: str) -> uuid.UUID:
    try:
        return parse_id(text)
    except ValueError:
        # A cursor nobody gave: nothing lies below it.
        return uuid.UUID(int=0)
