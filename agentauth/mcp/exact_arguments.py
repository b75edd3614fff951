"""The arguments of a tool as its schema has them, checked before verify is asked.

The MCP SDK converts what it gets: `"7"` becomes 7 for an integer, and the text `null` becomes null
where null is allowed. Verify must not judge another value than the one the tool then gets.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.json_fields import quote_safely

from .extra import Draft202012Validator, FormatChecker, SchemaRegistry

# Types of which a value reaches the tool as it was sent, if the schema has no other.
_EXACT: Final = frozenset({"string", "integer", "boolean"})
_DEFINITIONS: Final = "#/$defs/"
# The SDK converts texts of several formats; only a date has a single spelling.
_DATE: Final = "date"
_CONVERTED: Final = ("format", "contentEncoding", "contentMediaType", "contentSchema")
_MAX_REFERENCES: Final = 8


class ToolSchema:
    """`schema` is the `inputSchema` of one tool, JSON Schema 2020-12."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._properties: Mapping[str, Any] = schema.get("properties", {})

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise InvalidRequestError for arguments that are not of the schema as they are.

        An argument that the tool does not have is refused too: under another spelling of a checked
        one, the tool could read what the verifier did not see.
        """
        for name in arguments:
            if name not in self._properties:
                raise InvalidRequestError(f"The tool has no argument {quote_safely(name)}.")
        validator = Draft202012Validator(
            self._schema,
            # An empty registry: no reference of a schema leads to the network.
            registry=SchemaRegistry(),
            format_checker=FormatChecker(formats=(_DATE,)),
        )
        for error in validator.iter_errors(dict(arguments)):
            where = str(error.absolute_path[0]) if error.absolute_path else ""
            named = f"The argument {quote_safely(where)} does" if where else "The arguments do"
            raise InvalidRequestError(f"{named} not fit the tool's schema.")
        for name, value in arguments.items():
            if isinstance(value, str) and self._types(name) != {"string"} and _is_read(value):
                raise InvalidRequestError(
                    f"The argument {quote_safely(name)} must not be JSON in a text."
                )

    def is_exact(self, name: str) -> bool:
        """Does the tool get each value of this argument as it was sent?

        Only if the schema has one type, besides null, and no format but `date`.
        """
        return len(self._types(name) - {"null"}) == 1 and self._types(name) - {"null"} <= _EXACT

    def _types(self, name: str) -> set[str]:
        return _types(self._properties.get(name), self._schema.get("$defs", {}))


def _types(schema: object, definitions: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The types that `schema` allows; `any` for what is not known to be one."""
    if not isinstance(schema, Mapping) or depth > _MAX_REFERENCES:
        return {"any"}
    if any(schema.get(each, _DATE) != _DATE for each in _CONVERTED):
        return {"any"}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith(_DEFINITIONS):
        return _types(definitions.get(reference.removeprefix(_DEFINITIONS)), definitions, depth + 1)
    kind, choices = schema.get("type"), schema.get("anyOf")
    if isinstance(kind, str):
        return {kind}
    if isinstance(choices, list) and choices:
        return set[str]().union(*(_types(each, definitions, depth + 1) for each in choices))
    return {"any"}


def _is_read(value: str) -> bool:
    """Would the MCP SDK replace this text by the JSON in it?"""
    try:
        return not isinstance(json.loads(value), str | int | float)
    except (ValueError, RecursionError):
        return False
