"""A human's agents: what each may do, what it used, and the acts that stop it."""

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.errors import NotFoundError
from approvals.quotation_marks import quoted
from approvals.services.lookalike_warnings import name_warnings
from approvals.services.passkey_signature_flow import receipt_of
from approvals.views.event_sentences import describe_events
from approvals.views.grants_in_words import describe_grant, describe_permissions
from approvals.views.paging import page_of
from approvals.views.request_helpers import human_of, require_sign_in
from approvals.views.usage_in_words import load_usage
from audit.models import Event
from registry.authentication import actor_of
from registry.models import Agent, Grant, Human
from registry.services import agents
from registry.services.agent_owners import own_agent_ids
from registry.services.catalogues import published_catalogues, words_of

_EVENTS = 20
# Names on the page that asks before all agents are suspended, and under "I'm here".
_NAMED = 20


@require_safe
@require_sign_in
def index(request: HttpRequest) -> HttpResponse:
    now = timezone.now()
    own = own_agent_ids(human_of(request))
    mine, paging = page_of(Agent.objects.filter(pk__in=own), request)
    live: dict[Any, list[str]] = {}
    for grant in Grant.objects.live(now).filter(agent__in=mine).select_related("service_provider"):
        live.setdefault(grant.agent_id, []).append(grant.service_provider.name)
    rows = [
        {
            "agent": agent,
            "status": agent.status_at(now),
            "at": [quoted(name) for name in sorted(set(live.get(agent.pk, [])))],
        }
        for agent in mine
    ]
    context = {"rows": rows, "dependent": _dependent(own, now), "named": _NAMED}
    return render(request, "agents.html", context | paging)


def _dependent(own: Collection[uuid.UUID], now: datetime) -> list[str]:
    """Names of agents with a grant in force that needs the person's presence; one may follow."""
    needing = Grant.objects.live(now).filter(agent__in=own, envelope__requires_human_online=True)
    chosen = Agent.objects.filter(pk__in=needing.values("agent_id"))
    names = chosen.order_by("name", "pk").values_list("name", flat=True)
    return [quoted(name) for name in names[: _NAMED + 1]]


@require_safe
@require_sign_in
def suspend_all_page(request: HttpRequest) -> HttpResponse:
    """Ask once before all of the person's agents are suspended."""
    chosen = agents.suspendable_agents(human_of(request))
    context = {
        "count": chosen.count(),
        "names": list(chosen.order_by("-pk").values_list("name", flat=True)[:_NAMED]),
    }
    return render(request, "suspend_all.html", context)


@require_POST
@require_sign_in
def suspend_all(request: HttpRequest) -> HttpResponse:
    human, actor = human_of(request), actor_of(request)
    count = agents.suspend_all_agents(human=human, actor=actor, now=timezone.now())
    said = ngettext(
        "%(count)d agent suspended. To bring it back, open it and resume it with your passkey.",
        "%(count)d agents suspended. To bring one back, open it and resume it with your passkey.",
        count,
    )
    messages.success(request, said % {"count": count})
    return HttpResponseRedirect("/agents/")


@require_safe
@require_sign_in
def page(request: HttpRequest, agent_id: uuid.UUID) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    agent = find_own_agent(agent_id, human)
    held, used = _living_grants(agent, now), load_usage(agent)
    catalogues = published_catalogues([grant.service_provider_id for grant in held])
    context = {
        "agent": agent,
        "status": agent.status_at(now),
        "grants": [
            {
                "grant": grant,
                "lines": describe_grant(grant, words_of(catalogues.get(grant.service_provider_id))),
                "permits": describe_permissions(grant),
                "use": used.bars(grant, now),
                "before": used.of_others(
                    grant, parse_envelope(grant.envelope or {}), human.time_zone, now
                ),
            }
            for grant in held
        ],
        "waiting": agent.grants.filter(pk__in=Grant.objects.waiting(now)).select_related(
            "service_provider"
        ),
        "lines": describe_events(
            list(Event.objects.filter(agent_id=agent.pk).order_by("-id")[:_EVENTS])
        ),
        "claimed": "claimed" in request.GET,
        "resumed": receipt_of("resume", str(agent.pk)),
        "warnings": name_warnings(agent, human),
    }
    return render(request, "agent.html", context)


def _living_grants(agent: Agent, now: datetime) -> list[Grant]:
    """Grants in force now or once resumed; none if it is revoked, as its grants permit nothing."""
    if agent.status == Agent.Status.REVOKED:
        return []
    stands = [Grant.Status.APPROVED, Grant.Status.SUSPENDED]
    found = agent.grants.select_related("service_provider").filter(
        status__in=stands, valid_until__gt=now
    )
    return list(found.order_by("created_at"))


@require_POST
@require_sign_in
def suspend(request: HttpRequest, agent_id: uuid.UUID) -> HttpResponse:
    agent = find_own_agent(agent_id, human_of(request))
    agents.suspend_agent(agent=agent, actor=actor_of(request), now=timezone.now())
    messages.success(request, _("Suspended"))
    return HttpResponseRedirect(f"/agents/{agent.pk}/")


def find_own_agent(agent_id: uuid.UUID, human: Human) -> Agent:
    """The human's agent. Raises NotFoundError, the same whether unknown or another's."""
    agent = Agent.objects.filter(pk=agent_id, human=human).first()
    if agent is None or not agent.is_sealed():
        raise NotFoundError
    return agent
