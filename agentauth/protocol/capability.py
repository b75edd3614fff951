"""Capabilities and actions, and their grammar. `capability_comparison.py` compares them.

Money is in `money.py`, constraints in `constraint.py`, behavioural limits in
`behavioural_envelope.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .argument_constraint import (
    Constraint,
    Scalar,
    check_argument,
    constraints_json,
    parse_constraints,
    parse_scalar,
)
from .encoding import MAX_BODY_BYTES, canonical_json, sha256
from .errors import InvalidRequestError
from .fast_dataclass import per_call
from .json_fields import items, members, quote_safely, text
from .money import Money

TYPES: Final = ("read", "write", "delete", "transact", "custom")
# Irreversible types: granting one requires a second explicit step (docs/protocol.md section 6).
GRAVE_TYPES: Final = frozenset({"delete", "transact"})
MAX_CAPABILITIES: Final = 32
MAX_ALLOW_ENTRIES: Final = 64
MAX_RESOURCE: Final = 255
MAX_ARGUMENTS: Final = 64
# The argument that says whom a transact pays, if it is a string (docs/protocol.md section 3).
PAYEE: Final = "payee"
# Bytes of canonical JSON. A human may have to read all of it. A page shows an invisible character
# as an escape such as `\x7f`, so what is read can be several times as long.
MAX_TRANSACT: Final = 2_048

_RESOURCE: Final = re.compile(r"[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*")
# Only namespaces have dots, so `custom:namespace.name:resource` splits in one way. Lower case only:
# a human reads names that differ only in case as one name.
_NAMESPACE: Final = re.compile(r"[a-z][a-z0-9_-]*(?:\.[a-z][a-z0-9_-]*)*")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")
_MAX_NAME: Final = 64


def is_resource(value: str) -> bool:
    """Is `value` a path of `A-Z a-z 0-9 . _ ~ -` segments joined by `/`, at most 255 characters?"""
    if len(value) > MAX_RESOURCE or _RESOURCE.fullmatch(value) is None:
        return False
    # Otherwise `files/reports/../secrets` would pass as lying under `files/reports`.
    return "." not in value or {".", ".."}.isdisjoint(value.split("/"))


def lies_under(asked: str, granted: str) -> bool:
    """Is `asked` at or below `granted`? By whole segments: `calendars` is not under `calendar`.

    A malformed `asked` is under nothing.
    """
    return is_resource(asked) and (asked == granted or asked.startswith(granted + "/"))


@dataclass(frozen=True, slots=True)
class Capability:
    """One permitted kind of act on a resource and everything below it (docs/protocol.md section 3).

    `max_amount` is set for every `transact`, except in an allow-list entry: there None sets no
    ceiling, and the grant sets one. Build with the class methods or `parse_capability`: they check.
    """

    type: str
    resource: str
    constraints: tuple[Constraint, ...] = ()
    max_amount: Money | None = None
    namespace: str | None = None
    name: str | None = None

    @classmethod
    def read(
        cls, resource: str, *, constraints: Mapping[str, object] | None = None
    ) -> "Capability":
        """See the resource. Raises InvalidRequestError, like the four below."""
        return parse_capability(
            {"type": "read", "resource": resource, "constraints": dict(constraints or {})}
        )

    @classmethod
    def write(
        cls, resource: str, *, constraints: Mapping[str, object] | None = None
    ) -> "Capability":
        """Create and change below the resource; does not include reading it."""
        return parse_capability(
            {"type": "write", "resource": resource, "constraints": dict(constraints or {})}
        )

    @classmethod
    def delete(
        cls, resource: str, *, constraints: Mapping[str, object] | None = None
    ) -> "Capability":
        """Remove what is below the resource."""
        return parse_capability(
            {"type": "delete", "resource": resource, "constraints": dict(constraints or {})}
        )

    @classmethod
    def transact(
        cls,
        resource: str,
        *,
        max_amount: Money | tuple[str, str],
        constraints: Mapping[str, object] | None = None,
    ) -> "Capability":
        """Move money, at most `max_amount` in one action: a Money, or e.g. `("100.00", "EUR")`.

        Raises InvalidRequestError.
        """
        match max_amount:
            case Money():
                money = max_amount
            case tuple((value, currency)):
                money = Money.of(value, currency, "max_amount")
            case _:
                # Many callers write one string, "100.00 EUR".
                raise InvalidRequestError(
                    'max_amount: must be an amount and a currency. Write ("100.00", "EUR").'
                )
        body = {"type": "transact", "resource": resource, "max_amount": money.to_json()}
        return parse_capability({**body, "constraints": dict(constraints or {})})

    @classmethod
    def custom(
        cls,
        namespace: str,
        name: str,
        resource: str,
        *,
        constraints: Mapping[str, object] | None = None,
    ) -> "Capability":
        """The service provider's own act, e.g. `("acme.crm", "merge_contacts", "contacts")`."""
        body = {"type": "custom", "namespace": namespace, "name": name, "resource": resource}
        return parse_capability({**body, "constraints": dict(constraints or {})})

    @property
    def label(self) -> str:
        """`type:resource` or `custom:namespace.name:resource`, as in allow-lists and `scope`."""
        kind = f"custom:{self.namespace}.{self.name}" if self.type == "custom" else self.type
        return f"{kind}:{self.resource}"

    @property
    def is_limitless(self) -> bool:
        """Is there neither a constraint nor an amount? Only then may `scope` name it."""
        return not self.constraints and self.max_amount is None

    def to_json(self) -> dict[str, object]:
        """The wire form without empty members, since a token must stay small."""
        body: dict[str, object] = {"type": self.type, "resource": self.resource}
        if self.type == "custom":
            body |= {"namespace": self.namespace, "name": self.name}
        if self.max_amount is not None:
            body["max_amount"] = self.max_amount.to_json()
        if self.constraints:
            body["constraints"] = constraints_json(self.constraints)
        return body


