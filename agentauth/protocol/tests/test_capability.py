"""The grammar of capabilities and actions, and the answers of covers, choose and narrows one by
one.
"""

from typing import Any

import pytest

from agentauth.protocol.argument_constraint import Constraint
from agentauth.protocol.capability import (
    MAX_TRANSACT,
    Action,
    Capability,
    parse_action,
    parse_allow_entry,
    parse_allow_list,
    parse_capabilities,
    parse_capability,
)
from agentauth.protocol.capability_comparison import Violation, choose
from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import InvalidRequestError

from .strategies import covers

PAYMENT: dict[str, Any] = {
    "type": "transact",
    "resource": "payments",
    "max_amount": {"value": "100.00", "currency": "EUR"},
    "constraints": {"payee": {"in": ["ACME"]}},
}


def refused(body: Any, place: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_capabilities([body])
    assert caught.value.description.startswith(place), caught.value.description
    assert len(caught.value.description) < 400


@pytest.mark.parametrize(
    "body",
    [
        {
            "type": "read",
            "resource": "calendar/work",
            "constraints": {"visibility": {"in": ["busy", "free"]}},
        },
        {"type": "write", "resource": "files/reports", "constraints": {"size": {"max": 1048576}}},
        {"type": "delete", "resource": "files/scratch"},
        PAYMENT,
        {
            "type": "custom",
            "namespace": "acme.crm",
            "name": "merge_contacts",
            "resource": "contacts",
        },
    ],
    ids=lambda body: body["type"],
)
def test_the_examples_of_the_contract_are_read_and_written_back(body: dict[str, Any]) -> None:
    assert parse_capability(body).to_json() == body


def test_the_short_forms_build_the_same_capabilities() -> None:
    assert Capability.read("calendar") == parse_capability({"type": "read", "resource": "calendar"})
    assert Capability.write("a", constraints={"size": {"max": 1}}).constraints == (
        Constraint("size", "max", 1),
    )
    assert Capability.delete("a").label == "delete:a"
    assert Capability.transact(
        "payments", max_amount=("100.00", "EUR"), constraints={"payee": {"in": ["ACME"]}}
    ) == parse_capability(PAYMENT)
    assert (
        Capability.custom("acme.crm", "merge", "contacts").label == "custom:acme.crm.merge:contacts"
    )
    with pytest.raises(InvalidRequestError, match="resource"):
        Capability.read("../etc")


BAD_RESOURCES = [
    "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a b", "a\\b", "a%2Fb", "ä", "a:b",
    "a\n", "a*", "a" * 256,
]  # fmt: skip


@pytest.mark.parametrize(
    "resource", [*BAD_RESOURCES, None, 1, ["a"]], ids=lambda value: ascii(value)[:12]
)
def test_a_resource_outside_the_grammar_is_refused(resource: Any) -> None:
    refused({"type": "read", "resource": resource}, "capabilities[0].resource: ")


@pytest.mark.parametrize("resource", ["a" * 255, "a/b/c", "A-1._~/...", "~", ".a/..b"])
def test_a_resource_inside_the_grammar_is_accepted(resource: str) -> None:
    assert Capability.read(resource).resource == resource


@pytest.mark.parametrize("kind", ["Read", "admin", "", "*", None, 1, ["read"], {"read": 1}])
def test_an_unknown_type_is_refused(kind: Any) -> None:
    refused({"type": kind, "resource": "a"}, "capabilities[0].type: ")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"type": "read", "resource": "a", "scope": "all"}, "capabilities[0]: the member 'scope'"),
        ({"type": "read"}, "capabilities[0].resource: is missing"),
        ({"resource": "a"}, "capabilities[0].type: is missing"),
        ({**PAYMENT, "max_amount": None}, "capabilities[0].max_amount: must be"),
        ({"type": "transact", "resource": "a"}, "capabilities[0].max_amount: is missing"),
        (
            {**PAYMENT, "max_amount": {"value": "-1", "currency": "EUR"}},
            "capabilities[0].max_amount.value: ",
        ),
        (
            {**PAYMENT, "max_amount": {"value": 1, "currency": "EUR"}},
            "capabilities[0].max_amount.value: ",
        ),
        (
            {**PAYMENT, "type": "read"},
            "capabilities[0].max_amount: is allowed only for the type transact",
        ),
        (
            {"type": "read", "resource": "a", "name": "x"},
            "capabilities[0].name: is allowed only for the type custom",
        ),
        ({"type": "read", "resource": "a", "namespace": "x"}, "capabilities[0].namespace: "),
        ({"type": "custom", "resource": "a", "name": "x"}, "capabilities[0].namespace: "),
        ({"type": "custom", "resource": "a", "namespace": "x"}, "capabilities[0].name: "),
        (
            {"type": "custom", "resource": "a", "namespace": "x", "name": "a.b"},
            "capabilities[0].name: ",
        ),
        (
            {"type": "custom", "resource": "a", "namespace": "x..y", "name": "b"},
            "capabilities[0].namespace: ",
        ),
        (
            {"type": "custom", "resource": "a", "namespace": "X", "name": "b"},
            "capabilities[0].namespace: ",
        ),
        (
            {"type": "custom", "resource": "a", "namespace": "x" * 65, "name": "b"},
            "capabilities[0].namespace: ",
        ),
        ({"type": "read", "resource": "a", "constraints": None}, "capabilities[0].constraints: "),
        ({"type": "read", "resource": "a", "constraints": []}, "capabilities[0].constraints: "),
        ("read:a", "capabilities[0]: must be a JSON object"),
        (None, "capabilities[0]: must be a JSON object"),
        ({1: 2}, "capabilities[0]: the member '1'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_capability_with_a_wrong_member_is_refused_by_name(body: Any, place: str) -> None:
    refused(body, place)


@pytest.mark.parametrize(
    ("constraints", "place"),
    [
        ({"size": {"less_than": 1}}, "size: the member 'less_than' is unknown"),
        ({"size": {"max": 1, "MAX": 2}}, "size: the member 'MAX' is unknown"),
        ({"size": {}}, "size: must have an operator"),
        ({"size": 5}, "size: must be a JSON object"),
        ({"size": {"max": 1.0}}, "size.max: must be a string, a boolean or an integer"),
        ({"size": {"max": True}}, "size.max: must be an integer or a string"),
        ({"size": {"max": 2**53}}, "size.max: must be from"),
        ({"size": {"min": -(2**53)}}, "size.min: must be from"),
        ({"size": {"eq": None}}, "size.eq: "),
        ({"size": {"eq": [1]}}, "size.eq: "),
        ({"size": {"eq": "x" * 1025}}, "size.eq: "),
        ({"size": {"eq": "\ud800"}}, "size.eq: must not contain"),
        ({"size": {"eq": "a\0"}}, "size.eq: must not contain"),
        ({"size": {"in": []}}, "size.in: must have 1 to 64 items"),
        ({"size": {"in": list(range(65))}}, "size.in: must have 1 to 64 items"),
        ({"size": {"in": "abc"}}, "size.in: must be a list"),
        ({"size": {"in": [1, 1]}}, "size.in: names a value twice"),
        ({"size": {"in": [[1]]}}, "size.in[0]: "),
        ({"size": {"not_in": [1.5]}}, "size.not_in[0]: "),
        ({"size": {"prefix": 1}}, "size.prefix: must be a string"),
        ({"size": {"prefix": ""}}, "size.prefix: must be 1 to"),
        ({"size": {"max_length": -1}}, "size.max_length: "),
        ({"size": {"max_length": "3"}}, "size.max_length: "),
        ({"": {"eq": 1}}, " the argument name"),
        ({"a b": {"eq": 1}}, " the argument name"),
        ({"a" * 65: {"eq": 1}}, " the argument name"),
        ({f"a{index}": {"eq": 1} for index in range(17)}, " must have at most 16"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_a_constraint_outside_the_grammar_is_refused_by_name(constraints: Any, place: str) -> None:
    separator = ":" if place.startswith(" ") else "."
    body = {"type": "read", "resource": "a", "constraints": constraints}
    refused(body, f"capabilities[0].constraints{separator}{place}")


def test_lists_are_bounded_and_not_empty() -> None:
    one = {"type": "read", "resource": "a"}
    assert len(parse_capabilities([one] * 32)) == 32
    unfit: list[Any] = [[], [one] * 33, {}, None, "read:a"]
    for bad in unfit:
        with pytest.raises(InvalidRequestError, match="capabilities: "):
            parse_capabilities(bad)


def test_sixteen_constraints_and_sixty_four_items_are_accepted() -> None:
    constraints = {f"a{index}": {"in": list(range(64))} for index in range(16)}
    assert len(Capability.read("a", constraints=constraints).constraints) == 16


def test_true_and_one_are_different_values_and_different_constraints() -> None:
    assert Capability.read("a", constraints={"x": {"in": [True, 1]}}).constraints[0].values == (
        True,
        1,
    )
    assert Constraint("x", "eq", True) != Constraint("x", "eq", 1)
    assert Capability.read("a", constraints={"x": {"eq": 1}}) != Capability.read(
        "a", constraints={"x": {"eq": True}}
    )


@pytest.mark.parametrize(
    ("operator", "operand", "good", "bad"),
    [
        ("eq", 1, [1], [True, "1", 2, 1.0, None, [1]]),
        ("eq", "é", ["é"], ["e\u0301", "É"]),
        ("in", ["busy", 1], ["busy", 1], ["Busy", True, "1", ""]),
        ("not_in", ["a", 1], ["b", True, 2, ""], ["a", 1, None, 1.0, ["b"]]),
        ("min", 5, [5, 6], [4, "6", True, 5.5]),
        ("max", 5, [5, 4, -1], [6, "4", True, 4.0]),
        ("min", "2026-01-01", ["2026-01-01", "2026-12-01"], ["2025-12-31", 2027]),
        # By code point U+FFFF is below U+1D7D8; by UTF-16 unit it would be above.
        ("max", "\U0001d7d8", ["\uffff"], ["\U0001d7d9"]),
        ("prefix", "ab", ["ab", "abc"], ["a", "Ab", 1, ["ab"]]),
        ("max_length", 2, ["", "ab", "\U0001f600\U0001f600"], ["abc", 1, None]),
    ],
)
def test_each_operator_is_strict_about_types_and_code_points(
    operator: str, operand: Any, good: list[Any], bad: list[Any]
) -> None:
    constraint = Capability.read("a", constraints={"x": {operator: operand}}).constraints[0]
    assert [value for value in good if not constraint.allows(value)] == []
    assert [value for value in bad if constraint.allows(value)] == []


@pytest.mark.parametrize(
    ("granted", "asked", "answer"),
    [
        ("calendar", "calendar", True),
        ("calendar", "calendar/work", True),
        ("calendar", "calendars", False),
        ("calendar", "Calendar", False),
        ("calendar/work", "calendar", False),
        ("calendar", "calendar/", False),
        ("calendar", "calendar//work", False),
        ("calendar", "calendar/../files", False),
        ("calendar", "calendar/%2e%2e", False),
    ],
)
def test_a_capability_covers_its_resource_and_what_is_below(
    granted: str, asked: str, *, answer: bool
) -> None:
    assert (
        covers(Capability.read(granted), parse_action({"type": "read", "resource": asked}))
        is answer
    )


@pytest.mark.parametrize("resource", BAD_RESOURCES, ids=lambda value: ascii(value)[:12])
def test_a_malformed_resource_in_an_action_is_insufficient_scope(resource: str) -> None:
    granted = [Capability.read("a")]
    assert (
        choose(granted, parse_action({"type": "read", "resource": resource})).reason
        == "no_capability"
    )


def test_VB_8_write_does_not_imply_read_nor_the_reverse() -> None:
    assert not covers(Capability.write("a"), Action("read", "a"))
    assert choose([Capability.read("a")], Action("write", "a")).reason == "no_capability"


def pay(value: str = "100.00", currency: str = "EUR", **arguments: Any) -> Action:
    amount = {"value": value, "currency": currency}
    return parse_action(
        {"type": "transact", "resource": "payments", "amount": amount, "arguments": arguments}
    )


def test_an_amount_above_the_limit_or_in_another_currency_is_a_violation() -> None:
    granted = [parse_capability(PAYMENT)]
    assert choose(granted, pay(payee="ACME")).capability == granted[0]
    limit = Violation("amount", "max_amount", {"value": "100.00", "currency": "EUR"})
    for action in (pay("100.01", payee="ACME"), pay("1.00", "USD", payee="ACME")):
        choice = choose(granted, action)
        assert (choice.reason, choice.violations) == ("constraint", (limit,))
    assert limit.to_json() == {
        "argument": "amount",
        "operator": "max_amount",
        "limit": {"value": "100.00", "currency": "EUR"},
    }


def test_an_argument_that_is_constrained_but_not_supplied_denies() -> None:
    choice = choose([parse_capability(PAYMENT)], pay())
    assert choice.violations == (Violation("payee", "in", ["ACME"]),)
    assert not covers(
        Capability.read("a", constraints={"x": {"not_in": ["no"]}}), Action("read", "a")
    )


def test_first_covering_capability_is_chosen_or_first_match_explains() -> None:
    first = Capability.read("a", constraints={"x": {"eq": 1}})
    second = Capability.read("a", constraints={"x": {"eq": 2}})
    both = [Capability.write("a"), first, second, Capability.read("a")]
    assert choose(both, Action("read", "a", arguments={"x": 2})).capability == second
    assert choose(both[:3], Action("read", "a", arguments={"x": 3})).violations == (
        Violation("x", "eq", 1),
    )


def test_custom_actions_match_on_namespace_and_name() -> None:
    granted = Capability.custom("acme.crm", "merge", "contacts")
    action = {"type": "custom", "namespace": "acme.crm", "name": "merge", "resource": "contacts/1"}
    assert covers(granted, parse_action(action))
    assert not covers(granted, parse_action({**action, "name": "split"}))
    assert not covers(granted, parse_action({**action, "namespace": "acme"}))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"amount": {"value": "0", "currency": "EUR"}}, "action.amount.value"),
        ({"amount": {"value": "0.00", "currency": "EUR"}}, "action.amount.value"),
        ({"amount": {"value": "-1", "currency": "EUR"}}, "action.amount.value"),
        ({"amount": {"value": 1, "currency": "EUR"}}, "action.amount.value"),
        ({"amount": {"value": 1.5, "currency": "EUR"}}, "action.amount.value"),
        ({"amount": {"value": "NaN", "currency": "EUR"}}, "action.amount.value"),
        ({"amount": {"value": "1e309", "currency": "EUR"}}, "action.amount.value"),
        ({"amount": {"value": "9" * 30, "currency": "EUR"}}, "action.amount.value"),
        ({"amount": "1.00"}, "action.amount"),
        ({"amount": None}, "action.amount"),
        ({"type": "read"}, "action.amount: is allowed only for the type transact"),
        ({"type": "pay"}, "action.type"),
        ({"resource": 1}, "action.resource: must be a string."),
        ({"resource": None}, "action.resource: must be a string."),
        ({"resource": "\ud800"}, "action.resource"),
        ({"name": "x"}, "action.name"),
        ({"arguments": None}, "action.arguments"),
        ({"arguments": {"a": None}}, "action.arguments.'a'"),
        ({"arguments": {"a": 1.0}}, "action.arguments.'a'"),
        ({"arguments": {"a": [1]}}, "action.arguments.'a'"),
        ({"arguments": {"a": 2**53}}, "action.arguments.'a'"),
        ({"arguments": {"a b": 1}}, "action.arguments: the argument name"),
        ({"arguments": {f"a{index}": 1 for index in range(65)}}, "action.arguments: "),
        ({"max_amount": {"value": "1", "currency": "EUR"}}, "action: the member"),
    ],
    ids=str,
)
def test_EN_14_an_action_with_a_wrong_member_is_refused_by_name(
    change: dict[str, Any], place: str
) -> None:
    body = {
        "type": "transact",
        "resource": "payments",
        "amount": {"value": "1", "currency": "EUR"},
        **change,
    }
    with pytest.raises(InvalidRequestError) as caught:
        parse_action(body)
    assert caught.value.description.startswith(place)


