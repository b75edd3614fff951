"""What verify judges is what the tool gets: the official SDK converts arguments after the check."""

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.utilities.func_metadata import func_metadata

from agentauth.mcp.tool_action import ToolAction
from agentauth.mcp.tool_schema_validation import ToolSchema
from agentauth.protocol.errors import InvalidRequestError


class Colour(StrEnum):
    """A choice, which the schema has as a reference."""

    RED = "red"
    BLUE = "blue"


def taking(kind: Any) -> Callable[..., str]:
    """A tool whose one argument is of the Python type `kind`."""

    def tool(value: Any = None) -> str:
        return str(value)

    tool.__annotations__["value"] = kind
    return tool


def schema_of(kind: Any) -> ToolSchema:
    """The schema that the official SDK lists for it."""
    server = MCPServer[Any]("x", log_level="WARNING")
    server.add_tool(taking(kind), structured_output=False)
    [tool] = server._tool_manager.list_tools()
    return ToolSchema(tool.parameters)


def supplied(kind: Any, value: object) -> dict[str, Any]:
    """The arguments that verify receives."""
    return dict(ToolAction("write", "folder").action({"value": value}, schema_of(kind)).arguments)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, "7"),
        (int, True),
        (bool, "true"),
        (bool, 1),
        (str | None, "null"),
        (str | None, "[1]"),
        (list[str] | str, '["a"]'),
        (dict[str, str], '{"a": "b"}'),
        (Colour, "green"),
        (Colour | None, "null"),
        (date, "86400"),
        (date, "20260101"),
        (date, 86_400),
    ],
    ids=str,
)
def test_a_value_that_the_server_would_convert_is_refused(kind: Any, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"fit the tool's schema|contains JSON"):
        supplied(kind, value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 7),
        (int | None, 7),
        (bool, True),
        (str, "null"),
        (str, "[1]"),
        (str | None, "box"),
        (str | None, "7"),
        (Colour, "red"),
        (Colour | None, "red"),
        (date, "2026-01-31"),
    ],
    ids=str,
)
def test_a_value_is_supplied_as_the_tool_gets_it(kind: Any, value: object) -> None:
    assert supplied(kind, value) == {"value": value}
    metadata = func_metadata(taking(kind))
    [got] = metadata.validate_arguments({"value": value}).values()
    assert got == (date.fromisoformat(str(value)) if kind is date else value)
    assert type(got) in {type(value), Colour, date}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int | str, "7"),
        (int | str, 7),
        (Decimal, "5.00"),
        (float, 5),
        (datetime, "86400"),
        (UUID, "01900000-0000-7000-8000-00000000000A"),
        (bytes, "a"),
        (Any, "a"),
        (list[int], [7]),
    ],
    ids=str,
)
def test_a_value_that_may_arrive_as_another_is_not_supplied(kind: Any, value: object) -> None:
    assert supplied(kind, value) == {}


def test_a_missing_argument_is_refused_before_verify() -> None:
    schema = ToolSchema({"properties": {"a": {"type": "string"}}, "required": ["a"]})
    with pytest.raises(InvalidRequestError, match="The arguments do not fit"):
        schema.check({})


def test_a_reference_to_another_host_is_no_request() -> None:
    schema = ToolSchema({"properties": {"a": {"$ref": "https://127.0.0.1:9/x"}}})
    assert not schema.is_exact("a")
    with pytest.raises(Exception, match="Unresolvable"):
        schema.check({"a": "x"})
