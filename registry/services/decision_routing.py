"""Who may decide on a grant or a transaction: reads the rows for `routing_rules` (ADR 44)."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from django.db.models import Q, QuerySet

from agentauth.protocol.errors import GrantChangedError, NotFoundError
from agentauth.protocol.money import Money
from kms.row_seals import select_sealed
from registry.models import Absence, ApprovalRule, ApproverGroup, Grant, GroupMember, Human
from registry.roles import Permission, Role
from registry.services import routing_rules
from registry.services.routing_rules import (
    Asked,
    Decider,
    Group,
    Roster,
    Route,
    Rule,
    route,
)

# A request expires after an hour; absences that ended before it was made do not matter.
_REQUEST_LIFE: Final = timedelta(hours=1)
NOT_YOURS: Final = "This is not yours to decide now. It still waits for the people who may decide."
_BROKEN: Final = "A rule that the registry did not write"
# For a request of an agent whose owner has no seal. In lists only the seal is compared, without a
# query for each agent: their queries leave out seals that have ended.
_NO_ONE: Final = Route({})


@dataclass(frozen=True, slots=True)
class Rosters:
    """The roster as read at one moment, with the names of the people in it."""

    roster: Roster
    names: Mapping[str, str]

    @property
    def people(self) -> frozenset[str]:
        """All people who may come to decide on another person's request."""
        members = {each for group in self.roster.members.values() for each in group}
        deputies = {
            absence.deputy
            for absences in self.roster.absences.values()
            for absence in absences
            if absence.deputy is not None
        }
        return frozenset(members | deputies | self.roster.may(Permission.DECIDE))


def read_rosters(now: datetime) -> Rosters | None:
    """The rules and their groups, people and absences; None without a rule. At most seven queries.

    Rows without a valid seal are ignored, except that a rule without one sends every request to the
    administrators.
    """
    rules = _rules()
    if not rules:
        return None
    groups = {str(row.pk): _group(row) for row in select_sealed(ApproverGroup.giving())}
    members: dict[str, list[str]] = {}
    for member in select_sealed(GroupMember.giving().order_by("created_at", "pk")):
        members.setdefault(str(member.group_id), []).append(str(member.human_id))
    absences: dict[str, list[routing_rules.Absence]] = {}
    since = Absence.giving().filter(ends_at__gt=now - _REQUEST_LIFE)
    for row in select_sealed(since.order_by("starts_at", "pk")):
        deputy = None if row.deputy_id is None else str(row.deputy_id)
        away = routing_rules.Absence(row.starts_at, row.ends_at, deputy)
        absences.setdefault(str(row.human_id), []).append(away)
    named = {each for group in members.values() for each in group} | set(absences)
    named |= {each.deputy for rows in absences.values() for each in rows if each.deputy}
    people = {str(row.pk): row for row in _people(named)}
    roles = _roles()
    roster = Roster(
        rules=rules,
        groups=groups,
        members=members,
        absences=absences,
        active=frozenset(people),
        roles=roles,
    )
    return Rosters(roster, {pk: human.name for pk, human in people.items()})


def route_grant(grant: Grant, now: datetime, rosters: Rosters | None) -> Route:
    """Who may decide on this request, or sign this grant again.

    A grant to sign again has no time limit, so all of its groups may decide at once.
    """
    if not grant.agent.fits():
        return _NO_ONE
    owner = str(grant.agent.human_id)
    if rosters is None:
        return route(Asked(owner, "", frozenset(), {}, now), Roster(), now)
    at = grant.asked_at(now)
    if grant.status == Grant.Status.SUSPENDED:
        at = now - sum((each.wait for each in rosters.roster.groups.values()), timedelta())
    types, amounts = facts_of(grant.capabilities or grant.requested_capabilities)
    asked = Asked(owner, str(grant.service_provider_id), types, amounts, at)
    return route(asked, _with_owner(rosters.roster, grant.agent.human), now)


def route_action(
    grant: Grant, action: Mapping[str, Any], at: datetime, now: datetime, rosters: Rosters | None
) -> Route:
    """Who may confirm one transaction of this grant that waits since `at`."""
    if not grant.agent.fits():
        return _NO_ONE
    owner = str(grant.agent.human_id)
    if rosters is None:
        return route(Asked(owner, "", frozenset(), {}, at), Roster(), now)
    types, amounts = facts_of([{**action, "max_amount": action.get("amount")}])
    asked = Asked(owner, str(grant.service_provider_id), types, amounts, at)
    return route(asked, _with_owner(rosters.roster, grant.agent.human), now)


