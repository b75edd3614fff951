"""Hypothesis strategies that make near-misses: few names, few values, so that two draws often
almost agree.
"""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from agentauth.protocol.argument_constraint import Constraint
from agentauth.protocol.behavioural_envelope import Budget, Envelope, TimeWindow
from agentauth.protocol.capability import Action, Capability, parse_capability
from agentauth.protocol.capability_comparison import choose
from agentauth.protocol.hours_and_periods import DAYS, PERIODS
from agentauth.protocol.money import Money

# Values that a careless comparison confuses: true and 1, "1" and 1, composed and decomposed
# letters, surrogate order.
SCALARS: list[str | bool | int] = [
    True,
    False,
    0,
    1,
    2,
    3,
    "",
    "1",
    "a",
    "ab",
    "abc",
    "é",
    "é",
    "𝟘",
    "￿",
]
ARGUMENTS = ["size", "to"]
RESOURCES = ["a", "a/b", "a/b/c", "ab", "a/bc", "A"]

scalars = st.sampled_from(SCALARS)


def covers(granted: Capability, action: Action) -> bool:
    """How a grant of only this capability answers the action."""
    return choose([granted], action).capability is not None


_lists = st.lists(scalars, min_size=1, max_size=3, unique_by=lambda value: (type(value), value))


@st.composite
def operands(draw: st.DrawFn, operator: str) -> Any:
    if operator in {"in", "not_in"}:
        return draw(_lists)
    if operator in {"min", "max"}:
        return draw(st.sampled_from([value for value in SCALARS if not isinstance(value, bool)]))
    if operator == "prefix":
        return draw(
            st.sampled_from([value for value in SCALARS if isinstance(value, str) and value])
        )
    if operator == "max_length":
        return draw(st.integers(0, 4))
    return draw(scalars)


