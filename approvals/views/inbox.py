"""The inbox: what waits for a decision, and what was decided."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from agentauth.protocol.capability import parse_action
from approvals import sentences
from approvals.services.recent_recovery import recovery_news
from approvals.services.waiting import waiting_for
from approvals.views.grant_descriptions import describe_permissions, grant_status
from approvals.views.page_requests import human_of, require_sign_in
from approvals.views.paging import page_of
from approvals.views.routed import routed_of
from registry.models import Grant
from registry.services.agent_owners import own_agent_ids
from registry.services.catalogues import Published, published_catalogues, words_of
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import pending_for

# Requests of others on one page, the oldest. Each takes a millisecond to describe.
SHOWN = 50


@require_safe
@require_sign_in
def inbox(request: HttpRequest) -> HttpResponse:
    human, now, routed = human_of(request), timezone.now(), routed_of(request)
    own = own_agent_ids(human)
    mine = Grant.objects.filter(agent__in=own).select_related("agent", "service_provider")
    waiting = list(mine.filter(pk__in=Grant.objects.waiting(now)).order_by("created_at"))
    anew = list(mine.filter(pk__in=Grant.objects.to_sign_again(now)))
    anew += mine.filter(pk__in=Grant.objects.to_renew(now)).select_related("renewal")
    grants = [*waiting, *anew, *routed.grants[:SHOWN]]
    asked = [*pending_for(own, now), *routed.confirmations[:SHOWN]]
    services = {row.grant.service_provider_id for row in asked}
    found = published_catalogues(services | {each.service_provider_id for each in grants})
    history, paging = page_of(mine.exclude(status=Grant.Status.PENDING), request)
    context: dict[str, Any] = {
        # Riskiest first: the page shortens this list and must not leave out the dangerous.
        "waiting": [
            {
                "grant": each,
                "renews": each.waits_for_renewal(now),
                "asked_at": each.asked_at(now),
                "open_until": each.open_until(now),
                "permits": describe_permissions(
                    each, words_of(found.get(each.service_provider_id)), riskiest_first=True
                ),
            }
            for each in grants
        ],
        "more": max(len(routed.grants) - SHOWN, 0) + max(len(routed.confirmations) - SHOWN, 0),
        "confirmations": [
            {"row": row} | _describe_act(row, found.get(row.grant.service_provider_id))
            for row in asked
        ],
        "waiting_count": len(waiting)
        + len(anew)
        + len(asked)
        + len(routed.grants)
        + max(len(routed.confirmations) - SHOWN, 0),
        "history": [{"grant": grant, "status": grant_status(grant, now)} for grant in history],
        "recovery": recovery_news(human, now=now),
    } | paging
    return render(request, "inbox.html", context)


@require_safe
@require_sign_in
def waiting(request: HttpRequest) -> HttpResponse:
    """How much waits, for the badge of every page (docs/adr/0042)."""
    found = waiting_for(human_of(request), timezone.now(), routed_of(request))
    return JsonResponse({"waiting": found.shown if found.count else "", "state": found.state})


def _describe_act(row: Confirmation, published: Published | None) -> dict[str, str]:
    """The payment in our words, and in the service's if it has any."""
    action, words = parse_action(row.action), words_of(published)
    return {
        "act": sentences.act(action, row.grant.service_provider.name, words),
        "said": sentences.act_said(words, action),
    }
