"""Routing against a model that goes through time second by second."""

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from registry.roles import Role
from registry.services.decision_routing import facts_of
from registry.services.routing_rules import (
    Absence,
    Asked,
    Cause,
    Decider,
    Group,
    Roster,
    Route,
    Rule,
    Standing,
    find_rule,
    route,
)
from tests.conftest import CAMPAIGN

ROSTERS = 100_000 if CAMPAIGN else 10_000
START = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
# Minutes that the model goes through.
TICKS = 12
PEOPLE = tuple("abcdefg")
GROUPS = tuple("XYZ")
OWNER = "a"


def at(tick: int) -> datetime:
    return START + timedelta(minutes=tick)


def asked(**changes: object) -> Asked:
    values = {
        "owner": OWNER,
        "service_provider_id": "acme",
        "types": frozenset({"transact"}),
        "amounts": {"EUR": 100_00},
        "at": at(0),
    }
    return Asked(**(values | changes))  # type: ignore[arg-type]


def random_roster(chance: random.Random) -> Roster:
    """Any roster: empty groups, unknown next ones, circles, overlapping absences, own deputies."""
    groups = {
        each: Group(
            each,
            each,
            timedelta(minutes=chance.randint(0, 5)),
            chance.choice([None, "gone", *GROUPS]),
        )
        for each in GROUPS
        if chance.random() < 0.9
    }
    absences: dict[str, list[Absence]] = {}
    for human in PEOPLE:
        for _ in range(chance.choice([0, 0, 1, 1, 2])):
            start = chance.randint(-2, TICKS)
            end = start + chance.randint(1, TICKS)
            absences.setdefault(human, []).append(
                Absence(at(start), at(end), chance.choice([None, *PEOPLE]))
            )
    active = frozenset(each for each in PEOPLE if chance.random() < 0.8)
    return Roster(
        rules=[
            Rule("rule", "rule", chance.choice([*GROUPS, "gone"]), is_sound=chance.random() < 0.95)
        ],
        groups=groups,
        members={each: chance.sample(PEOPLE, chance.randint(0, 3)) for each in GROUPS},
        absences=absences,
        active=active,
        roles={
            each: chance.choice([*Role, Role.OWNER])
            for each in chance.sample(PEOPLE, chance.randint(0, 3))
        },
    )


