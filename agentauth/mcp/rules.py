"""Which act a tool is: `ToolAction("write", "calendar/{name}")`. No I/O, no MCP."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentauth.protocol.capability import Action, parse_allow_entry
from agentauth.protocol.constraint import Scalar, check_argument, parse_scalar
from agentauth.protocol.encoding import MAX_BODY_BYTES
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from agentauth.protocol.json_fields import quote_safely
from agentauth.protocol.money import Money

from .tool_schema import ToolSchema

Arguments = Mapping[str, Any]

_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~-]+")
# Nothing covers it: a resource has no such character.
_NO_RESOURCE: Final = "%"


@dataclass(frozen=True, slots=True)
class ToolAction:
    """What a call of one tool is, in the verifier's words.

    `kind` is read, write, delete, transact, or `custom:namespace.name`. `{name}` in `resource` is
    the argument of that name, one segment of the resource. `amount`, of a transact only, is the
    name of the argument `{"value", "currency"}`, or a function of the arguments.

    `arguments` are those that constraints may name: every text, boolean and integer the tool takes
    (None), only these names, or a function of the arguments. What is not sent, or is another JSON
    value, is not supplied, so a constraint on it is not satisfied. Nor is what the tool may get as
    another value: an argument of several types, or of a format other than `date`. Such an argument
    in `resource` is refused.

    With `handles_repeats`, the tool looks at `decision(context).repeated` and does not act again.
    Raises InvalidRequestError.
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
            raise InvalidRequestError("amount: is required for transact, and only there.")
        parse_allow_entry(f"{self.kind}:{_PLACEHOLDER.sub('x', self.resource)}", "resource")

    @property
    def needs_key(self) -> bool:
        """Must the operation have a name? Verify requires one for a transact."""
        return self.kind == "transact"

    def action(self, arguments: Arguments, schema: ToolSchema) -> Action:
        """The act of a call. Raises InvalidRequestError for arguments that are not of `schema`."""
        received = schema.check(arguments)
        schema.check_received(arguments, received, self._judged(arguments, schema))
        capability = parse_allow_entry(f"{self.kind}:x")
        return Action(
            capability.type,
            _PLACEHOLDER.sub(lambda found: _segment(found[1], arguments, schema), self.resource),
            self._amount(arguments),
            self._arguments(arguments, schema),
            capability.namespace,
            capability.name,
        )

    def _judged(self, arguments: Arguments, schema: ToolSchema) -> set[str]:
        """The names of the arguments that make the action; all if a function may read any."""
        if callable(self.amount) or callable(self.arguments):
            return {
                name
                for name, value in arguments.items()
                if schema.is_exact(name) or isinstance(value, Mapping | list | int | float)
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
        """The names of the arguments that verify receives, unless a function makes them."""
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
            "a text or an integer alone."
        )
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidRequestError(f"The argument {quote_safely(name)} must be a text.")
    # With a slash, the resource would be another than the one the tool acts on.
    return value if _SEGMENT.fullmatch(value) else _NO_RESOURCE


def _is_scalar(name: str, value: object) -> bool:
    try:
        check_argument(name, "arguments")
        parse_scalar(value, "arguments", max_text=MAX_BODY_BYTES)
    except AgentAuthError:
        return False
    return True
