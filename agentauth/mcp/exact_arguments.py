"""Check a tool's arguments against its schema before verify is asked.

The MCP SDK converts arguments: `"7"` becomes 7 for an integer, and the text `null` becomes null
where null is allowed. Verify must decide on exactly the value that the tool gets.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.json_fields import quote_safely

from .extra import Draft202012Validator, FormatChecker, SchemaRegistry

# Types whose values the SDK never converts, if the schema allows no other type (but null).
_EXACT: Final = frozenset({"string", "integer", "boolean"})
_DEFINITIONS: Final = "#/$defs/"
# The SDK converts strings of several formats. Only a date has a single spelling, so the action can
# carry it as text.
_DATE: Final = "date"
_CONVERTED: Final = ("format", "contentEncoding", "contentMediaType", "contentSchema")
# Depth of nested $ref and anyOf. A schema may refer to itself.
_MAX_REFERENCES: Final = 8


class ToolSchema:
    """The `inputSchema` of one tool, in JSON Schema 2020-12."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._properties: Mapping[str, Any] = schema.get("properties", {})

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise InvalidRequestError unless the arguments fit the schema exactly as sent.

        Unknown arguments are refused too: the tool could accept one as an alias of a checked
        argument, and would then read a value that the verifier did not see.
        """
        for name in arguments:
            if name not in self._properties:
                raise InvalidRequestError(f"The tool has no argument {quote_safely(name)}.")
        validator = Draft202012Validator(
            self._schema,
            # An empty registry, so that no $ref is fetched over the network.
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
                    f"The argument {quote_safely(name)} must not be a string that contains JSON; "
                    "send the value itself."
                )

    def is_exact(self, name: str) -> bool:
        """Whether the tool gets every value of this argument exactly as it was sent.

        True if the schema allows one type of _EXACT, perhaps also null, and no format but `date`.
        """
        return len(self._types(name) - {"null"}) == 1 and self._types(name) - {"null"} <= _EXACT

    def _types(self, name: str) -> set[str]:
        return _types(self._properties.get(name), self._schema.get("$defs", {}))


def _types(schema: object, definitions: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The types that `schema` allows; `any` where they cannot be determined."""
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
    """Whether the MCP SDK would replace this string with the JSON value that it contains."""
    try:
        return not isinstance(json.loads(value), str | int | float)
    except (ValueError, RecursionError):
        return False