def route_now(grant: Grant, now: datetime) -> Route:
    """As `route_grant`, with the rows as they are now."""
    if not grant.agent.is_sealed():
        return _NO_ONE
    return route_grant(grant, now, read_rosters(now))


def facts_of(capabilities: Collection[Any]) -> tuple[frozenset[str], dict[str, int]]:
    """The types, and the largest payment of each currency in minor units."""
    amounts: dict[str, int] = {}
    for each in capabilities:
        if money := each.get("max_amount"):
            minor = Money.parse(money, allow_zero=True).minor
            currency = str(money["currency"])
            amounts[currency] = max(minor, amounts.get(currency, 0))
    return frozenset(str(each["type"]) for each in capabilities), amounts


class Routing(NamedTuple):
    """For whom and by which rule `human_id` decides: `member` is the statement's `routing`."""

    human_id: str
    member: Mapping[str, Any]


def routing_of(route: Route, human: Human, owner: Human | None) -> Routing | None:
    """The routing of a decision by `human`.

    None if no rule sent the request to a group, or if this human may not decide.
    """
    decider = route.deciders.get(str(human.pk))
    if route.rule is None or owner is None or decider is None:
        return None
    group = decider.group
    member = {
        "rule": {"id": route.rule.id, "name": route.rule.name},
        "group": None if group is None else {"id": group.id, "name": group.name},
        "for": {"id": str(owner.pk), "name": owner.name},
        "as": str(decider.standing),
        "passed_on": group is not None and group.id != route.rule.group_id,
    }
    return Routing(str(human.pk), member)


def refuse_decider(route: Route, human: Human) -> None:
    """Raises GrantChangedError if a rule lets others decide, NotFoundError if it is another's."""
    if str(human.pk) in route.deciders and human.is_active:
        return
    if route.rule is None:
        raise NotFoundError
    raise GrantChangedError(NOT_YOURS)


def routing_ids(route: Route, human: Human) -> dict[str, Any]:
    """The routing for the event of a decision: only ids, because names must be erasable."""
    decider = route.deciders.get(str(human.pk))
    if route.rule is None or decider is None:
        return {}
    group = None if decider.group is None else decider.group.id
    return {"routing": {"rule": route.rule.id, "group": group, "as": str(decider.standing)}}


def decider_of(route: Route, human: Human) -> Decider | None:
    """The role in which this person may decide; None if they may not."""
    return route.deciders.get(str(human.pk))


def _rules() -> list[Rule]:
    """The rules in force, by position. A row without a valid seal counts as one, and comes first.

    So does an ended rule that was set back to active: the row does not show which case it is.
    """
    rows = list(ApprovalRule.objects.order_by("position", "created_at", "pk"))
    sound = {row.pk for row in select_sealed(ApprovalRule.giving())} if rows else set()
    return [
        _rule(row, is_sound=row.pk in sound)
        for row in rows
        if row.pk not in sound or row.ended_at is None
    ]


def _rule(row: ApprovalRule, *, is_sound: bool) -> Rule:
    if not is_sound:
        return Rule(str(row.pk), _BROKEN, "", is_sound=False)
    return Rule(
        id=str(row.pk),
        name=row.name,
        group_id=str(row.group_id),
        service_provider_id=None
        if row.service_provider_id is None
        else str(row.service_provider_id),
        type=row.action_type or None,
        above=row.above_minor,
        currency=row.currency or None,
    )


def _group(row: ApproverGroup) -> Group:
    next_id = None if row.next_id is None else str(row.next_id)
    return Group(str(row.pk), row.name, timedelta(minutes=row.wait_minutes), next_id)


def _people(ids: Collection[str]) -> QuerySet[Human]:
    """The active people among these, and all active administrators."""
    wanted = Q(pk__in=[uuid.UUID(each) for each in ids])
    administrators = Q(is_staff=True) | Q(admin_role__isnull=False)
    return Human.objects.filter(wanted | administrators, status=Human.Status.ACTIVE)


def _roles() -> dict[str, Role]:
    """The roles of the active administrators; of a row without a valid seal, none."""
    rows = select_sealed(Human.giving().filter(status=Human.Status.ACTIVE))
    return {str(row.pk): row.named_role for row in rows if row.named_role is not None}


def _with_owner(roster: Roster, owner: Human | None) -> Roster:
    if owner is None or not owner.is_active:
        return roster
    return replace(roster, active=roster.active | {str(owner.pk)})
