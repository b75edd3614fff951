"""The activity: what a person and their agents did, filtered, and each event with its proof."""

import uuid
from collections.abc import Collection
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from agentauth.protocol.errors import NotFoundError
from approvals.templatetags.display_filters import exact
from approvals.views import paging
from approvals.views.activity_export import MOST
from approvals.views.activity_search import NO_ONE, choices, read_search
from approvals.views.decision_event_sentences import ACTS, DETAILS, argument_lines, opened_details
from approvals.views.event_sentences import describe_events
from approvals.views.log_status import describe_log
from approvals.views.request_helpers import human_of, require_sign_in
from audit import kinds
from audit.log.event_encoding import event_with_openings
from audit.models import Event, Leaf
from audit.verify.log_status import event_positions, read_log_status
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agent_owners import own_agent_ids
from verifier.models import Confirmation


@require_safe
@require_sign_in
def index(request: HttpRequest) -> HttpResponse:
    human = human_of(request)
    search = read_search(request.GET, human)
    after = request.GET.get("after")
    at = None if after is None else paging.id_or_none_of_ours(after)
    found = None if search.errors else search.page(at, paging.PAGE)
    events = found.events if found else []
    # Before the events are looked up, so that they are compared with the log as it is now.
    log_status = read_log_status(now=timezone.now())
    positions = event_positions(events, log_status.checkpoint)
    context = {
        "lines": [
            line | {"position": positions[line["event"].pk]} for line in describe_events(events)
        ],
        "log": describe_log(log_status, positions),
        "search": search,
        "choices": choices(human, search.given["agent"]),
        "next": found.next if found else None,
        "reached": found.reached if found else None,
        "first_page": after is None,
        "most": MOST,
    }
    return render(request, "activity.html", context)


@require_safe
@require_sign_in
def page(request: HttpRequest, event_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    event = _find_own_event(event_id, human)
    log_status = read_log_status(now=timezone.now())
    positions = event_positions([event], log_status.checkpoint)
    [line] = describe_events([event])
    details = opened_details(event) if event.kind in ACTS else {}
    own = own_agent_ids(human)
    context = {
        "line": line,
        "event": event,
        "position": positions[event.pk],
        "log": describe_log(log_status, positions),
        "agent": Agent.objects.filter(pk__in=own, pk=event.agent_id or NO_ONE).first(),
        "provider": ServiceProvider.objects.filter(pk=event.service_provider_id or NO_ONE).first(),
        "grant": Grant.objects.filter(pk=event.grant_id or NO_ONE, agent__in=own).first(),
        "confirmation": _confirmation(event, own),
        "details": details,
        "is_act": event.kind in ACTS,
        "is_allowed": event.kind == kinds.DECISION_ALLOWED,
        "missing_texts": _missing_texts(event, details),
        "arguments": argument_lines(details),
        "identifiers": _identifiers(event, details),
    }
    return render(request, "event.html", context)


@require_safe
@require_sign_in
def event_file(request: HttpRequest, event_id: uuid.UUID) -> HttpResponse:
    """The event with its salt and openings, as the proof's verifier reads it."""
    event = _find_own_event(event_id, human_of(request))
    number = Leaf.objects.filter(event_id=event.pk).values_list("leaf_index", flat=True).first()
    name = event.pk if number is None else number
    return JsonResponse(
        event_with_openings(event, number),
        headers={
            "Content-Disposition": f"attachment; filename=event-{name}.json",
            "Cache-Control": "no-store",
        },
    )


def _find_own_event(event_id: uuid.UUID, human: Human) -> Event:
    """An event of the person, or of their agent before they claimed it.

    Raises NotFoundError, the same whether unknown or another's.
    """
    event = Event.objects.filter(pk=event_id).first()
    if event is None:
        raise NotFoundError
    if event.human_id is None and event.agent_id is not None:
        is_own = event.agent_id in own_agent_ids(human)
    else:
        is_own = event.human_id == human.pk
    if not is_own:
        raise NotFoundError
    return event


def _confirmation(event: Event, own: Collection[uuid.UUID]) -> Confirmation | None:
    wanted = paging.id_or_none_of_ours(str(event.data.get("confirmation_id", "")))
    return Confirmation.objects.filter(pk=wanted, grant__agent__in=own).first()


def _missing_texts(event: Event, details: dict[str, Any]) -> str:
    """Why the page lacks the texts of an act; empty if it has them."""
    if event.kind not in ACTS or DETAILS not in event.data or details:
        return ""
    if any(each.member == DETAILS for each in event.openings.all()):
        return _("The details were changed after they were recorded, so they are not shown.")
    erased = Event.objects.filter(kind=kinds.HUMAN_ERASED, human_id=event.human_id or NO_ONE)
    at = erased.order_by("pk").values_list("at", flat=True).first()
    if at is None:
        return _("The details are no longer stored.")
    return _("The details were erased on %(at)s.") % {"at": exact(at)}


def _identifiers(event: Event, details: dict[str, Any]) -> list[tuple[str, str]]:
    """Names as in the API, and values, for readers who want them exactly."""
    action = event.data.get("action") if isinstance(event.data, dict) else None
    found: dict[str, Any] = {
        "id": event.pk,
        "kind": event.kind,
        "agent_id": event.agent_id,
        "service_provider_id": event.service_provider_id,
        "grant_id": event.grant_id,
        "token_jti": event.token_jti,
        "confirmation_id": event.data.get("confirmation_id"),
        "action.type": action.get("type") if isinstance(action, dict) else None,
        "error": event.data.get("error"),
        "reason": event.reason,
        "request_id": event.request_id,
        **{name: value for name, value in details.items() if name != "arguments"},
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]