@per_call(frozen=True, slots=True)
class Action:  # noqa: PLW1641 — the decorator makes the hash, of all but the arguments
    """What a service provider asks about. No capability covers a malformed `resource`."""

    type: str
    resource: str
    amount: Money | None = None
    arguments: Mapping[str, Scalar] = field(default_factory=dict, hash=False)
    namespace: str | None = None
    name: str | None = None

    # Written by hand: the generated one would treat the arguments `true` and `1` as equal.
    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Action) and self._identity() == other._identity()
        )

    def _identity(self) -> tuple[object, ...]:
        arguments = {name: (type(value), value) for name, value in self.arguments.items()}
        return (self.type, self.resource, self.amount, arguments, self.namespace, self.name)

    @property
    def payee(self) -> str | None:
        """Whom it pays; None if it is no transact, or does not say whom."""
        value = self.arguments.get(PAYEE) if self.type == "transact" else None
        return value if isinstance(value, str) else None

    def to_json(self) -> dict[str, object]:
        """The wire form, always with `arguments`: omitting it and sending `{}` are the same."""
        body: dict[str, object] = {
            "type": self.type,
            "resource": self.resource,
            "arguments": dict(self.arguments),
        }
        if self.type == "custom":
            body |= {"namespace": self.namespace, "name": self.name}
        if self.amount is not None:
            body["amount"] = self.amount.to_json()
        return body

    @property
    def needs_durable_decision(self) -> bool:
        """Whether it moves money or destroys something.

        Then its decision is stored before the answer is sent, so that a crash cannot forget it.
        """
        return self.type in GRAVE_TYPES

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON: equal digests mean equal actions."""
        return sha256(canonical_json(self.to_json()))


def _parse_kind(body: Mapping[str, object], where: str) -> tuple[str, str | None, str | None]:
    """The type, and its namespace and name if it is `custom`."""
    kind = body["type"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise InvalidRequestError(f"{where}.type: must be one of {', '.join(TYPES)}.")
    if kind == "custom":
        namespace, name = (body.get(member) for member in ("namespace", "name"))
        _check_name(namespace, _NAMESPACE, f"{where}.namespace")
        _check_name(name, _NAME, f"{where}.name")
        return kind, str(namespace), str(name)
    for member in ("namespace", "name"):
        if member in body:
            raise InvalidRequestError(f"{where}.{member}: is allowed only for the type custom.")
    return kind, None, None


def _check_name(value: object, grammar: re.Pattern[str], where: str) -> None:
    if not isinstance(value, str) or len(value) > _MAX_NAME or grammar.fullmatch(value) is None:
        raise InvalidRequestError(
            f"{where}: must be 1 to {_MAX_NAME} characters from a-z 0-9 _ - beginning with a letter"
            f"{', in parts joined by dots.' if grammar is _NAMESPACE else '.'}"
        )


def _parse_resource(value: object, where: str) -> str:
    if not isinstance(value, str) or not is_resource(value):
        raise InvalidRequestError(
            f"{where}.resource: must be a path of segments of A-Z a-z 0-9 . _ ~ - joined by '/',"
            f" at most {MAX_RESOURCE} characters, without '.' and '..'."
        )
    return value


def parse_capability(obj: object, where: str = "capability") -> Capability:
    """Read one capability of a request, manifest or token (docs/protocol.md section 3).

    Raises InvalidRequestError naming the member: unknown members, operators and types are refused;
    `transact` must have a `max_amount`, other types must not.
    """
    optional = ("constraints", "max_amount", "namespace", "name")
    body = members(obj, where, required=("type", "resource"), optional=optional)
    kind, namespace, name = _parse_kind(body, where)
    resource = _parse_resource(body["resource"], where)
    # Without a ceiling one approval would allow any sum; on another type a ceiling limits nothing.
    if (kind == "transact") != ("max_amount" in body):
        verb = "is missing." if kind == "transact" else "is allowed only for the type transact."
        raise InvalidRequestError(f"{where}.max_amount: {verb}")
    amount = Money.parse(body["max_amount"], f"{where}.max_amount") if kind == "transact" else None
    constraints = parse_constraints(body.get("constraints", {}), f"{where}.constraints")
    return Capability(kind, resource, constraints, amount, namespace, name)


def parse_capabilities(obj: object, where: str = "capabilities") -> tuple[Capability, ...]:
    """Read 1 to 32 capabilities. Raises InvalidRequestError naming the index and the member."""
    entries = items(obj, where, maximum=MAX_CAPABILITIES)
    return tuple(
        parse_capability(entry, f"{where}[{index}]") for index, entry in enumerate(entries)
    )


def parse_allow_entry(entry: object, where: str = "allow") -> Capability:
    """Read an allow-list entry. Only here may a `transact` lack `max_amount`: the grant sets it.

    Raises InvalidRequestError.
    """
    kind, *rest = entry.split(":") if isinstance(entry, str) else ("",)
    # There are no wildcards: an entry names one type and one resource.
    if len(rest) != (2 if kind == "custom" else 1):
        raise InvalidRequestError(
            f"{where}: must be type:resource or custom:namespace.name:resource."
        )
    body: dict[str, object] = {"type": kind}
    if kind == "custom":
        body["namespace"], _, body["name"] = rest[0].rpartition(".")
    kind, namespace, name = _parse_kind(body, where)
    return Capability(kind, _parse_resource(rest[-1], where), namespace=namespace, name=name)


def parse_allow_list(obj: object, where: str = "allow") -> tuple[Capability, ...]:
    """Read an allow-list of at most 64 entries. An empty one is valid and allows nothing.

    Raises InvalidRequestError naming the index.
    """
    entries = items(obj, where, minimum=0, maximum=MAX_ALLOW_ENTRIES)
    return tuple(
        parse_allow_entry(entry, f"{where}[{index}]") for index, entry in enumerate(entries)
    )


def parse_action(obj: object, where: str = "action") -> Action:
    """Read the `action` of a verify request (docs/protocol.md sections 3 and 8).

    A malformed resource is accepted, but no capability covers it (`insufficient_scope`): the path
    may come from the agent, while the service provider's call is valid. All other errors are the
    service provider's and raise InvalidRequestError: an unknown type, a `transact` without a
    positive amount or longer than a human can read, an amount on another type.
    """
    optional = ("arguments", "amount", "namespace", "name")
    body = members(obj, where, required=("type", "resource"), optional=optional)
    kind, namespace, name = _parse_kind(body, where)
    # As long as the request body allows: it is compared, and never stored in a token.
    resource = text(body["resource"], f"{where}.resource", minimum=0, maximum=MAX_BODY_BYTES)
    if (kind == "transact") != ("amount" in body):
        verb = "is missing." if kind == "transact" else "is allowed only for the type transact."
        raise InvalidRequestError(f"{where}.amount: {verb}")
    amount = Money.parse(body["amount"], f"{where}.amount") if kind == "transact" else None
    arguments = _parse_arguments(body.get("arguments", {}), f"{where}.arguments")
    if kind == "transact" and len(canonical_json(body)) > MAX_TRANSACT:
        raise InvalidRequestError(
            f"{where}: a transact must not be longer than {MAX_TRANSACT} bytes, so that a human "
            "can read it."
        )
    return Action(kind, resource, amount, arguments, namespace, name)


def _parse_arguments(obj: object, where: str) -> dict[str, Scalar]:
    if not isinstance(obj, dict) or len(obj) > MAX_ARGUMENTS:
        raise InvalidRequestError(
            f"{where}: must be a JSON object of at most {MAX_ARGUMENTS} members."
        )
    return {
        check_argument(name, where): parse_scalar(
            value, f"{where}.{quote_safely(str(name))}", max_text=MAX_BODY_BYTES
        )
        for name, value in obj.items()
    }
