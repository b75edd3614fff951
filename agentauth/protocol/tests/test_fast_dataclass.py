"""Values of one call are equal and hashed as frozen dataclasses are; the type checker sees that
none is changed.
"""

from dataclasses import dataclass, replace

import pytest

from agentauth.protocol.fast_dataclass import per_call


@per_call(frozen=True, slots=True)
class Made:
    name: str
    number: int = 1


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    number: int = 1


def test_they_are_equal_and_hashed_by_what_they_hold() -> None:
    assert Made("a", 1) == Made("a") != Made("a", 2)
    assert hash(Made("a")) == hash(Frozen("a")) != hash(Made("b"))
    assert replace(Made("a"), number=2) == Made("a", 2)
    assert repr(Made("a")) == "Made(name='a', number=1)"


def test_they_hold_nothing_but_their_fields() -> None:
    with pytest.raises(AttributeError):
        Made("a").other = 1  # type: ignore[attr-defined]


def test_the_type_checker_sees_a_change() -> None:
    # An ignore that ignores nothing is an error of its own.
    Made("a").number = 2  # type: ignore[misc]
