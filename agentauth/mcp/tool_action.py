"""Map an MCP tool call to the action that verify decides on. No I/O, no MCP.

For example: `ToolAction("write", "calendar/{name}")`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from agentauth.protocol.argument_constraint import Scalar, check_argument, parse_scalar
from agentauth.protocol.capability import Action, parse_allow_entry
from agentauth.protocol.encoding import MAX_BODY_BYTES
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from agentauth.protocol.json_fields import quote_safely
from agentauth.protocol.money import Money

from .tool_schema_validation import ToolSchema

Arguments = Mapping[str, Any]

_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~-]+")
# No capability covers it, because `%` is not allowed in a resource: the call is denied, and not
# reported as malformed.
_NO_RESOURCE: Final = "%"
# What a tool may get for a string, so that the two can be compared.
_COMPARED: Final = (str, int, float, Decimal, list, Mapping, type(None))


@dataclass(frozen=True, slots=True)
class ToolAction:
    """The action of a call to one tool.

    `kind` is read, write, delete, transact, or `custom:namespace.name`. `{name}` in `resource` is
    the argument of that name, one segment of the resource. `amount`, for transact only, names the
    argument whose value is `{"value", "currency"}`, or is a function that computes the amount from
    the arguments.

    `arguments` chooses which arguments verify receives, so that constraints apply to them: by
    default every string, boolean and integer; with a list, only those names; with a function, what
    it returns. Verify does not receive an argument that is absent or has another JSON type. Nor,
    unless a function returns it, does it receive one whose schema allows several types or a format
    other than `date`, because the tool might get a converted value. A constraint on an argument
    that verify does not receive is not satisfied. A call that uses one of several types or of
    such a format in `resource` is refused.

    If a function reads an argument that a validator of the tool would change, the call is refused.
    The exception is a string that the tool gets as a `datetime` or another object. It is not
    compared, so a function must not read one that a validator changes.

    An operation that was allowed before is answered `already_processed`, and the tool does not run.
    With `handles_repeats` it runs, and must check `decision(context).repeated` and not act again.

    The constructor raises InvalidRequestError for a kind or resource that no capability can have,
    for an amount without transact, and for a transact without an amount.
    """

    kind: str
    resource: str
    amount: str | Callable[[Arguments], Money] | None = None
    arguments: Sequence[str] | Callable[[Arguments], Mapping[str, object]] | None = None
    handles_repeats: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked before the first call."""
        kind = self.kind.partition(":")[0]
        if (kind == "transact") != (self.amount is not None):
            raise InvalidRequestError("amount: must be set for transact, and for no other kind.")
        parse_allow_entry(f"{self.kind}:{_PLACEHOLDER.sub('x', self.resource)}", "resource")

    @property
    def needs_key(self) -> bool:
        """Whether verify requires an idempotency key, as it does for every transact."""
        return self.kind == "transact"

    def action(self, arguments: Arguments, schema: ToolSchema) -> Action:
        """The action of a call.

        Raises InvalidRequestError for arguments that do not fit `schema` or that the tool would
        change.
        """
        received = schema.check(arguments)
        schema.check_received(arguments, received, self._judged(arguments, received, schema))
        capability = parse_allow_entry(f"{self.kind}:x")
        return Action(
            capability.type,
            _PLACEHOLDER.sub(lambda found: _segment(found[1], arguments, schema), self.resource),
            self._amount(arguments),
            self._arguments(arguments, schema),
            capability.namespace,
            capability.name,
        )

    def _judged(
        self, arguments: Arguments, received: Mapping[str, object], schema: ToolSchema
    ) -> set[str]:
        """The names of the arguments that must reach the tool unchanged.

        A function may read any argument. So this has them all, except strings that the tool gets as
        an object such as a `datetime`: one instant has several spellings, so they cannot be
        compared.
        """
        if callable(self.amount) or callable(self.arguments):
            return {
                name
                for name, value in arguments.items()
                if schema.is_exact(name)
                or not isinstance(value, str)
                or isinstance(received.get(name), _COMPARED)
            }
        named = {*_PLACEHOLDER.findall(self.resource), *self._supplied(arguments, schema)}
        return named if self.amount is None else named | {self.amount}

    def _amount(self, arguments: Arguments) -> Money | None:
        if isinstance(self.amount, str):
            return Money.parse(arguments.get(self.amount), self.amount)
        return None if self.amount is None else self.amount(arguments)

    def _arguments(self, arguments: Arguments, schema: ToolSchema) -> dict[str, Scalar]:
        if callable(self.arguments):
            return {
                check_argument(name, "arguments"): parse_scalar(
                    value, name, max_text=MAX_BODY_BYTES
                )
                for name, value in self.arguments(arguments).items()
            }
        return {name: arguments[name] for name in self._supplied(arguments, schema)}

    def _supplied(self, arguments: Arguments, schema: ToolSchema) -> list[str]:
        """The names of the arguments that verify receives if no function chooses them.

        With a function in `self.arguments`, the names of all that it could receive.
        """
        names = arguments if callable(self.arguments) or self.arguments is None else self.arguments
        return [
            name
            for name in names
            if _is_scalar(name, arguments.get(name)) and schema.is_exact(name)
        ]


def _segment(name: str, arguments: Arguments, schema: ToolSchema) -> str:
    value = arguments.get(name)
    if name in arguments and not schema.is_exact(name):
        raise InvalidRequestError(
            f"The argument {quote_safely(name)} names the resource, so the tool must declare it as "
            "only a string or only an integer."
        )
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidRequestError(
            f"The argument {quote_safely(name)} must be a string or an integer."
        )
    # A slash would move the action to another resource than the tool uses. `.` and `..` match here,
    # but no capability covers a resource that has them as a segment (`is_resource`).
    return value if _SEGMENT.fullmatch(value) else _NO_RESOURCE


def _is_scalar(name: str, value: object) -> bool:
    try:
        check_argument(name, "arguments")
        parse_scalar(value, "arguments", max_text=MAX_BODY_BYTES)
    except AgentAuthError:
        return False
    return True
