"""JSON Schemas (2020-12) of the protocol's values: capability, action, money, envelope and parts.

Numbers, names and lists come from the modules that enforce them, so that the two cannot differ.
What a schema cannot express (sums, currencies that must agree, time zones that exist) the protocol
package still checks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agentauth.protocol.argument_constraint import MAX_CONSTRAINTS, MAX_ITEMS, MAX_TEXT, OPERATORS
from agentauth.protocol.behavioural_envelope import DEFAULT_MAXIMA
from agentauth.protocol.capability import (
    MAX_ARGUMENTS,
    MAX_CAPABILITIES,
    MAX_RESOURCE,
    PAYEE,
    TYPES,
)
from agentauth.protocol.hours_and_periods import DAYS, PERIODS
from agentauth.protocol.json_fields import INTEGER_LIMIT
from agentauth.protocol.money import MINOR_DIGITS

Schema = dict[str, Any]

ARGUMENT: Final = "[A-Za-z0-9._~-]{1,64}"
# One path segment that is neither `.` nor `..`, without look-ahead: some regex engines have none.
_SEGMENT: Final = (
    "(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*|[.][A-Za-z0-9_~-][A-Za-z0-9._~-]*|[.][.][A-Za-z0-9._~-]+)"
)
_NAME: Final = "[a-z][a-z0-9_-]*"
_COMPACT: Final = "^[A-Za-z0-9_-]+[.][A-Za-z0-9_-]+[.][A-Za-z0-9_-]+$"


# Tiles in a URL (c2sp.org/tlog-tiles).
LEVEL: Final = "(?:[1-5]?[0-9]|6[0-3])"
TILE: Final = "(?:x[0-9]{3}/){0,6}[0-9]{3}(?:[.]p/(?:[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?"


def ref(name: str) -> Schema:
    """The schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(
    description: str,
    required: Mapping[str, Schema],
    optional: Mapping[str, Schema] | None = None,
    *,
    closed: bool = False,
) -> Schema:
    """An object. `closed` for what we read: it refuses unknown members. What we write is open."""
    schema: Schema = {
        "type": "object",
        "description": description,
        "properties": {**required, **(optional or {})},
    }
    if required:
        schema["required"] = list(required)
    return schema | ({"additionalProperties": False} if closed else {})


def string(description: str = "", **rules: Any) -> Schema:
    """A string under `rules`."""
    return {"type": "string"} | ({"description": description} if description else {}) | rules


def integer(description: str, minimum: int, maximum: int = INTEGER_LIMIT - 1) -> Schema:
    """An integer in the closed range."""
    return {"type": "integer", "description": description, "minimum": minimum, "maximum": maximum}


def array(
    items: Schema, description: str = "", *, minimum: int = 0, maximum: int | None = None
) -> Schema:
    """A list, of at most `maximum` items if that is set."""
    schema: Schema = {"type": "array", "items": items} | (
        {"description": description} if description else {}
    )
    if minimum:
        schema["minItems"] = minimum
    return schema if maximum is None else schema | {"maxItems": maximum}


def one_of(values: Sequence[str], description: str = "") -> Schema:
    """One of these words."""
    return string(description, enum=list(values))


