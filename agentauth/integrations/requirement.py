"""`requires`: which act a route is, in the one form that every integration takes.

    requires("read", "calendar/{id}")
    requires("write", "files/{path:path}", arguments=["size"])
    requires("transact", "payments", amount="amount", arguments={"payee": "to"})
    requires("custom:acme.crm.merge", "contacts", arguments=lambda request: {"all": True})

No framework and no I/O. A mistake in a requirement raises ConfigurationError at import.
"""

import datetime as dt
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from agentauth.protocol.argument_constraint import Scalar, check_argument, parse_scalar
from agentauth.protocol.capability import TYPES, Action, parse_allow_entry
from agentauth.protocol.encoding import MAX_BODY_BYTES
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from agentauth.protocol.money import Money

from .incoming_request import Incoming

# Attributes of a view, endpoint or handler: its requirement, and that it is open to every caller.
GUARDED: Final = "agentauth_guarded"
OPEN: Final = "agentauth_open"
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_NAMED_KINDS: Final = ", ".join(kind for kind in TYPES if kind != "custom")

AmountOf = Callable[[Incoming], Money]
ArgumentsOf = Callable[[Incoming], Mapping[str, object]]


class ConfigurationError(Exception):
    """A mistake in the service provider's own code or settings. No request is allowed until it is
    mended.
    """


@dataclass(frozen=True, slots=True, repr=False)
class Requirement:
    """What `requires` made. `reads_body`: the integration must give the body to `action`."""

    kind: str
    namespace: str | None
    name: str | None
    resource: str
    amount: Money | str | AmountOf | None
    arguments: Mapping[str, str] | ArgumentsOf
    handles_repeats: bool
    reads_body: bool

    @property
    def label(self) -> str:
        """`type:resource` with its placeholders, as in an allow-list."""
        custom = f"{self.kind}:{self.namespace}.{self.name}"
        return f"{custom if self.kind == 'custom' else self.kind}:{self.resource}"

    def __repr__(self) -> str:
        return f"requires({self.label})"

    @property
    def placeholders(self) -> frozenset[str]:
        """The path parameters that the resource names."""
        return frozenset(name for name, _ in _PLACEHOLDER.findall(self.resource))

    def check_parameters(self, known: Iterable[str], where: str) -> None:
        """Raises ConfigurationError if the resource names a path parameter that is not `known`."""
        names = sorted(known)
        for missing in sorted(self.placeholders - set(names)):
            has = f"only {', '.join(names)}" if names else "none"
            raise ConfigurationError(
                f"{self!r} names {{{missing}}}, but {where} has no such path parameter: it has"
                f" {has}."
            )

    def check_function(self, view: Callable[..., object]) -> None:
        """`check_parameters` for a view that gets the path parameters as arguments by name."""
        parameters = inspect.signature(view).parameters
        if all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
            self.check_parameters(parameters, getattr(view, "__qualname__", repr(view)))

    def action(self, incoming: Incoming) -> Action:
        """The act that this request is. Raises InvalidRequestError if it cannot be told.

        Raises ConfigurationError if the route lacks a path parameter that the resource names.
        """
        self.check_parameters(incoming.parameters, "the route")
        self._check_spelling(incoming)
        if not self.reads_body:
            incoming = replace(incoming, read_body=_unread)
        return Action(
            self.kind,
            _PLACEHOLDER.sub(lambda match: _segment(match, incoming.parameters), self.resource),
            self._amount(incoming),
            self._arguments(incoming),
            self.namespace,
            self.name,
        )

    def _check_spelling(self, incoming: Incoming) -> None:
        """Raises InvalidRequestError if functions of the route get another value than is judged."""
        for name, values in incoming.converted().items():
            if name not in incoming.parameters:
                continue
            judged = parameter_text(name, incoming.parameters[name])
            for each in values:
                text = parameter_text(name, each)
                if text != judged:
                    raise InvalidRequestError(
                        f"The path parameter {name} must be written as {quote(text, safe='')}."
                    )

    def _amount(self, incoming: Incoming) -> Money | None:
        if isinstance(self.amount, str):
            return Money.parse(incoming.member(self.amount), self.amount)
        found = self.amount(incoming) if callable(self.amount) else self.amount
        if found is not None and not isinstance(found, Money):
            raise ConfigurationError(f"The function `amount` of {self!r} must return Money.")
        return found

    def _arguments(self, incoming: Incoming) -> dict[str, Scalar]:
        if callable(self.arguments):
            found = self.arguments(incoming)
            if not isinstance(found, Mapping):
                raise ConfigurationError(
                    f"The function `arguments` of {self!r} must return a mapping."
                )
        elif self.arguments:
            body = incoming.json()
            # A missing one breaks a constraint on it, if there is one.
            found = {
                name: body[member] for name, member in self.arguments.items() if member in body
            }
        else:
            return {}
        return {
            check_argument(name, "arguments"): parse_scalar(value, name, max_text=MAX_BODY_BYTES)
            for name, value in found.items()
        }