@st.composite
def constraint_objects(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for _ in range(draw(st.integers(0, 3))):
        operator = draw(
            st.sampled_from(["eq", "in", "not_in", "min", "max", "prefix", "max_length"])
        )
        result.setdefault(draw(st.sampled_from(ARGUMENTS)), {})[operator] = draw(operands(operator))
    return result


@st.composite
def capabilities(draw: st.DrawFn) -> Capability:
    kind = draw(st.sampled_from(["read", "transact", "custom"]))
    body: dict[str, Any] = {"type": kind, "resource": draw(st.sampled_from(RESOURCES))}
    if kind == "transact":
        body["max_amount"] = draw(money_objects())
    if kind == "custom":
        body |= {
            "namespace": draw(st.sampled_from(["n", "n.m"])),
            "name": draw(st.sampled_from(["x", "m"])),
        }
    body["constraints"] = draw(constraint_objects())
    return parse_capability(body)


@st.composite
def money_objects(draw: st.DrawFn) -> dict[str, str]:
    return Money(draw(st.integers(1, 4)), draw(st.sampled_from(["EUR", "EUR", "JPY"]))).to_json()


@st.composite
def tightened(draw: st.DrawFn, wide: Capability) -> Capability:
    """A capability near `wide`: usually narrower, sometimes only seemingly so."""
    resource = wide.resource + draw(st.sampled_from(["", "", "/b", "b"]))
    kept = [
        each if draw(st.integers(0, 5)) else Constraint(each.argument, each.operator, other)
        for each in wide.constraints
        for other in [_operand(draw(operands(each.operator)))]
        if draw(st.integers(0, 9))
    ]
    extra = parse_capability(
        {"type": "read", "resource": "a", "constraints": draw(constraint_objects())}
    ).constraints
    constraints = {(each.argument, each.operator): each for each in (*extra, *kept)}
    amount = wide.max_amount and Money(
        max(1, wide.max_amount.minor + draw(st.integers(-2, 1))), wide.max_amount.currency
    )
    return Capability(
        wide.type,
        resource,
        tuple(constraints[key] for key in sorted(constraints)),
        amount,
        wide.namespace,
        wide.name,
    )


def _operand(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@st.composite
def actions_for(draw: st.DrawFn, granted: Sequence[Capability]) -> Action:
    """An action near one of `granted`, so that both answers happen often."""
    target = draw(st.sampled_from(list(granted)))
    near = [value for each in target.constraints for value in each.values]
    values = st.sampled_from([*near, *SCALARS])
    arguments = {name: draw(values) for name in ARGUMENTS if draw(st.integers(0, 6))}
    amount = None
    if target.max_amount is not None:
        minor = max(1, target.max_amount.minor + draw(st.integers(-2, 1)))
        amount = Money(minor, draw(st.sampled_from([target.max_amount.currency] * 4 + ["USD"])))
    resource = target.resource + draw(st.sampled_from(["", "", "/b", "b", "/..", "/"]))
    return Action(target.type, resource, amount, arguments, target.namespace, target.name)


ZONES = ["UTC", "Europe/Berlin"]


@st.composite
def windows(draw: st.DrawFn) -> TimeWindow:
    start = draw(st.sampled_from([0, 60, 120, 1320, 1439]))
    end = draw(st.sampled_from([value for value in (0, 60, 180, 1380, 1440) if value != start]))
    days = draw(st.lists(st.sampled_from(DAYS[:3]), min_size=1, max_size=3, unique=True))
    return TimeWindow(
        tuple(day for day in DAYS if day in days), start, end, draw(st.sampled_from(ZONES))
    )


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    rate = draw(st.none() | st.integers(1, 6))
    burst = None if rate is None else draw(st.none() | st.integers(1, rate))
    kinds = st.tuples(st.sampled_from(PERIODS), st.sampled_from(ZONES))
    budgets = draw(st.lists(kinds, max_size=2, unique=True))
    return Envelope(
        max_requests_per_minute=rate,
        max_burst=burst,
        allowed_time_windows=draw(
            st.none() | st.lists(windows(), min_size=1, max_size=2).map(tuple)
        ),
        confirm_above=draw(st.none() | st.integers(0, 3).map(lambda minor: Money(minor, "EUR"))),
        budgets=tuple(
            Budget(Money(draw(st.integers(1, 9)), "EUR"), period, zone) for period, zone in budgets
        ),
        max_uses=draw(st.none() | st.integers(1, 4)),
        requires_human_online=draw(st.booleans()),
        max_session_seconds=draw(st.none() | st.integers(1, 3)),
    )


def _lower(draw: st.DrawFn, limit: int | None) -> int | None:
    if limit is None:
        return draw(st.none() | st.integers(1, 6))
    return max(1, limit - draw(st.sampled_from([0, 0, 1, 2, -1])))


@st.composite
def tightened_envelope(draw: st.DrawFn, wide: Envelope) -> Envelope:
    """An envelope near `wide`, usually narrower."""
    rate = _lower(draw, wide.max_requests_per_minute)
    open_ = wide.allowed_time_windows
    if open_ is not None:
        open_ = tuple(
            TimeWindow(each.days, each.start, end, each.zone)
            for each in open_
            for end in [each.end - draw(st.sampled_from([0, 0, 30, -30]))]
            if 0 <= end <= 1440 and end != each.start
        )
    threshold = wide.confirm_above
    if threshold is not None:
        threshold = Money(max(0, threshold.minor - draw(st.sampled_from([0, 1, -1]))), "EUR")
    budgets = tuple(
        Budget(Money(_lower(draw, each.ceiling.minor) or 1, "EUR"), each.period, each.zone)
        for each in wide.budgets
    )
    return Envelope(
        rate,
        None
        if rate is None
        else draw(st.sampled_from([wide.max_burst and min(rate, wide.max_burst), None, 1, rate])),
        open_,
        threshold,
        budgets,
        _lower(draw, wide.max_uses),
        wide.requires_human_online or draw(st.booleans()),
        _lower(draw, wide.max_session_seconds),
    )