def nullable(schema: Schema) -> Schema:
    """That, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def compact(description: str, maximum: int = 8192) -> Schema:
    """A JWS in compact form."""
    return string(description, pattern=_COMPACT, maxLength=maximum)


def scalar(maximum: int) -> Schema:
    """A string, boolean or integer, texts of at most `maximum` characters."""
    return {
        "anyOf": [
            {"type": "string", "maxLength": maximum},
            {"type": "boolean"},
            {"type": "integer", "minimum": 1 - INTEGER_LIMIT, "maximum": INTEGER_LIMIT - 1},
        ]
    }


def _operands() -> Mapping[str, Schema]:
    several = array(ref("Scalar"), minimum=1, maximum=MAX_ITEMS) | {"uniqueItems": True}
    ordered = {"anyOf": [{"type": "string", "maxLength": MAX_TEXT}, scalar(0)["anyOf"][2]]}
    found = {
        "eq": ref("Scalar") | {"description": "equals the operand, type included"},
        "in": several | {"description": "equals one of them"},
        "not_in": several | {"description": "equals none of them"},
        "min": ordered | {"description": "has the operand's type and is not below it"},
        "max": ordered | {"description": "has the operand's type and is not above it"},
        "prefix": string("begins with the operand", minLength=1, maxLength=MAX_TEXT),
        "max_length": integer("is a string of at most that many code points", 0),
    }
    return {name: found[name] for name in OPERATORS}


def _capability(kinds: Sequence[str], more: Mapping[str, Schema]) -> Schema:
    required = {"type": one_of(kinds), "resource": ref("Resource"), **more}
    return record("", required, {"constraints": ref("Constraints")}, closed=True)


def _action(kinds: Sequence[str], more: Mapping[str, Schema]) -> Schema:
    # Taken even if malformed: then no capability covers it, which is a refusal and no error.
    resource = string(
        "What the action is on. A malformed resource is covered by no capability.", minLength=0
    )
    required = {"type": one_of(kinds), "resource": resource, **more}
    arguments = {
        "type": "object",
        "propertyNames": {"pattern": f"^{ARGUMENT}$"},
        "additionalProperties": ref("Value"),
        "maxProperties": MAX_ARGUMENTS,
        "description": "Compared with the constraints, and recorded: send no secrets. The text "
        f"`{PAYEE}` of a transact says whom it pays.",
    }
    return record("", required, {"arguments": arguments}, closed=True)


def _kinds(make: Any, money: str) -> list[Schema]:
    """The three forms of a capability or action: plain, with an amount, custom."""
    name = string("One part.", pattern=f"^{_NAME}$", maxLength=64)
    namespace = string("Parts joined by dots.", pattern=f"^{_NAME}(?:[.]{_NAME})*$", maxLength=64)
    plain = [kind for kind in TYPES if kind not in {"transact", "custom"}]
    return [
        make(plain, {}),
        make(["transact"], {money: ref("Money")}),
        make(["custom"], {"namespace": namespace, "name": name}),
    ]


def _envelope() -> Schema:
    maxima = DEFAULT_MAXIMA.to_json()
    return record(
        "Limits on behaviour (section 3). Every member is optional; null and empty lists are "
        "refused.",
        {},
        {
            "max_requests_per_minute": integer(
                "GCRA: one use every 60/rate s.", 1, maxima["max_requests_per_minute"]
            ),
            "max_burst": integer(
                "Uses at once; defaults to 1. Requires a rate.", 1, maxima["max_burst"]
            ),
            "allowed_time_windows": array(
                ref("TimeWindow"), minimum=1, maximum=maxima["allowed_time_windows"]
            ),
            "confirm_above": ref("Money")
            | {
                "description": (
                    "A `transact` above it needs a human's confirmation; zero is allowed here."
                )
            },
            "budgets": array(ref("Budget"), minimum=1, maximum=maxima["budgets"]),
            "max_uses": integer(
                "Allowed decisions in the lifetime of the grant.", 1, maxima["max_uses"]
            ),
            "requires_human_online": {
                "type": "boolean",
                "description": "Only while the human's presence lease runs.",
            },
            "max_session_seconds": integer(
                "The lifetime of a token.", 1, maxima["max_session_seconds"]
            ),
        },
        closed=True,
    )


def _clock(*, may_be_24: bool) -> Schema:
    hours = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
    return string("Wall-clock time.", pattern=f"^(?:{hours}|24:00)$" if may_be_24 else f"^{hours}$")


def _money() -> Mapping[str, Schema]:
    return {
        "value": string("A decimal string.", pattern=r"^(?:0|[1-9][0-9]{0,11})(?:[.][0-9]{1,4})?$"),
        "currency": one_of(sorted(MINOR_DIGITS), "An active ISO 4217 code."),
    }


SHAPES: Final[Mapping[str, Schema]] = {
    "Id": string("A UUID in lower case.", format="uuid", pattern="^[0-9a-f-]{36}$"),
    "Time": string("RFC 3339 in UTC.", format="date-time", pattern="Z$"),
    "Thumbprint": string("A key's name: RFC 7638, SHA-256.", pattern="^[A-Za-z0-9_-]{43}$"),
    "Money": record(
        "An amount above zero with at most the currency's minor digits, below 2^53 minor units.",
        _money(),
        closed=True,
    ),
    "Resource": string(
        "A path. A capability covers it and everything below it.",
        pattern=f"^{_SEGMENT}(?:/{_SEGMENT})*$",
        maxLength=MAX_RESOURCE,
    ),
    "Scalar": scalar(MAX_TEXT) | {"description": "A string, boolean or integer."},
    "Value": scalar(65_536) | {"description": "A string, boolean or integer in an action."},
    "Constraint": record(
        "Operators on one argument: its value must satisfy all of them. A missing argument "
        "satisfies none.",
        {},
        _operands(),
        closed=True,
    )
    | {"minProperties": 1},
    "Constraints": {
        "type": "object",
        "description": f"Argument to constraint; at most {MAX_CONSTRAINTS} operators in total.",
        "propertyNames": {"pattern": f"^{ARGUMENT}$"},
        "additionalProperties": ref("Constraint"),
        "maxProperties": MAX_CONSTRAINTS,
    },
    "Capability": {
        "description": "One kind of action on a resource and everything below it (section 3).",
        "oneOf": _kinds(_capability, "max_amount"),
    },
    "Capabilities": array(ref("Capability"), minimum=1, maximum=MAX_CAPABILITIES),
    "Action": {
        "description": "What a service provider asks about (section 3).",
        "oneOf": _kinds(_action, "amount"),
    },
    "TimeWindow": record(
        "Wall-clock times in the zone, `end` excluded. If `end` is before `start`, the window "
        "runs past midnight.",
        {
            "days": array(one_of(DAYS), minimum=1, maximum=len(DAYS)) | {"uniqueItems": True},
            "start": _clock(may_be_24=False),
            "end": _clock(may_be_24=True),
            "zone": string("An IANA zone."),
        },
        closed=True,
    ),
    "Budget": record(
        "The sum of `transact` amounts in one period; weeks begin on Monday, the zone is UTC if "
        "absent.",
        {**_money(), "period": one_of(PERIODS)},
        {"zone": string("An IANA zone.")},
        closed=True,
    ),
    "Envelope": _envelope(),
}


def newest_first(component: str) -> Schema:
    """One page of a list of `component`."""
    return record("Newest first.", {"results": array(ref(component)), "next": nullable(string())})


URL: Final = string("", format="uri")
SECONDS: Final = integer("Seconds.", 0)
