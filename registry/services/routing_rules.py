"""Who may decide on a request now: rules, groups, absences and deputies, and passing on.

Pure: no database, no clock. `registry/services/decision_routing.py` reads the rows (ADR 44).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from registry.roles import PERMISSIONS, Permission, Role


class Standing(StrEnum):
    """The role in which a person decides."""

    OWNER = "owner"
    MEMBER = "member"
    DEPUTY = "deputy"
    ADMINISTRATOR = "administrator"


class Cause(StrEnum):
    """Why a request came to a group, or to the administrators."""

    RULE = "rule"
    # No member of the previous group could decide.
    EMPTY = "empty"
    # No member of the previous group answered in time.
    WAITED = "waited"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which requests a group decides. None: any service, any type, any amount."""

    id: str
    name: str
    group_id: str
    service_provider_id: str | None = None
    type: str | None = None
    # Minor units: payments of more than this. With it, requests without a payment do not match.
    above: int | None = None
    currency: str | None = None
    # False if the rule's seal is broken: its conditions cannot be trusted.
    is_sound: bool = True


@dataclass(frozen=True, slots=True)
class Group:
    id: str
    name: str
    wait: timedelta
    # The group that may also decide if this one does not answer in time, or is empty.
    next_id: str | None = None


@dataclass(frozen=True, slots=True)
class Absence:
    """From `start` until just before `end`."""

    start: datetime
    end: datetime
    deputy: str | None = None


@dataclass(frozen=True, slots=True)
class Roster:
    """All input of routing. People are ids; `rules` are in the order in which they are tried."""

    rules: Sequence[Rule] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)
    absences: Mapping[str, Sequence[Absence]] = field(default_factory=dict)
    # People who may sign in. A suspended or deleted person decides nothing and has no deputy.
    active: frozenset[str] = frozenset()
    # The role of each administrator, whatever it is.
    roles: Mapping[str, Role] = field(default_factory=dict)

    def may(self, permission: Permission) -> frozenset[str]:
        """The active people whose role includes this permission."""
        able = {human for human, role in self.roles.items() if permission in PERMISSIONS[role]}
        return self.active & able


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: where, which types, the largest payment of each currency."""

    owner: str
    service_provider_id: str
    types: frozenset[str]
    amounts: Mapping[str, int]
    at: datetime


@dataclass(frozen=True, slots=True)
class Step:
    """From `at` on, this group may decide; with None, the administrators."""

    group: Group | None
    at: datetime
    cause: Cause


@dataclass(frozen=True, slots=True)
class Decider:
    """The role in which a person decides, and in which group."""

    standing: Standing
    group: Group | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Who may decide now. Without a rule only the owner, as if there were no groups."""

    deciders: Mapping[str, Decider]
    rule: Rule | None = None
    steps: tuple[Step, ...] = ()
    # When the request is passed on if undecided; None if the administrators have it already.
    passes_on_at: datetime | None = None


_OWNER: Final = Decider(Standing.OWNER)


def route(asked: Asked, roster: Roster, now: datetime) -> Route:
    """Who may decide on this request at `now`.

    The first rule that matches names a group. Each group has a time limit; after it, or as soon as
    no member is available, the next group may decide too, and finally the administrators whose role
    lets them decide. The owner of the agent does not decide on their own request, unless they are
    the only owner of the registry left and no one else can. Never empty while an owner of the
    registry is active. Ends for any roster: each group is visited once.
    """
    rule = find_rule(asked, roster.rules)
    if rule is None:
        return Route({asked.owner: _OWNER})
    steps, passes_on_at = _steps(asked, rule, roster, now)
    deciders: dict[str, Decider] = {}
    for step in steps:
        found = (
            _administrators(asked.owner, roster, now)
            if step.group is None
            else _deciders(step.group, asked.owner, roster, now)
        )
        for human, decider in found.items():
            deciders.setdefault(human, decider)
    # Only an owner of the registry, who could also end the rule. Otherwise an attacker who removes
    # the seals of members and administrators could approve alone.
    if not deciders and asked.owner in roster.may(Permission.OWN):
        deciders = {asked.owner: _OWNER}
    return Route(deciders, rule, tuple(steps), passes_on_at)


