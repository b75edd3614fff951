"""Check a tool's arguments against its schema before verify is asked.

The MCP SDK converts arguments: `"7"` becomes 7 for an integer, and the text `null` becomes null
where null is allowed. Verify must decide on exactly the value that the tool gets.
"""

import functools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.json_fields import quote_safely

from .mcp_sdk import (
    Draft202012Validator,
    FormatChecker,
    JsonSchemaError,
    SchemaError,
    SchemaRegistry,
    SchemaValidator,
    ValidationError,
    core_schema,
    extend_validator,
    to_jsonable_python,
)

logger = logging.getLogger(__name__)

# Types whose values the SDK never converts, if the schema allows no other type (but null).
_EXACT: Final = frozenset({"string", "integer", "boolean"})
_DEFINITIONS: Final = "#/$defs/"
# The SDK converts strings of several formats. Only a date has a single spelling, so the action can
# carry it as text.
_DATE: Final = "date"
_CONVERTED: Final = ("format", "contentEncoding", "contentMediaType", "contentSchema")
# Errors of validators of the tool's own.
_OWN_REFUSALS: Final = frozenset({"value_error", "assertion_error"})
# Depth of nested $ref and anyOf. A schema may refer to itself.
_MAX_REFERENCES: Final = 8


class ToolSchema:
    """The `inputSchema` of one tool, in JSON Schema 2020-12.

    `metadata` is what the MCP SDK validates the tool's arguments with; None if it is not known.
    """

    def __init__(self, schema: Mapping[str, Any], metadata: Any = None) -> None:
        self.schema = schema
        self._metadata = metadata
        self._properties: Mapping[str, Any] = schema.get("properties", {})

    def check(self, arguments: Mapping[str, Any]) -> Mapping[str, object]:
        """Raise InvalidRequestError unless the arguments fit the schema exactly as sent.

        Returns what the tool would get, by the caller's names; nothing if that is not known.

        The caller is not authenticated yet, so the MCP SDK's own validation comes first: it takes
        time linear in the arguments, and only what it accepts meets the rest of the schema.

        Unknown arguments are refused too: the tool could accept one as an alias of a checked
        argument, and would then read a value that the verifier did not see.
        """
        for name in arguments:
            if name not in self._properties:
                raise InvalidRequestError(f"The tool has no argument {quote_safely(name)}.")
        received = self._received(arguments)
        validator = _Validator(
            self.schema,
            # An empty registry, so that no $ref is fetched over the network.
            registry=SchemaRegistry(),
            format_checker=FormatChecker(formats=(_DATE,)),
        )
        for error in validator.iter_errors(dict(arguments)):
            raise _unfit(str(error.absolute_path[0]) if error.absolute_path else "")
        for name, value in arguments.items():
            if isinstance(value, str) and self._types(name) != {"string"} and _is_read(value):
                raise InvalidRequestError(
                    f"The argument {quote_safely(name)} must not be a string that contains JSON; "
                    "send the value itself."
                )
        return received

    def _received(self, arguments: Mapping[str, Any]) -> Mapping[str, object]:
        """What the tool would get: the MCP SDK validates here as it will when it runs the tool."""
        if self._metadata is None:
            return {}
        try:
            parsed = self._metadata.pre_parse_json(dict(arguments))
            model = self._metadata.arg_model.model_validate(parsed)
        except ValidationError as error:
            raise _refusal(error, arguments) from None
        except Exception:
            logger.exception("a validator of the tool failed")
            raise InvalidRequestError("The arguments could not be validated.") from None
        return {
            _wire_name(name, field): getattr(model, name)
            for name, field in type(model).model_fields.items()
        }

    def check_received(
        self, arguments: Mapping[str, Any], received: Mapping[str, object], names: Iterable[str]
    ) -> None:
        """Raise InvalidRequestError if the tool would get another value of one of `names`.

        A validator of the tool's own, which the schema does not show, may change a value.
        `received` is from `check`.
        """
        if self._metadata is None:
            return
        for name in names:
            if name not in arguments:
                continue
            sent, got = arguments[name], received.get(name)
            # Where only a string is allowed, verify may compare it as a string: `07` is not `7`.
            if not (_is_same(sent, got) or (not self.is_exact(name) and _is_number(sent, got))):
                raise InvalidRequestError(
                    f"The tool would change the value of the argument {quote_safely(name)}. Send"
                    " the value that it uses: for example without spaces around it, or in lower"
                    " case."
                )

    def is_exact(self, name: str) -> bool:
        """Whether the tool gets every value of this argument exactly as it was sent.

        True if the schema allows one type of _EXACT, perhaps also null, and no format but `date`.
        """
        return len(self._types(name) - {"null"}) == 1 and self._types(name) - {"null"} <= _EXACT

    def _types(self, name: str) -> set[str]:
        return _types(self._properties.get(name), self.schema.get("$defs", {}))


