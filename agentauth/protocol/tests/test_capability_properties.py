"""Properties of covers and narrows, tested on capabilities that almost agree."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentauth.protocol.argument_constraint import Constraint
from agentauth.protocol.capability import Capability, parse_capability
from agentauth.protocol.capability_comparison import choose, intersect, narrows
from agentauth.protocol.money import Money

from .strategies import (
    SCALARS,
    actions_for,
    capabilities,
    covers,
    operands,
    scalars,
    tightened,
)

lists = st.lists(capabilities(), min_size=1, max_size=3)


@given(capabilities())
def test_parsing_what_was_written_gives_the_same_capability(capability: Capability) -> None:
    wire = json.loads(json.dumps(capability.to_json()))
    assert parse_capability(wire) == capability
    assert parse_capability(wire).to_json() == wire
    assert hash(parse_capability(wire)) == hash(capability)


@given(lists)
def test_narrows_is_reflexive(granted: list[Capability]) -> None:
    assert narrows(granted, granted)


@given(lists)
def test_nothing_narrows_everything_and_everything_does_not_narrow_nothing(
    granted: list[Capability],
) -> None:
    assert narrows([], granted)
    assert not narrows(granted, [])


@settings(max_examples=300)
@given(st.data())
def test_narrows_is_transitive(data: st.DataObject) -> None:
    wide = data.draw(capabilities())
    middle = data.draw(tightened(wide))
    narrow = data.draw(tightened(middle))
    if narrows([narrow], [middle]) and narrows([middle], [wide]):
        assert narrows([narrow], [wide])


@settings(max_examples=600)
@given(st.data())
def test_what_a_narrower_list_covers_the_wider_list_covers(data: st.DataObject) -> None:
    wide = data.draw(lists)
    narrow = [
        data.draw(tightened(data.draw(st.sampled_from(wide))))
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    # In both directions: the capability that seems wider is sometimes the narrower one.
    for new, old in ((narrow, wide), (wide, narrow)):
        if narrows(new, old):
            action = data.draw(actions_for(new))
            if choose(new, action).capability is not None:
                assert any(covers(each, action) for each in old)


@settings(max_examples=300)
@given(st.data())
def test_implies_is_sound_for_every_pair_of_constraints_and_every_value(
    data: st.DataObject,
) -> None:
    first, second = data.draw(capabilities()), data.draw(capabilities())
    for new in first.constraints:
        for old in second.constraints:
            if new.implies(old):
                for value in [*SCALARS, *new.values, *old.values]:
                    assert not new.allows(value) or old.allows(value)


@given(st.data())
def test_choose_and_covers_agree_and_name_a_reason(data: st.DataObject) -> None:
    granted = data.draw(lists)
    action = data.draw(actions_for(granted))
    choice = choose(granted, action)
    assert (choice.capability is not None) == any(covers(each, action) for each in granted)
    if choice.capability is None:
        assert choice.reason in {"no_capability", "constraint"}
        assert (choice.reason == "constraint") == bool(choice.violations)
    else:
        assert choice.capability == next(each for each in granted if covers(each, action))


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    anything,
    st.sampled_from(["eq", "in", "not_in", "min", "max", "prefix", "max_length", "nonsense"]),
    scalars,
)
def test_allows_and_implies_are_total(supplied: Any, operator: str, operand: Any) -> None:
    constraint = Constraint("size", operator, operand)
    assert constraint.allows(supplied) in {True, False}
    assert constraint.implies(Constraint("size", "eq", 1)) in {True, False}
    assert constraint.implies(constraint) in {True, False}
    if operator == "nonsense":
        # What it limits is unknown, so it allows nothing and is not narrower than itself.
        assert not constraint.allows(supplied)
        assert not constraint.implies(constraint)


@given(st.integers(1, 2**53 - 1), st.sampled_from(["EUR", "JPY", "KWD", "CLF"]))
def test_money_survives_its_own_text_unless_it_is_too_long(minor: int, currency: str) -> None:
    money = Money(minor, currency)
    if len(money.value.partition(".")[0]) <= 12:
        assert Money.parse(money.to_json()) == money


@settings(max_examples=1200)
@given(st.data())
def test_what_two_have_in_common_covers_exactly_what_both_cover(data: st.DataObject) -> None:
    left = data.draw(capabilities())
    right = data.draw(st.one_of(capabilities(), tightened(left)))
    both = intersect(left, right)
    if both is None:
        # The overlap is not empty if one lies within the other.
        assert not narrows([left], [right])
        assert not narrows([right], [left])
    else:
        assert narrows([both], [left])
        assert narrows([both], [right])
        assert parse_capability(both.to_json()) == both
    # Drawn lists are far below the limits of the wire form, so nothing is left out.
    action = data.draw(actions_for([*([both] if both else []), left, right]))
    expected = covers(left, action) and covers(right, action)
    assert (both is not None and covers(both, action)) == expected


@settings(max_examples=600)
@given(st.data())
def test_merged_lists_allow_exactly_what_both_allow(data: st.DataObject) -> None:
    operator = data.draw(st.sampled_from(["in", "not_in"]))
    one, other = (Constraint("x", operator, tuple(data.draw(operands(operator)))) for _ in "ab")
    both = one.merge(other)
    for value in (*SCALARS, None, 0.5):
        expected = one.allows(value) and other.allows(value)
        assert (both is not None and both.allows(value)) == expected
