"""A value at a bound on length or number is accepted; one more is refused."""

import pytest

from agentauth.protocol.capability import Capability, parse_action, parse_allow_list
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.json_fields import quote_safely, text


def test_names_of_a_custom_capability_have_up_to_64_characters() -> None:
    longest = Capability.custom("n" * 64, "m" * 64, "contacts")
    assert (longest.namespace, longest.name) == ("n" * 64, "m" * 64)
    for namespace, name in (("n" * 65, "m"), ("n", "m" * 65)):
        with pytest.raises(InvalidRequestError, match="1 to 64"):
            Capability.custom(namespace, name, "contacts")


def test_only_the_refusal_of_a_namespace_speaks_of_dots() -> None:
    with pytest.raises(InvalidRequestError, match="joined by dots"):
        Capability.custom("A", "m", "contacts")
    with pytest.raises(InvalidRequestError, match=r"letter\.$"):
        Capability.custom("n", "A", "contacts")


def test_an_action_has_up_to_64_arguments() -> None:
    body = {"type": "read", "resource": "a", "arguments": {f"a{each}": each for each in range(64)}}
    assert len(parse_action(body).arguments) == 64


def test_integers_of_a_constraint_are_those_of_a_double() -> None:
    largest = 2**53 - 1
    for operator, operand in (("min", -largest), ("max", largest)):
        [limit] = Capability.read("a", constraints={"x": {operator: operand}}).constraints
        assert limit.operand_json() == operand


def test_an_allow_list_has_up_to_64_entries() -> None:
    assert len(parse_allow_list(["read:a"] * 64)) == 64


@pytest.mark.parametrize(
    ("kind", "lasts"), [("read", False), ("write", False), ("delete", True), ("transact", True)]
)
def test_what_moves_money_or_destroys_lasts(kind: str, *, lasts: bool) -> None:
    amount = {"amount": {"value": "1", "currency": "EUR"}} if kind == "transact" else {}
    assert parse_action({"type": kind, "resource": "a", **amount}).needs_durable_decision is lasts


def test_a_foreign_text_is_shown_up_to_40_characters() -> None:
    assert quote_safely("x" * 40) == repr("x" * 40)
    assert quote_safely("x" * 41) == repr("x" * 40 + "...")


def test_the_characters_of_a_text_are_counted() -> None:
    for value in ("xy", "éü"):
        assert text(value, "name", maximum=2, minimum=2) == value
        for minimum, maximum in ((1, 1), (3, 3)):
            with pytest.raises(InvalidRequestError, match=f"name: must be {minimum} to {maximum}"):
                text(value, "name", maximum=maximum, minimum=minimum)