def _check_pattern(
    validator: Any, pattern: str, instance: object, _schema: object
) -> Iterator[JsonSchemaError]:
    """The keyword `pattern`, in linear time: Python's `re` may backtrack for years.

    Pydantic enforces a tool's patterns with the same engine.
    """
    if isinstance(instance, str) and not _is_found(pattern, instance):
        yield JsonSchemaError("does not match the pattern")


def _is_found(pattern: str, text: str) -> bool:
    try:
        _pattern(pattern).validate_python(text)
    except SchemaError:
        # This engine has no lookaround. The pattern is pydantic's own for Decimal, or one that the
        # tool's author wrote for `python-re`.
        return re.search(pattern, text) is not None
    except ValidationError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _pattern(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


_Validator: Final = extend_validator(Draft202012Validator, {"pattern": _check_pattern})


def _refusal(error: ValidationError, arguments: Mapping[str, Any]) -> InvalidRequestError:
    """Names the argument, unless a validator of the tool's own refused it, for reasons unknown."""
    # Without the value and the context, which may hold what a validator of the tool raised.
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] in _OWN_REFUSALS:
        return InvalidRequestError("The tool refuses these arguments.")
    where = first["loc"][0] if first["loc"] else ""
    named = where if where in arguments else ""
    return _unfit(str(named))


def _unfit(where: str) -> InvalidRequestError:
    named = f"The argument {quote_safely(where)} does" if where else "The arguments do"
    return InvalidRequestError(f"{named} not fit the tool's schema.")


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


def _wire_name(name: str, field: Any) -> str:
    """The name under which a caller sends an argument."""
    aliases = (field.validation_alias, field.alias)
    return next((each for each in aliases if isinstance(each, str)), name)


def _is_same(sent: object, received: object) -> bool:
    """Does the tool get `sent`? A model or a date counts as the JSON that it is written as."""
    if isinstance(sent, Mapping):
        members = received if isinstance(received, Mapping) else _as_json(received)
        # What was not sent has its default.
        return isinstance(members, Mapping) and all(
            name in members and _is_same(value, members[name]) for name, value in sent.items()
        )
    if isinstance(sent, list):
        items = received if isinstance(received, list) else _as_json(received)
        return (
            isinstance(items, list)
            and len(items) == len(sent)
            and all(_is_same(*each) for each in zip(sent, items, strict=True))
        )
    if isinstance(received, Decimal) and isinstance(sent, int | float):
        # Pydantic reads the number's text.
        return received == Decimal(str(sent))
    written = received if type(received) is type(sent) else _as_json(received)
    return isinstance(written, bool) == isinstance(sent, bool) and written == sent


def _is_number(text: object, number: object) -> bool:
    """Is `text` a spelling of `number`? A Decimal takes strings, and `7.60` is also `07.60`."""
    if not isinstance(text, str) or isinstance(number, bool):
        return False
    if not isinstance(number, Decimal | int | float):
        return False
    try:
        return Decimal(text) == (Decimal(str(number)) if isinstance(number, float) else number)
    except InvalidOperation:
        return False


def _as_json(value: object) -> object:
    try:
        return to_jsonable_python(value)
    except ValueError:
        # No JSON: nothing equals it.
        return _as_json
