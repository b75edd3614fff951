"""Groups, rules and absences in words, and what would happen to a request now."""

from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from agentauth.protocol.capability import TYPES
from agentauth.protocol.money import Money
from approvals import sentences
from approvals.quotation_marks import quoted
from approvals.services.decidable_requests import route_sentences
from kms.row_seals import select_sealed
from registry.models import (
    Absence,
    ApprovalRule,
    ApproverGroup,
    GroupMember,
    Human,
    ServiceProvider,
)
from registry.services.decision_routing import read_rosters
from registry.services.routing_rules import Asked, route

_WORDS: Final = {
    "": gettext_lazy("Any request"),
    "read": gettext_lazy("Requests to read"),
    "write": gettext_lazy("Requests to create and change"),
    "delete": gettext_lazy("Requests to delete"),
    "transact": gettext_lazy("Requests to pay"),
    "custom": gettext_lazy("Requests for service-specific actions"),
}


def describe_approvers(reader: Human, now: datetime) -> dict[str, Any]:
    """Everything on the administrators' page, in a constant number of queries."""
    groups = list(ApproverGroup.objects.select_related("next").order_by("name"))
    sealed = {row.pk for row in select_sealed(ApproverGroup.giving())}
    members: dict[Any, list[dict[str, Any]]] = {}
    rows = GroupMember.objects.select_related("human").order_by("human__name", "pk")
    sound = {row.pk for row in select_sealed(GroupMember.giving())}
    for row in rows:
        members.setdefault(row.group_id, []).append({"row": row, "is_sound": row.pk in sound})
    return {
        "groups": [
            {
                "row": row,
                "key": f"group-{row.pk}",
                "members": members.get(row.pk, []),
                "is_sound": row.pk in sealed,
            }
            for row in groups
        ],
        "rules": _rules(),
        "absences": [
            {"row": row, "when": _when(row, reader), "is_now": row.starts_at <= now}
            for row in Absence.objects.filter(ends_at__gt=now)
            .select_related("human", "deputy")
            .order_by("starts_at", "pk")
        ],
        "people": list(Human.objects.filter(status=Human.Status.ACTIVE).order_by("name", "pk")),
        "services": list(
            ServiceProvider.objects.exclude(status=ServiceProvider.Status.REVOKED).order_by("name")
        ),
        "types": [(each, _WORDS[each]) for each in TYPES],
    }


def own_absences(human: Human, now: datetime) -> list[dict[str, Any]]:
    """The person's absences that have not ended."""
    rows = Absence.objects.filter(human=human, ends_at__gt=now).select_related("deputy")
    return [
        {"row": row, "when": _when(row, human), "is_now": row.starts_at <= now}
        for row in rows.order_by("starts_at", "pk")
    ]


def preview(
    *,
    service: ServiceProvider | None,
    action_type: str,
    amount: Money | None,
    reader: Human,
    now: datetime,
) -> list[str]:
    """Who would decide on such a request now, if the agent's owner is in no group."""
    rosters = read_rosters(now)
    kind = action_type or ("transact" if amount else "")
    asked = Asked(
        owner="",
        service_provider_id="" if service is None else str(service.pk),
        types=frozenset({kind} if kind in TYPES else ()),
        amounts={} if amount is None else {amount.currency: amount.minor},
        at=now,
    )
    if rosters is not None:
        found = route(asked, rosters.roster, now)
        if found.rule is not None:
            return route_sentences(found, rosters, reader.time_zone)
    return [_("No rule matches: the owner of the agent decides alone.")]


def _rules() -> list[dict[str, Any]]:
    rows = ApprovalRule.objects.select_related("group", "service_provider")
    sound = {row.pk for row in select_sealed(ApprovalRule.giving())}
    shown = [
        {"row": row, "is_sound": row.pk in sound, "sentence": _sentence(row)}
        for row in rows.order_by("position", "created_at", "pk")
        if row.ended_at is None or row.pk not in sound
    ]
    # A rule moves by one place. A row without a valid seal has none.
    for first, second in pairwise(shown):
        if first["is_sound"] and second["is_sound"]:
            second["above"], first["below"] = first["row"], second["row"]
    return shown


def _sentence(rule: ApprovalRule) -> str:
    parts = {
        "what": str(_WORDS.get(rule.action_type, "")),
        "at": quoted(rule.service_provider.name) if rule.service_provider else _("any service"),
    }
    if rule.above_minor is None:
        return _("%(what)s at %(at)s") % parts
    parts["amount"] = sentences.money(Money(rule.above_minor, rule.currency))
    return _("Payments of more than %(amount)s at %(at)s") % parts


def _when(row: Absence, reader: Human) -> str:
    parts = {
        "start": sentences.moment(row.starts_at, reader.time_zone),
        "end": sentences.moment(row.ends_at, reader.time_zone),
    }
    return _("from %(start)s until %(end)s") % parts