def find_rule(asked: Asked, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that matches. A rule with a broken seal matches everything.

    Otherwise an attacker who writes a row could take a request away from its group.
    """
    for rule in rules:
        if not rule.is_sound:
            return rule
    near = [rule for rule in rules if _is_about(rule, asked)]
    known = {rule.currency for rule in near if rule.above is not None}
    return next((rule for rule in near if _is_above(rule, asked, known)), None)


def _is_about(rule: Rule, asked: Asked) -> bool:
    is_there = rule.service_provider_id in {None, asked.service_provider_id}
    return is_there and (rule.type is None or rule.type in asked.types)


def _is_above(rule: Rule, asked: Asked, known: set[str | None]) -> bool:
    """Whether a payment exceeds the rule's amount.

    A payment in a currency that no such rule names exceeds every amount: it cannot be compared, and
    an agent must not evade a rule by choosing another currency.
    """
    if rule.above is None:
        return True
    return any(
        minor > rule.above if currency == rule.currency else currency not in known
        for currency, minor in asked.amounts.items()
    )


def _steps(
    asked: Asked, rule: Rule, roster: Roster, now: datetime
) -> tuple[list[Step], datetime | None]:
    """The groups that the request has reached, and when the last one passes it on."""
    steps: list[Step] = []
    at, cause = asked.at, Cause.RULE
    group = roster.groups.get(rule.group_id) if rule.is_sound else None
    visited: set[str] = set()
    while group is not None and group.id not in visited:
        visited.add(group.id)
        steps.append(Step(group, at, cause))
        late = at + group.wait
        empty = _first_empty(group, asked.owner, roster, at, min(now, late))
        if empty is None and late > now:
            return steps, late
        at, cause = (late, Cause.WAITED) if empty is None else (empty, Cause.EMPTY)
        group = roster.groups.get(group.next_id) if group.next_id else None
    steps.append(Step(None, at, cause if steps else Cause.RULE))
    return steps, None


def _first_empty(
    group: Group, owner: str, roster: Roster, start: datetime, until: datetime
) -> datetime | None:
    """The first moment in `start` ≤ t ≤ `until` at which the group has no decider.

    Availability changes only when an absence starts or ends. A request that was passed on while the
    group was empty stays passed on when a member returns.
    """
    moments = {
        moment
        for absences in roster.absences.values()
        for absence in absences
        for moment in (absence.start, absence.end)
        if start < moment <= until
    }
    for moment in [start, *sorted(moments)]:
        if not _deciders(group, owner, roster, moment):
            return moment
    return None


def _deciders(group: Group, owner: str, roster: Roster, at: datetime) -> dict[str, Decider]:
    """The available members, and the deputies of absent ones. Never the owner."""
    members = [each for each in roster.members.get(group.id, ()) if each != owner]
    found = {
        each: Decider(Standing.MEMBER, group)
        for each in members
        if each in roster.active and not _is_away(each, roster, at)
    }
    return found | {
        deputy: Decider(Standing.DEPUTY, group)
        for each in members
        for deputy in _deputies(each, roster, at)
        if deputy != owner and deputy not in found
    }


def _deputies(member: str, roster: Roster, at: datetime) -> Iterator[str]:
    """The available deputies of an absent member; a deputy may have a deputy."""
    seen, waiting = {member}, [member]
    while waiting:
        human = waiting.pop()
        if human not in roster.active:
            continue
        current = _current(human, roster, at)
        if not current and human != member:
            yield human
        for absence in current:
            if absence.deputy is not None and absence.deputy not in seen:
                seen.add(absence.deputy)
                waiting.append(absence.deputy)


def _administrators(owner: str, roster: Roster, at: datetime) -> dict[str, Decider]:
    """The administrators who may decide and are not away; all who may decide if all are away."""
    every = roster.may(Permission.DECIDE) - {owner}
    there = {each for each in every if not _is_away(each, roster, at)}
    return dict.fromkeys(sorted(there or every), Decider(Standing.ADMINISTRATOR))


def _current(human: str, roster: Roster, at: datetime) -> list[Absence]:
    return [each for each in roster.absences.get(human, ()) if each.start <= at < each.end]


def _is_away(human: str, roster: Roster, at: datetime) -> bool:
    return bool(_current(human, roster, at))
