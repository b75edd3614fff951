"""Mutated grammars: capabilities, envelopes, actions and verify bodies, each broken in one place.

A reader must refuse these, never guess what was meant.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from tests.campaign.mutants import confused, put

Broken = Callable[[Random, Any], Any]

# Names that exist elsewhere in the grammar, or that a lenient reader might accept.
STRANGE_MEMBERS = (
    "x",
    "",
    "Type",
    "type ",
    "constraint",
    "max_amounts",
    "human_id",
    "status",
    "__proto__",
    "\u0000",
)
STRANGE_VALUES: tuple[Any, ...] = (None, True, 1, "x", [], {})
RESOURCES = (
    "", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/./b", "a b", "a\\b", "a%2fb", "ä", "a\n",
    "a\0", "*", "a/*", "x" * 256,
    "calendar\u200b", "саlendar",
)  # fmt: skip
AMOUNTS: tuple[Any, ...] = (
    "", "0", "0.00", "-1", "+1", "1e3", "1e309", "NaN", "Infinity", "١٠", "1,00", "1.", ".5", "01",
    "1.001", "1" * 13, "1_0", " 1",
    "1 ", "0x10", "1\n", "９", 1, 1.5, -1, True, None, [], {"value": "1"},
)  # fmt: skip
CURRENCIES: tuple[Any, ...] = (
    "",
    "eur",
    "EURO",
    "XXX",
    "BTC",
    "EUR ",
    "ＥUR",
    "€",
    978,
    None,
    True,
    [],
)
NUMBERS: tuple[Any, ...] = (0, -1, 1.0, 1.5, True, False, "1", "", None, [], {}, 2**53, 10**9 + 1)
OPERATORS = ("regex", "Max", "maximum", "gt", "", "$ne", "not", "eq ")
CLOCKS: tuple[Any, ...] = (
    "24:01",
    "9:00",
    "09:60",
    "25:00",
    "0900",
    "",
    "09:00:00",
    "٠٩:٠٠",
    "09:00 ",
    900,
    None,
    True,
)
ZONES: tuple[Any, ...] = (
    "",
    "Nowhere/City",
    "localtime",
    "../../etc/passwd",
    "Europe/Berlin\0",
    "utc+1",
    "CEST",
    "/UTC",
    1,
    None,
    [],
)

CAPABILITIES: list[dict[str, Any]] = [
    {"type": "read", "resource": "calendar/work", "constraints": {"visibility": {"in": ["busy",
        "free"]}}},
    {"type": "write", "resource": "files/reports", "constraints": {"size": {"max": 1048576,
        "min": 1}}},
    {"type": "delete", "resource": "files/scratch"},
    {"type": "transact", "resource": "payments", "max_amount": {"value": "100.00",
        "currency": "EUR"}},
    {"type": "custom", "namespace": "acme.crm", "name": "merge", "resource": "contacts",
        "constraints": {"a": {"eq": True}}},
]  # fmt: skip
ENVELOPE: dict[str, Any] = {
    "max_requests_per_minute": 30,
    "max_burst": 5,
    "max_uses": 1000,
    "max_session_seconds": 600,
    "requires_human_online": True,
    "confirm_above": {"value": "50.00", "currency": "EUR"},
    "allowed_time_windows": [
        {"days": ["mon", "tue"], "start": "09:00", "end": "17:00", "zone": "Europe/Berlin"}
    ],
    "budgets": [{"value": "500.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}],
}
ACTIONS: list[dict[str, Any]] = [
    {"type": "read", "resource": "calendar/work", "arguments": {"visibility": "busy", "size": 12,
        "all": True}},
    {"type": "transact", "resource": "payments", "amount": {"value": "12.50", "currency": "EUR"},
        "arguments": {"payee": "ACME"}},
    {"type": "custom", "namespace": "acme.crm", "name": "merge", "resource": "contacts"},
]  # fmt: skip


def _one_of(name: str, *values: Any) -> Broken:
    return lambda random, body: body | {name: random.choice(values)}


def _within(name: str, broken: Broken) -> Broken:
    """Apply the rule to the object, or to one object of the list, that stands under `name`."""

    def rule(random: Random, body: Any) -> Any:
        inner = body[name]
        if isinstance(inner, list):
            index = random.randrange(len(inner))
            return body | {name: put(inner, (index,), broken(random, inner[index]))}
        return body | {name: broken(random, inner)}

    return rule


def _unknown_member(random: Random, body: Any) -> Any:
    """Add an unknown member to this object, or to a nested one whose members are fixed."""
    return body | {random.choice(STRANGE_MEMBERS): random.choice(STRANGE_VALUES)}


def _without(name: str) -> Broken:
    return lambda _, body: {key: each for key, each in body.items() if key != name}


def _confused(name: str) -> Broken:
    return lambda random, body: body | {name: confused(random, body[name])}


def _money(name: str) -> list[Broken]:
    return [
        _within(name, _one_of("value", *AMOUNTS)),
        _within(name, _one_of("currency", *CURRENCIES)),
        _within(name, _without("value")),
        _within(name, _without("currency")),
        _within(name, _unknown_member),
        _confused(name),
    ]


def _constraints(random: Random, body: Any) -> Any:
    operand: Any = random.choice((None, 1.5, {}, [None]))
    broken: Any = random.choice(
        (
            {}, None, [], 1, "x", {random.choice(OPERATORS): 1}, {"eq": operand}, {"in": []},
                {"in": "busy"}, {"in": ["a", "a"]},
            {"in": list(range(65))}, {"not_in": [operand]}, {"min": True},
                {"max": random.choice((operand, []))},
            {"prefix": random.choice((1, "", None, "x" * 1025))}, {"max_length": random.choice((-1,
                "1", 1.0, True))},
            {"eq": 2**53}, {"eq": "\ud800"}, {"eq": "\0"},
        )
    )  # fmt: skip
    names = ("size", "size", "", "a b", "x" * 65, "ä", "a\0")
    name = random.choice(names)
    kept = {"eq": 1} if name != "size" and random.random() < 0.5 else broken
    whole: Any = random.choice(
        ({name: kept}, {name: kept}, [], None, "x", {f"n{index}": {"eq": 1} for index in range(17)})
    )
    return body | {"constraints": whole}


def _break_capability(random: Random, body: Any) -> Any:
    rules: list[Broken] = [
        _unknown_member,
        _without("type"),
        _without("resource"),
        _one_of("type", "Read", "", "execute", "transact ", "*", "admin", None, 1, ["read"]),
        _one_of("resource", *RESOURCES, None, 1, True, ["calendar"], {}),
        _constraints,
        confused,
    ]
    if body["type"] == "transact":
        rules += [*_money("max_amount"), _without("max_amount")]
    else:
        rules += [_one_of("max_amount", {"value": "1.00", "currency": "EUR"}, None)]
    if body["type"] == "custom":
        rules += [
            _one_of("namespace", "", "Acme", "a..b", "a.", "1a", "a" * 300, None, 1),
            _without("namespace"),
        ]
        rules += [_one_of("name", "", "A", "a.b", "a b", "a" * 300, None, 1), _without("name")]
    else:
        rules += [_one_of("namespace", "acme"), _one_of("name", "merge")]
    return random.choice(rules)(random, body)


def break_capabilities(random: Random, good: Any) -> Any:
    """A list of capabilities that every reader must refuse."""
    way = random.random()
    if way < 0.1:
        return random.choice(([], None, {}, "read:calendar", good * 33, [good], [*good, None]))
    index = random.randrange(len(good))
    return put(good, (index,), _break_capability(random, good[index]))


ENVELOPE_RULES: list[Broken] = [
    _unknown_member,
    *(_one_of(name, *NUMBERS) for name in ("max_requests_per_minute", "max_burst", "max_uses")),
    _one_of("max_session_seconds", *NUMBERS, 86_401),
    _one_of("max_burst", 31, 6_001),
    _one_of("max_requests_per_minute", 6_001),
    _without("max_requests_per_minute"),
    _one_of("requires_human_online", 0, 1, "true", None, []),
    *_money("confirm_above")[1:],
    _one_of(
        "allowed_time_windows",
        [],
        None,
        {},
        "always",
        [None],
        [ENVELOPE["allowed_time_windows"][0]] * 17,
    ),
    _within("allowed_time_windows", _one_of("start", *CLOCKS, "24:00", "17:00")),
    _within("allowed_time_windows", _one_of("end", *CLOCKS, "09:00")),
    _within("allowed_time_windows", _one_of("zone", *ZONES)),
    _within(
        "allowed_time_windows",
        _one_of("days", [], ["Mon"], ["mon", "mon"], "mon", None, [1], [["mon"]], ["monday"]),
    ),
    _within("allowed_time_windows", _unknown_member),
    *(_within("allowed_time_windows", _without(name)) for name in ("days", "start", "end", "zone")),
    _one_of("budgets", [], None, {}, [None], ENVELOPE["budgets"] * 2, ENVELOPE["budgets"] * 9),
    *_money("budgets"),
    _within("budgets", _one_of("period", "", "hour", "Day", None, 1, ["day"])),
    _within("budgets", _without("period")),
    _within("budgets", _one_of("zone", *ZONES)),
]


def break_envelope(random: Random, good: Any) -> Any:
    if random.random() < 0.03:
        return confused(random, good)
    return random.choice(ENVELOPE_RULES)(random, good)


def break_action(random: Random, good: Any) -> Any:
    """An action that is the caller's mistake. A malformed resource is not: nothing covers it."""
    rules: list[Broken] = [
        _unknown_member,
        _without("type"),
        _without("resource"),
        _one_of("type", "Read", "", "execute", "*", None, 1, ["read"]),
        _one_of("resource", None, 1.5, 1, True, [], {}, "\0", "\ud800"),
        _one_of(
            "arguments",
            None,
            [],
            "x",
            {"a": None},
            {"a": 1.5},
            {"a": []},
            {"a": {}},
            {"": 1},
            {"a b": 1},
            {"a": 2**53},
        ),
        _one_of("arguments", {f"n{index}": 1 for index in range(1000)}),
        confused,
    ]
    if good["type"] == "transact":
        rules += [*_money("amount"), _without("amount")]
    else:
        rules += [_one_of("amount", {"value": "1.00", "currency": "EUR"}, None)]
    if good["type"] == "custom":
        rules += [_without("namespace"), _without("name"), _one_of("name", "", "A b", None)]
    return random.choice(rules)(random, good)


def break_verify(random: Random, good: Any) -> Any:
    """A verify body that is invalid, never one that merely asks something else."""
    names = ("token", "method", "url")
    rules: list[Broken] = [
        _unknown_member,
        *(_without(name) for name in names),
        *(_confused(name) for name in names),
        *(_one_of(name, "\0", "\ud800", "x" * 70_000) for name in (*names, "proof")),
        _one_of("proof", 1, True, [], {}, 1.5),
        _one_of("method", "", "x" * 33),
        _one_of("dry_run", None, 0, 1, "true", "false", [], {}),
        _one_of("idempotency_key", None, "", "x" * 129, 1, True, [], {}, "\0", "\ud800"),
        lambda random, body: body | {"action": break_action(random, random.choice(ACTIONS))},
        lambda random, body: _without("idempotency_key")(random, body | {"action": ACTIONS[1]}),
    ]
    return random.choice(rules)(random, good)
