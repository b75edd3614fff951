"""Which act a tool call is."""

from typing import Any

import pytest

from agentauth.mcp.tool_action import ToolAction
from agentauth.mcp.tool_schema_validation import ToolSchema
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.capability_comparison import choose
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money

EUROS = {"value": "5.00", "currency": "EUR"}


def tool(**types: str) -> ToolSchema:
    """The schema of a tool with these arguments, name → type; `any` allows each value."""
    properties = {name: {} if kind == "any" else {"type": kind} for name, kind in types.items()}
    return ToolSchema({"type": "object", "properties": properties})


KNOWN = tool(
    name="string",
    id="integer",
    force="boolean",
    amount="object",
    payee="string",
    sum="string",
    size="integer",
    text="string",
)


@pytest.mark.parametrize(
    ("kind", "resource", "amount"),
    [
        ("fly", "moon", None),
        ("read", "", None),
        ("read", "calendar/../x", None),
        ("read", "calendar/{a b}", None),
        ("custom", "contacts", None),
        ("custom:acme", "contacts", None),
        ("transact", "payments", None),
        ("write", "payments", "amount"),
    ],
)
def test_a_rule_that_names_no_act_is_refused(kind: str, resource: str, amount: str | None) -> None:
    with pytest.raises(InvalidRequestError):
        ToolAction(kind, resource, amount)


@pytest.mark.parametrize(
    ("rule", "arguments", "action"),
    [
        (
            ToolAction("read", "calendar/{name}"),
            {"name": "work"},
            Action("read", "calendar/work", arguments={"name": "work"}),
        ),
        (
            ToolAction("delete", "notes/{id}"),
            {"id": 7, "force": True},
            Action("delete", "notes/7", arguments={"id": 7, "force": True}),
        ),
        (
            ToolAction("transact", "payments", amount="amount"),
            {"amount": EUROS, "payee": "ACME"},
            Action("transact", "payments", Money.of("5.00", "EUR"), {"payee": "ACME"}),
        ),
        (
            ToolAction("transact", "payments", amount=lambda given: Money.of(given["sum"], "EUR")),
            {"sum": "5.00"},
            Action("transact", "payments", Money.of("5.00", "EUR"), {"sum": "5.00"}),
        ),
        (
            ToolAction("write", "files", arguments=["size"]),
            {"size": 3, "text": "a"},
            Action("write", "files", arguments={"size": 3}),
        ),
        (
            ToolAction("write", "files", arguments=lambda given: {"size": len(given["text"])}),
            {"text": "abc"},
            Action("write", "files", arguments={"size": 3}),
        ),
        (
            ToolAction("custom:acme.crm.merge", "contacts"),
            {},
            Action("custom", "contacts", namespace="acme.crm", name="merge"),
        ),
    ],
)
def test_a_call_becomes_its_act(
    rule: ToolAction, arguments: dict[str, Any], action: Action
) -> None:
    assert rule.action(arguments, KNOWN) == action


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1.5, "number"),
        (7.0, "integer"),
        (None, "null"),
        (["work"], "array"),
        ({"a": 1}, "object"),
        (2**53, "integer"),
        ("a\0", "string"),
        ("\ud800", "string"),
        (5, "any"),
    ],
)
def test_a_value_that_no_constraint_can_judge_is_not_supplied(value: object, kind: str) -> None:
    action = ToolAction("write", "files").action({"size": value}, tool(size=kind))
    assert action.arguments == {}


@pytest.mark.parametrize("value", ["", "..", "a/b", "a%2Fb", "a b", "ä", "x" * 300])
def test_a_value_that_is_no_segment_is_covered_by_nothing(value: str) -> None:
    action = ToolAction("read", "calendar/{name}").action({"name": value}, tool(name="string"))
    assert choose([Capability.read("calendar")], action).capability is None


@pytest.mark.parametrize(
    ("value", "kind", "why"),
    [
        (True, "boolean", "must be a string or an integer"),
        (7.0, "integer", "must be a string or an integer"),
        (None, "null", "declare it as"),
        (1.5, "number", "declare it as"),
        (["work"], "array", "declare it as"),
        ("work", "any", "declare it as"),
        (5, "string", "does not fit"),
        ("05", "integer", "does not fit"),
    ],
)
def test_a_placeholder_needs_a_string_or_an_integer(value: object, kind: str, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=why):
        ToolAction("read", "calendar/{name}").action({"name": value}, tool(name=kind))


@pytest.mark.parametrize("amount", [None, "5.00", 5, {"value": "5.00"}, {**EUROS, "x": 1}])
def test_an_amount_of_another_form_is_refused(amount: object) -> None:
    with pytest.raises(InvalidRequestError):
        ToolAction("transact", "payments", "amount").action({"amount": amount}, tool(amount="any"))


def test_an_argument_that_the_tool_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="has no argument 'Name'"):
        ToolAction("read", "calendar").action({"Name": "x"}, tool(name="string"))


def test_an_argument_whose_name_no_constraint_can_have_is_not_supplied() -> None:
    action = ToolAction("read", "calendar").action({"a b": "x"}, tool(**{"a b": "string"}))
    assert action.arguments == {}