def test_a_transact_is_of_a_length_a_human_can_read() -> None:
    def action(kind: str, length: int) -> dict[str, Any]:
        body = {"type": kind, "resource": "payments", "arguments": {"payee": "x" * length}}
        return body | (
            {"amount": {"value": "1.00", "currency": "EUR"}} if kind == "transact" else {}
        )

    room = MAX_TRANSACT - len(canonical_json(action("transact", 0)))
    assert parse_action(action("transact", room)).arguments == {"payee": "x" * room}
    with pytest.raises(InvalidRequestError, match="2048 bytes"):
        parse_action(action("transact", room + 1))
    assert parse_action(action("write", room + 1))


def test_a_transact_action_without_an_amount_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"action\.amount: is missing"):
        parse_action({"type": "transact", "resource": "payments"})


def test_equal_actions_share_one_digest_and_changed_actions_differ() -> None:
    plain = parse_action({"type": "read", "resource": "a"})
    assert (
        plain.digest() == parse_action({"resource": "a", "arguments": {}, "type": "read"}).digest()
    )
    assert pay("1").digest() == pay("1.00").digest()
    named = {"type": "custom", "resource": "a"}
    own = [
        parse_action({**named, "namespace": namespace, "name": name})
        for namespace, name in (("acme", "merge"), ("acme", "split"), ("other", "merge"))
    ]
    money = [pay("1"), pay("2"), pay("1", "USD"), pay("1", x=1), pay("1", x=True), pay("1", x="1")]
    others = [*money, *own, plain]
    assert len({each.digest() for each in others}) == len(others)
    assert all((left == right) == (left is right) for left in others for right in others)
    assert plain != "read:a"
    assert parse_action(pay("1", x=True).to_json()) == pay("1", x=True)
    assert parse_action(own[0].to_json()) == own[0]


def test_allow_list_entries_are_limitless_and_strict() -> None:
    assert parse_allow_entry("read:calendar") == Capability.read("calendar")
    assert parse_allow_entry("custom:acme.crm.merge:contacts") == Capability.custom(
        "acme.crm", "merge", "contacts"
    )
    assert parse_allow_entry("transact:payments").max_amount is None
    assert parse_allow_entry("transact:payments").is_limitless
    assert parse_allow_list([]) == ()
    bad: Any
    for bad in [
        "read",
        "read:",
        "read:a:b",
        "all:a",
        "custom:merge:contacts",
        "custom:a.b",
        "read:a b",
        "",
        None,
        1,
    ]:
        with pytest.raises(InvalidRequestError, match="allow"):
            parse_allow_entry(bad)
    for bad in ("read:a", {"read": "a"}, ["read:a"] * 65, ["*"]):
        with pytest.raises(InvalidRequestError, match="allow"):
            parse_allow_list(bad)