def requires(
    kind: str,
    resource: str,
    *,
    amount: Money | str | AmountOf | None = None,
    arguments: Sequence[str] | Mapping[str, str] | ArgumentsOf = (),
    handles_repeats: bool = False,
    reads_body: bool | None = None,
) -> Requirement:
    """A route that does `kind` on `resource`.

    `kind` is read, write, delete, transact, or `custom:namespace.name`. `{id}` in `resource` is a
    path parameter of the route and one segment; `{path:path}` may span several. Whatever a
    resource cannot contain is percent-encoded, so no capability covers it. A converted parameter
    is judged as the text of the value that the route gets.

    `amount`, of a transact only, is the name of a member `{"value", "currency"}` of the JSON body,
    Money, or a function of the request (`Incoming`). `arguments` are the names of body members, a
    mapping from an argument to its member, or such a function. A function may raise
    InvalidRequestError, and is given the body unless `reads_body` is false: use that for uploads,
    since a body that is read here is at most 65,536 bytes.

    `handles_repeats`: the route looks at `repeated` of its decision and does not act again.
    Otherwise an operation that was allowed before is answered 409 `already_processed`.

    Raises ConfigurationError.
    """
    entry = _entry(kind, resource)
    _check_amount(entry.type, amount)
    names = _argument_names(arguments)
    needs = isinstance(amount, str) or callable(amount) or bool(names)
    if reads_body is False and (isinstance(amount, str) or (names and not callable(names))):
        raise ConfigurationError("`reads_body=False` does not go with names of body members.")
    return Requirement(
        entry.type,
        entry.namespace,
        entry.name,
        resource,
        amount,
        names,
        handles_repeats,
        needs if reads_body is None else reads_body,
    )


def _unread() -> bytes:
    raise ConfigurationError("This function reads the body: leave out `reads_body=False`.")


def requirement_of(view: object) -> Requirement | None:
    """The requirement that `protected` put on a view; None if there is none."""
    found = getattr(view, GUARDED, None)
    return found if isinstance(found, Requirement) else None


def _entry(kind: str, resource: str) -> Any:
    """The parsed kind and resource. Raises ConfigurationError."""
    for name, value in (("kind", kind), ("resource", resource)):
        if not isinstance(value, str):
            raise ConfigurationError(f"`{name}` of requires must be a string, not {value!r}.")
    if kind not in TYPES and not kind.startswith("custom:"):
        raise ConfigurationError(
            f"{kind!r} is no kind of act: use {_NAMED_KINDS}, or custom:namespace.name."
        )
    filled = _PLACEHOLDER.sub("x", resource)
    if "{" in filled or "}" in filled:
        raise ConfigurationError(
            f"{resource!r}: a placeholder must be {{name}} or {{name:path}}, with the name of a"
            " path parameter."
        )
    try:
        return parse_allow_entry(f"{kind}:{filled}", "requires")
    except AgentAuthError as error:
        raise ConfigurationError(f"requires({kind!r}, {resource!r}): {error.description}") from None


def _check_amount(kind: str, amount: Money | str | AmountOf | None) -> None:
    if (kind == "transact") != (amount is not None):
        raise ConfigurationError(
            "`amount` is missing: a transact needs one, such as amount='amount' for that member of"
            " the body."
            if amount is None
            else "`amount` is only for the kind transact."
        )
    if callable(amount):
        _check_callable("amount", amount)
    elif amount is not None and not isinstance(amount, str | Money):
        raise ConfigurationError(
            "`amount` must be the name of a body member, Money, or a function of the request."
        )


def _argument_names(
    arguments: Sequence[str] | Mapping[str, str] | ArgumentsOf,
) -> Mapping[str, str] | ArgumentsOf:
    if callable(arguments):
        _check_callable("arguments", arguments)
        return arguments
    if isinstance(arguments, str) or not isinstance(arguments, Sequence | Mapping):
        raise ConfigurationError(
            "`arguments` must be a list of body members such as ['size'], a mapping from argument"
            " to member, or a function of the request."
        )
    pairs = (
        dict(arguments)
        if isinstance(arguments, Mapping)
        else {each: each for each in arguments if isinstance(each, str)}
    )
    if len(pairs) != len(arguments) or not all(isinstance(each, str) for each in pairs.values()):
        raise ConfigurationError("`arguments` must name each body member once, as a string.")
    for name in pairs:
        try:
            check_argument(name, "arguments")
        except AgentAuthError as error:
            raise ConfigurationError(error.description) from None
    return pairs


def _check_callable(name: str, function: Callable[..., object]) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"`{name}` must be a plain function, not a coroutine function.")
    try:
        signature = inspect.signature(function)
    except ValueError:
        # A built-in function that does not say what it takes.
        return
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigurationError(
            f"`{name}` must be a function of one argument, the request."
        ) from None


def parameter_text(name: str, value: object) -> str:
    """The text of a path parameter that verify judges: that of the value which the route gets.

    Equal texts are equal values, so `7` is judged for a route that gets 7, however the path spells
    it. Raises ConfigurationError for a value that has no such text, for example a database row.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Not `str(value)`, which a subclass may override.
        return "".join(value)
    if isinstance(value, int | float | Decimal | UUID):
        return str(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    raise ConfigurationError(
        f"The path parameter {name} is converted to {type(value).__name__}, whose text could stand"
        " for several values. Convert it to a string, a number, a date or a UUID, and look the rest"
        " up in the view."
    )


def _segment(match: re.Match[str], parameters: Mapping[str, object]) -> str:
    text = parameter_text(match[1], parameters[match[1]])
    return quote(text, safe="/" if match[2] else "", errors="replace")
