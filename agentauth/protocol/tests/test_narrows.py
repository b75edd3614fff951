"""When one list of capabilities narrows another, case by case; the laws are in
test_capability_properties.py.
"""

from typing import Any

import pytest

from agentauth.protocol.capability import Capability, parse_allow_entry, parse_capability
from agentauth.protocol.capability_comparison import intersect, narrows

PAYMENT: dict[str, Any] = {
    "type": "transact",
    "resource": "payments",
    "max_amount": {"value": "100.00", "currency": "EUR"},
    "constraints": {"payee": {"in": ["ACME"]}},
}


def test_allow_entry_without_amount_is_unbounded_and_empty_list_denies() -> None:
    asked = [parse_capability(PAYMENT)]
    assert narrows(asked, [parse_allow_entry("transact:payments")])
    assert not narrows([parse_allow_entry("transact:payments")], asked)
    assert not narrows(asked, [])
    bare = Capability.transact("payments", max_amount=("1", "EUR"))
    assert narrows([bare], [parse_allow_entry("transact:payments")])
    assert not narrows([parse_allow_entry("transact:payments")], [bare])


def c(constraints: dict[str, Any]) -> list[Capability]:
    return [Capability.read("a", constraints=constraints)]


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"x": {"eq": 1}}, {}),
        ({"x": {"max": 4}}, {"x": {"max": 5}}),
        ({"x": {"min": 6}}, {"x": {"min": 5}}),
        ({"x": {"in": [1]}}, {"x": {"in": [2, 1]}}),
        ({"x": {"not_in": [1, 2]}}, {"x": {"not_in": [1]}}),
        ({"x": {"prefix": "abc"}}, {"x": {"prefix": "ab"}}),
        ({"x": {"max_length": 1}}, {"x": {"max_length": 2}}),
        ({"x": {"eq": 4}}, {"x": {"max": 5}}),
        ({"x": {"in": ["ab", "abc"]}}, {"x": {"prefix": "ab", "max_length": 3}}),
        ({"x": {"in": [3, 4], "min": 1}}, {"x": {"not_in": [1, 2]}}),
    ],
)
def test_a_tighter_constraint_narrows_and_the_reverse_does_not(
    new: dict[str, Any], old: dict[str, Any]
) -> None:
    assert narrows(c(new), c(old))
    assert not narrows(c(old), c(new))


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"x": {"eq": True}}, {"x": {"eq": 1}}),
        ({"x": {"in": [1, "1"]}}, {"x": {"in": [1]}}),
        ({"y": {"eq": 1}}, {"x": {"eq": 1}}),
        ({"x": {"max": "4"}}, {"x": {"max": 5}}),
        ({"x": {"prefix": "ab"}}, {"x": {"min": "ab"}}),
        ({"x": {"not_in": [True]}}, {"x": {"not_in": [1]}}),
    ],
)
def test_what_is_not_proved_tighter_does_not_narrow(
    new: dict[str, Any], old: dict[str, Any]
) -> None:
    assert not narrows(c(new), c(old))


def test_narrows_looks_at_type_resource_and_amount() -> None:
    assert narrows([Capability.read("a/b")], [Capability.read("a")])
    assert not narrows([Capability.read("a")], [Capability.read("a/b")])
    assert not narrows([Capability.read("a")], [Capability.write("a")])
    hundred, fifty = (
        Capability.transact("p", max_amount=(value, "EUR")) for value in ("100", "50")
    )
    dollars = Capability.transact("p", max_amount=("1", "USD"))
    assert narrows([fifty], [hundred])
    assert not narrows([hundred], [fifty])
    assert not narrows([dollars], [hundred])
    assert not narrows([fifty, dollars], [hundred])


def test_what_two_have_in_common_has_the_tighter_of_each_limit() -> None:
    [left] = c({"x": {"max": 10}, "y": {"max": 3}})
    [right] = c({"x": {"max": 5}, "y": {"max": 4}, "z": {"eq": 1}})
    assert (
        [intersect(left, right)]
        == c({"x": {"max": 5}, "y": {"max": 3}, "z": {"eq": 1}})
        == [intersect(right, left)]
    )


@pytest.mark.parametrize(
    ("left", "right", "both"),
    [
        ({"in": [1, 2, 3]}, {"in": [4, 3, 2]}, {"in": [2, 3]}),
        ({"in": [1, "a"]}, {"in": [True, "a"]}, {"in": ["a"]}),
        ({"not_in": [1, 2]}, {"not_in": [2, 3]}, {"not_in": [1, 2, 3]}),
        ({"not_in": [1]}, {"not_in": [True]}, {"not_in": [1, True]}),
        ({"in": [1, 2], "min": 1}, {"in": [2, 3], "max": 3}, {"in": [2]}),
        # 64 values, as many as the wire form allows.
        ({"not_in": [*range(33)]}, {"not_in": [*range(32, 64)]}, {"not_in": [*range(64)]}),
    ],
)
def test_overlapping_lists_of_two_are_merged(
    left: dict[str, Any], right: dict[str, Any], both: dict[str, Any]
) -> None:
    [one], [other] = c({"x": left}), c({"x": right})
    assert [intersect(one, other)] == c({"x": both})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"in": [1, 2]}, {"in": [3, 4]}),
        ({"in": [1, 2]}, {"in": [True, "2"]}),
        ({"eq": 1}, {"eq": 2}),
        ({"prefix": "a"}, {"prefix": "b"}),
        ({"min": 1}, {"min": "a"}),
        # 65 values together, one more than the wire form allows.
        ({"not_in": [*range(33)]}, {"not_in": [*range(33, 65)]}),
    ],
)
def test_without_an_expressible_overlap_two_have_nothing_in_common(
    left: dict[str, Any], right: dict[str, Any]
) -> None:
    [one], [other] = c({"x": left}), c({"x": right})
    assert intersect(one, other) is None
    assert intersect(other, one) is None


def test_what_two_have_in_common_has_at_most_16_limits() -> None:
    [left], [right] = (c({f"{name}{each}": {"eq": 1} for each in range(8)}) for name in "ab")
    both = intersect(left, right)
    assert both is not None
    assert len(both.constraints) == 16
    [right] = c({f"b{each}": {"eq": 1} for each in range(9)})
    assert intersect(left, right) is None
