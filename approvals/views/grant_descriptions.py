"""Grants in words and fields, as the pages show them."""

from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from agentauth.protocol.behavioural_envelope import Envelope, parse_envelope
from agentauth.protocol.capability import parse_capabilities
from approvals import sentences
from approvals.services.offered_capabilities import offer
from approvals.services.term_choices import currency_of, offered_terms, whole_days
from registry.models import Agent, Grant, Human

_ELSEWHERE = 20
_RISKS = ("high", "medium", "low")
_KINDS = {
    "read": gettext_lazy("Read “%(resource)s”"),
    "write": gettext_lazy("Create and change “%(resource)s”"),
    "delete": gettext_lazy("Delete “%(resource)s”"),
    "transact": gettext_lazy("Pay through “%(resource)s”"),
    "custom": gettext_lazy("Use “%(namespace)s.%(name)s” on “%(resource)s”"),
}


def sentence(phrase: str) -> str:
    """A verb phrase as a line of its own."""
    return phrase[:1].upper() + phrase[1:]


def describe_kinds(agent: Agent) -> list[str]:
    """What the agent's manifest declares, without limits: a sentence per kind, riskiest first."""
    declared = {each.label: each for each in parse_capabilities(agent.capabilities)}
    ordered = sorted(
        declared.items(), key=lambda item: (_RISKS.index(sentences.risk(item[1])), item[0])
    )
    return [
        _KINDS[each.type]
        % {"resource": each.resource, "namespace": each.namespace, "name": each.name}
        for _label, each in ordered
    ]


def describe_rows(grant: Grant, now: datetime) -> list[dict[str, Any]]:
    """One permission each: its sentence, its risk, and what can be lowered."""
    rows = []
    for index, each in enumerate(offered_terms(grant, now).capabilities):
        amount = each.max_amount
        rows.append(
            {
                "index": index,
                "sentence": sentence(sentences.permission(each, grant.service_provider.name)),
                "risk": sentences.risk(each),
                "amount": amount.value if amount else None,
                "currency": amount.currency if amount else None,
                "dangerous": each.type in sentences.DANGEROUS,
            }
        )
    return rows


def describe_lost(grant: Grant) -> list[dict[str, str]]:
    """What can no longer be given as requested or granted, and who took it away."""
    return [
        {
            "sentence": sentence(
                sentences.permission(each.capability, grant.service_provider.name)
            ),
            "why": _("The agent no longer declares it.")
            if each.by_manifest
            else _("The service no longer allows it."),
        }
        for each in offer(grant).lost
    ]


def describe_limits(grant: Grant, human: Human, now: datetime) -> dict[str, Any]:
    """The limits as sentences, and as the fields in which they can be lowered."""
    asked = offered_terms(grant, now)
    envelope, currency = asked.envelope, currency_of(asked)
    return {
        "rate": envelope.max_requests_per_minute,
        "uses": envelope.max_uses,
        "budgets": _budget_fields(envelope),
        "currency": currency,
        "may_add_daily": currency
        and not any(budget.period == "day" for budget in envelope.budgets),
        "zone": human.time_zone,
        "confirm": envelope.confirm_above.value if envelope.confirm_above else None,
        "days": whole_days(asked.valid_until, now),
    }


def _budget_fields(envelope: Envelope) -> list[dict[str, Any]]:
    labels = {
        "day": _("Daily budget"),
        "week": _("Weekly budget"),
        "month": _("Monthly budget"),
        "total": _("Total budget"),
    }
    return [
        {
            "index": index,
            "label": labels[budget.period],
            "value": budget.ceiling.value,
            "currency": budget.ceiling.currency,
            "zone": budget.zone,
        }
        for index, budget in enumerate(envelope.budgets)
    ]


def elsewhere(grant: Grant, now: datetime) -> list[str]:
    """What this agent may do already, so that the human sees the whole of it."""
    others = Grant.objects.live(now).filter(agent=grant.agent_id).exclude(pk=grant.pk)
    return [
        sentence(sentences.permission(each, other.service_provider.name))
        for other in others.select_related("service_provider").order_by("created_at")[:_ELSEWHERE]
        for each in parse_capabilities(other.capabilities)
    ]


def describe_permissions(grant: Grant, *, riskiest_first: bool = False) -> list[str]:
    """What a grant permits, as granted or else as asked: one sentence for each permission."""
    capabilities = parse_capabilities(grant.capabilities or grant.requested_capabilities)
    if riskiest_first:
        capabilities = tuple(
            sorted(capabilities, key=lambda each: _RISKS.index(sentences.risk(each)))
        )
    phrases = [sentences.permission(each, grant.service_provider.name) for each in capabilities]
    return [f"{sentence(phrase)}." for phrase in phrases]


def describe_grant(grant: Grant) -> list[str]:
    """A grant as plain sentences: permissions and limits, as granted or else as asked."""
    envelope = parse_envelope(
        grant.requested_envelope if grant.envelope is None else grant.envelope
    )
    capabilities = parse_capabilities(grant.capabilities or grant.requested_capabilities)
    return (
        describe_permissions(grant)
        + sentences.limits(envelope)
        + sentences.unasked_total(capabilities, envelope)
    )


def grant_status(grant: Grant, now: datetime) -> str:
    """The grant's status as people should read it: a revoked agent's grant permits nothing."""
    status = grant.status_at(now)
    held = status in {Grant.Status.APPROVED, Grant.Status.SUSPENDED}
    return Grant.Status.REVOKED if held and grant.agent.status == Agent.Status.REVOKED else status
