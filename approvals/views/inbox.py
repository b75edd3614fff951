"""The inbox: what waits for a decision, and what was decided."""

import uuid
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from agentauth.protocol.capability import parse_action, parse_capabilities
from approvals import sentences
from approvals.services.pending_items import waiting_for
from approvals.services.recent_recovery import recovery_news
from approvals.views.grants_in_words import describe_permissions, grant_status
from approvals.views.paging import page_of
from approvals.views.request_helpers import human_of, require_sign_in, routed_of
from registry.models import Grant
from registry.services.agent_owners import own_agent_ids
from registry.services.catalogues import Published, published_catalogues, words_of
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import pending_for

# A longer `?skip=` counts as 0: a million items never wait.
MOST_DIGITS = 6
# Items on one page, the oldest. Each takes a millisecond to describe.
SHOWN = 25


@require_safe
@require_sign_in
def inbox(request: HttpRequest) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    own = own_agent_ids(human)
    asked, grants, counted = _page_of_waiting(request, own, now)
    services = {row.grant.service_provider_id for row in asked}
    found = published_catalogues(services | {each.service_provider_id for each in grants})
    mine = Grant.objects.filter(agent__in=own).select_related("agent", "service_provider")
    history, paging = page_of(mine.exclude(status=Grant.Status.PENDING), request)
    context: dict[str, Any] = {
        # Riskiest first: the page shortens this list and must not leave out the dangerous.
        "waiting": [
            {
                "grant": each,
                "renews": each.waits_for_renewal(now),
                "asked_at": each.asked_at(now),
                "open_until": each.open_until(now),
                "risk": _highest_risk(each, found.get(each.service_provider_id)),
                "permits": describe_permissions(
                    each, words_of(found.get(each.service_provider_id)), riskiest_first=True
                ),
            }
            for each in grants
        ],
        "confirmations": [
            {"row": row} | _describe_act(row, found.get(row.grant.service_provider_id))
            for row in asked
        ],
        "history": [{"grant": grant, "status": grant_status(grant, now)} for grant in history],
        "recovery": recovery_news(human, now=now),
    }
    return render(request, "inbox.html", context | counted | paging)


def _page_of_waiting(
    request: HttpRequest, own: Collection[uuid.UUID], now: datetime
) -> tuple[list[Confirmation], list[Grant], dict[str, int]]:
    """The items from `?skip=` on, and template context: how many there are, and where this page is.

    Payments come first: those of the person's agents, then those that rules sent. Then requests,
    grants to sign again, grants to renew, and the grants that rules sent. In each of these, the
    oldest is first; then what one agent asks for stands together, where its first item stood.
    `own` are the ids of the person's agents.
    """
    routed = routed_of(request)
    mine = Grant.objects.filter(agent__in=own)
    payments = _by_agent(
        *_ids(pending_for(own, now), "grant__agent"),
        *((each.pk, each.grant.agent_id) for each in routed.confirmations),
    )
    requests = _by_agent(
        *_ids(mine.waiting(now), "agent"),
        *_ids(mine.to_sign_again(now), "agent"),
        *_ids(mine.to_renew(now), "agent"),
        *((each.pk, each.agent_id) for each in routed.grants),
    )
    total = len(payments) + len(requests)
    skip = _skipped(request.GET.get("skip", ""), total)
    shown = [*payments, *requests][skip : skip + SHOWN]
    rows = Confirmation.objects.select_related("grant__agent__human", "grant__service_provider")
    of_payments = max(len(payments) - skip, 0)
    asked = rows.in_bulk(shown[:of_payments])
    related = ("agent__human", "service_provider", "renewal")
    grants = Grant.objects.select_related(*related).in_bulk(shown[of_payments:])
    last = skip + len(shown)
    return (
        [asked[each] for each in shown if each in asked],
        [grants[each] for each in shown if each in grants],
        {
            "waiting_count": total,
            "first": skip + 1,
            "last": last,
            "earlier": max(skip - SHOWN, 0),
            "later": last if last < total else 0,
        },
    )


def _ids(rows: QuerySet[Any], agent: str) -> Iterable[tuple[uuid.UUID, uuid.UUID]]:
    """The ids of the items and of their agents, oldest first."""
    return rows.order_by("created_at", "pk").values_list("pk", agent)


def _by_agent(*items: tuple[uuid.UUID, uuid.UUID]) -> list[uuid.UUID]:
    """The ids of the items, with those of one agent together; agents in order of appearance."""
    places: dict[uuid.UUID, int] = {}
    for _item, agent in items:
        places.setdefault(agent, len(places))
    return [item for item, _agent in sorted(items, key=lambda each: places[each[1]])]


def _skipped(text: str, total: int) -> int:
    """How many items `?skip=` leaves out; 0 if it is not a number below `total`."""
    skip = int(text) if text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS else 0
    return skip if skip < total else 0


@require_safe
@require_sign_in
def waiting(request: HttpRequest) -> HttpResponse:
    """How much waits, for the badge of every page (docs/adr/0042)."""
    found = waiting_for(human_of(request), timezone.now(), routed_of(request))
    return JsonResponse({"waiting": found.shown if found.count else "", "state": found.state})


def _highest_risk(grant: Grant, published: Published | None) -> str:
    words = words_of(published)
    asked = parse_capabilities(grant.capabilities or grant.requested_capabilities)
    return min(
        (sentences.risk(each, words) for each in asked), key=sentences.RISKS.index, default="low"
    )


def _describe_act(row: Confirmation, published: Published | None) -> dict[str, str]:
    """The payment in our words, and in the service's if it has any."""
    action, words = parse_action(row.action), words_of(published)
    return {
        "act": sentences.act(action, row.grant.service_provider.name, words),
        "said": sentences.act_said(words, action),
    }