class Model:
    """The same rules, written as what happens tick after tick, without intervals or sorting."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.reached: list[str | None] = []

    def is_away(self, human: str, tick: int) -> bool:
        return any(a.start <= at(tick) < a.end for a in self.roster.absences.get(human, ()))

    def stands_in(self, human: str, tick: int, trail: frozenset[str]) -> set[str]:
        """Who is there for this human: they themselves, or those their absences name."""
        if human in trail or human not in self.roster.active:
            return set()
        if not self.is_away(human, tick):
            return {human}
        found: set[str] = set()
        for absence in self.roster.absences[human]:
            if absence.start <= at(tick) < absence.end and absence.deputy is not None:
                found |= self.stands_in(absence.deputy, tick, trail | {human})
        return found

    def there(self, group: str, tick: int) -> set[str]:
        members = [each for each in self.roster.members.get(group, ()) if each != OWNER]
        return {
            each for member in members for each in self.stands_in(member, tick, frozenset())
        } - {OWNER}

    def run(self, until: int) -> set[str]:
        """The deciders at the tick `until`."""
        [rule] = self.roster.rules
        at_group = rule.group_id if rule.is_sound and rule.group_id in self.roster.groups else None
        self.reached, since = [at_group], 0
        for tick in range(until + 1):
            while at_group is not None:
                group = self.roster.groups[at_group]
                waited = timedelta(minutes=tick - since) >= group.wait
                if self.there(at_group, tick) and not waited:
                    break
                follows = group.next_id
                known = follows in self.roster.groups and follows not in self.reached
                at_group, since = (follows if known else None), tick
                self.reached.append(at_group)
        return self.deciders(until)

    def deciders(self, tick: int) -> set[str]:
        found: set[str] = set()
        for group in self.reached:
            if group is not None:
                found |= self.there(group, tick)
                continue
            every = self.with_role("owner", "approver") - {OWNER}
            found |= {each for each in every if not self.is_away(each, tick)} or set(every)
        return found or ({OWNER} & self.with_role("owner"))

    def with_role(self, *roles: str) -> set[str]:
        """The active people with one of these roles."""
        return {each for each in self.roster.active if self.roster.roles.get(each) in roles}


def test_random_rosters_agree_with_the_model_and_never_freeze() -> None:
    chance = random.Random(44)
    seen: dict[object, int] = {}
    for number in range(ROSTERS):
        roster, tick = random_roster(chance), chance.randint(0, TICKS)
        model, found = Model(roster), route(asked(), roster, at(tick))
        assert set(found.deciders) == model.run(tick), (number, roster, tick)
        assert [step.group and step.group.id for step in found.steps] == model.reached, number
        assert found.deciders.keys() <= roster.active
        assert found.deciders or not model.with_role("owner"), (number, roster, tick)
        alone = model.with_role("owner", "approver") == model.with_role("owner") == {OWNER}
        assert alone or OWNER not in found.deciders, (number, roster, tick)
        for human, decider in found.deciders.items():
            role = roster.roles.get(human)
            assert decider.standing != Standing.ADMINISTRATOR or role in {"owner", "approver"}
            if role is not None:
                seen[role, decider.standing] = seen.get((role, decider.standing), 0) + 1
        for step in found.steps:
            seen[step.cause] = seen.get(step.cause, 0) + 1
        for decider in found.deciders.values():
            seen[decider.standing] = seen.get(decider.standing, 0) + 1
    # Each branch was taken often enough to prove something.
    passed_on = [(role, Standing.ADMINISTRATOR) for role in (Role.OWNER, Role.APPROVER)]
    # An auditor or an operator decides as a member of a group, never by the role.
    as_members = [(role, Standing.MEMBER) for role in Role]
    wanted = [*Standing, *Cause, *passed_on, *as_members]
    assert all(seen.get(each, 0) > ROSTERS // 100 for each in wanted), seen


def test_what_was_passed_on_stays_so_until_it_is_decided() -> None:
    chance = random.Random(45)
    for _ in range(2_000):
        roster = random_roster(chance)
        steps = [route(asked(), roster, at(tick)).steps for tick in range(TICKS)]
        assert all(after[: len(before)] == before for before, after in pairwise(steps))


def simple(**changes: object) -> Roster:
    values: dict[str, object] = {
        "rules": [Rule("r", "Payments", "X")],
        "groups": {
            "X": Group("X", "Finance", timedelta(minutes=5), "Y"),
            "Y": Group("Y", "Directors", timedelta(minutes=5)),
        },
        "members": {"X": ["b"], "Y": ["c"]},
        "active": frozenset("abcdef"),
        "roles": {"f": Role.OWNER},
    }
    return Roster(**(values | changes))  # type: ignore[arg-type]


def deciders(roster: Roster, tick: int, **changes: object) -> set[str]:
    return set(route(asked(**changes), roster, at(tick)).deciders)


def test_without_a_rule_the_owner_decides_alone() -> None:
    assert route(asked(), Roster(), at(0)) == Route({OWNER: Decider(Standing.OWNER)})


@pytest.mark.parametrize(("tick", "who"), [(4, "b"), (5, "bc"), (9, "bc"), (10, "bcf")])
def test_a_group_that_does_not_answer_is_joined_by_the_next(tick: int, who: str) -> None:
    assert deciders(simple(), tick) == set(who)


@pytest.mark.parametrize(("tick", "who"), [(0, "b"), (1, "c"), (2, "c"), (3, "bc")])
def test_an_absence_begins_with_its_first_and_ends_before_its_last_moment(
    tick: int, who: str
) -> None:
    # Passed on at tick 1 because no member was there; the member who returns joins again.
    away = simple(absences={"b": [Absence(at(1), at(3))]})
    assert deciders(away, tick) == set(who)


def test_the_owner_never_decides_as_member_or_deputy_while_another_can() -> None:
    assert deciders(simple(members={"X": ["a"], "Y": ["c"]}), 0) == {"c"}
    deputy = simple(absences={"b": [Absence(at(0), at(9), "a")]})
    assert deciders(deputy, 0) == {"c"}
    alone = simple(members={"X": ["a"]}, roles={"a": Role.OWNER})
    assert route(asked(), alone, at(0)).deciders == {OWNER: Decider(Standing.OWNER)}


@pytest.mark.parametrize("role", [None, *(role for role in Role if role != "owner")])
def test_only_an_owner_of_the_registry_ever_decides_for_themselves(role: Role | None) -> None:
    alone = simple(members={"X": ["a"]}, roles={} if role is None else {"a": role})
    assert route(asked(), alone, at(0)).deciders == {}


@pytest.mark.parametrize(
    ("roles", "who"),
    [("owner approver", "ef"), ("auditor approver", "f"), ("owner operator", "e")],
)
def test_what_is_passed_on_reaches_owners_and_approvers_alone(roles: str, who: str) -> None:
    given = {human: Role(role) for human, role in zip("ef", roles.split(), strict=True)}
    assert deciders(simple(members={}, roles=given), 0) == set(who)


def test_deputies_of_deputies_decide_and_circles_end() -> None:
    chain = {"b": [Absence(at(0), at(9), "d")], "d": [Absence(at(0), at(9), "e")]}
    found = route(asked(), simple(absences=chain), at(0)).deciders
    assert found == {"e": Decider(Standing.DEPUTY, simple().groups["X"])}
    circle = {"b": [Absence(at(0), at(9), "d")], "d": [Absence(at(0), at(9), "b")]}
    assert deciders(simple(absences=circle), 0) == {"c"}


def test_suspended_people_decide_nothing_and_have_no_deputies() -> None:
    away = {"b": [Absence(at(0), at(9), "d")]}
    assert deciders(simple(absences=away, active=frozenset("acdf")), 0) == {"c"}


def test_absent_administrators_decide_if_no_other_is_there() -> None:
    roster = simple(
        members={},
        roles=dict.fromkeys("ef", Role.OWNER),
        absences={"f": [Absence(at(0), at(9))]},
    )
    assert deciders(roster, 0) == {"e"}
    both = {each: [Absence(at(0), at(9))] for each in "ef"}
    roster = simple(members={}, roles=dict.fromkeys("ef", Role.OWNER), absences=both)
    assert deciders(roster, 0) == {"e", "f"}


EUR, USD = {"EUR": 1_000_00}, {"USD": 5_00}
OVER = Rule("eur", "Over €1,000", "X", above=1_000_00, currency="EUR")


@pytest.mark.parametrize(
    ("rules", "changes", "found"),
    [
        ([OVER], {"amounts": {"EUR": 1_000_00}}, None),
        ([OVER], {"amounts": {"EUR": 1_000_01}}, "eur"),
        # A currency that no rule names exceeds every amount.
        ([OVER], {"amounts": USD}, "eur"),
        ([OVER, Rule("usd", "", "X", above=10_00, currency="USD")], {"amounts": USD}, None),
        # One for another service names no currency here.
        ([OVER, Rule("usd", "", "X", "other", above=1, currency="USD")], {"amounts": USD}, "eur"),
        ([OVER], {"amounts": {}, "types": frozenset({"read"})}, None),
        ([Rule("d", "", "X", type="delete")], {"types": frozenset({"read", "delete"})}, "d"),
        ([Rule("d", "", "X", type="delete")], {}, None),
        ([Rule("s", "", "X", "other"), Rule("t", "", "X", "acme")], {}, "t"),
        ([Rule("one", "", "X"), Rule("two", "", "X")], {}, "one"),
        # A forged row takes nothing away from a group: the administrators decide.
        ([Rule("one", "", "X"), Rule("forged", "", "X", is_sound=False)], {}, "forged"),
    ],
)
def test_the_first_rule_that_matches_is_found(
    rules: list[Rule], changes: dict[str, object], found: str | None
) -> None:
    rule = find_rule(asked(**changes), rules)
    assert (rule and rule.id) == found


def test_a_forged_rule_sends_everything_to_the_administrators() -> None:
    rules = [Rule("forged", "", "X", is_sound=False)]
    assert deciders(simple(rules=rules), 0) == {"f"}


def test_the_largest_payment_of_each_currency_counts_in_any_order() -> None:
    asks = [
        {"type": "transact", "max_amount": {"value": value, "currency": currency}}
        for value, currency in (("80.00", "EUR"), ("20.00", "EUR"), ("30", "JPY"))
    ]
    for order in (asks, asks[::-1]):
        assert facts_of(order) == (frozenset({"transact"}), {"EUR": 80_00, "JPY": 30})
