"""The arithmetic of counted limits (rate, budgets, uses) as pure steps from one ledger to the next.

The verifier stores ledgers and keeps two servers from spending the same budget twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from .errors import InvalidRequestError
from .fast_dataclass import per_call
from .hours_and_periods import (
    PERIODS,
    parse_zone,
    period_end,
    period_start,
    reaches_into,
    seconds_until,
)
from .json_fields import members
from .money import Money

_MINUTE_US: Final = 60_000_000
_SECOND_US: Final = 1_000_000
_DAY_SECONDS: Final = 86_400
# Suffix of a period's name in a ledger, for the period before the latest.
_BEFORE: Final = "-before"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Budget:
    """A ceiling on the sum of money moved in one period of one time zone."""

    ceiling: Money
    period: str
    zone: str = "UTC"

    @property
    def key(self) -> str:
        """Identifies the budget in a ledger and across grant versions: `EUR/day/Europe/Berlin`."""
        return f"{self.ceiling.currency}/{self.period}/{self.zone}"

    @property
    def key_before(self) -> str:
        """As `key`, for the period before the latest: `EUR/day-before/Europe/Berlin`."""
        return f"{self.ceiling.currency}/{self.period}{_BEFORE}/{self.zone}"

    def to_json(self) -> dict[str, object]:
        """`{"value","currency","period","zone"}` as on the wire."""
        return {**self.ceiling.to_json(), "period": self.period, "zone": self.zone}


def parse_budget(obj: object, where: str) -> Budget:
    """Read one budget (docs/protocol.md section 3); an absent `zone` is UTC.

    Raises InvalidRequestError naming the member.
    """
    body = members(obj, where, required=("value", "currency", "period"), optional=("zone",))
    if body["period"] not in PERIODS:
        raise InvalidRequestError(f"{where}.period: must be one of {', '.join(PERIODS)}.")
    ceiling = Money.of(body["value"], body["currency"], where)
    return Budget(
        ceiling, str(body["period"]), parse_zone(body.get("zone", "UTC"), f"{where}.zone")
    )


# Maps a budget's `key` to its latest period, and its `key_before` to the one before: start, and
# minor units spent.
Spent = Mapping[str, tuple[str, int]]


@per_call(frozen=True, slots=True)
class Ledger:
    """What a grant has used.

    `tat_us` is the GCRA's theoretical arrival time in µs since 1970, None before any use.

    `spent` maps a budget's key to the start of its latest counted period and the minor units spent
    in it, and its `key_before` to those of the period before, which only other grants count.
    `beside` has the `spent` of each other grant of this agent at this service provider: budgets of
    a period count those too.
    """

    tat_us: int | None = None
    uses: int = 0
    spent: Spent = field(default_factory=dict, hash=False)
    beside: tuple[Spent, ...] = field(default=(), hash=False)

    def used_minor(self, budget: Budget, now: datetime) -> int:
        """The minor units that count against `budget` now: of this grant and of the others."""
        _, minor = self.spent_minor(budget, now)
        return minor + sum(spent_beside(spent, budget, now) for spent in self.beside)

    def spent_minor(self, budget: Budget, now: datetime) -> tuple[str, int]:
        """The current period of `budget` and the minor units already spent in it."""
        current = period_start(budget.period, budget.zone, now)
        start, minor = self.spent.get(budget.key, (current, 0))
        # Only a later period empties the budget: a clock set back must not reopen yesterday's.
        return (start, minor) if start >= current else (current, 0)


def spent_beside(spent: Spent, budget: Budget, now: datetime) -> int:
    """Minor units another grant spent in the running period of `budget`; 0 for `total`.

    The other grant's days may be in another zone. A day counts if it shares an hour with the
    running one (two days of that zone can): otherwise, asking again with another zone would start a
    new budget.
    """
    prefix = f"{budget.ceiling.currency}/{budget.period}"
    by_zone: dict[str, int] = {}
    for key, (start, minor) in spent.items():
        if not key.startswith((f"{prefix}/", f"{prefix}{_BEFORE}/")):
            continue
        zone = key.split("/", 2)[2]
        if reaches_into(budget.period, start, zone, running_in=budget.zone, now=now):
            by_zone[zone] = by_zone.get(zone, 0) + minor
    # Two periods of one zone are different payments, so add them; budgets of two zones counted the
    # same payments, so take the larger.
    return max(by_zone.values(), default=0)


@dataclass(frozen=True, slots=True)
class BudgetLeft:
    """What one budget has left in its current period."""

    currency: str
    period: str
    remaining: str


@per_call(frozen=True, slots=True)
class Limits:
    """What a grant may still do now, for the answer of verify; None if there is no such limit."""

    rate_remaining: int | None = None
    budgets: tuple[BudgetLeft, ...] = ()
    uses_remaining: int | None = None

    def to_json(self) -> dict[str, object]:
        """`{"rate_remaining","budgets":[{"currency","period","remaining"}],"uses_remaining"}`."""
        budgets = [
            {"currency": each.currency, "period": each.period, "remaining": each.remaining}
            for each in self.budgets
        ]
        return {
            "rate_remaining": self.rate_remaining,
            "budgets": budgets,
            "uses_remaining": self.uses_remaining,
        }


def microseconds(now: datetime) -> int:
    """Whole microseconds since 1970. Exact: `timestamp()` is a float and loses digits."""
    since = now - _EPOCH
    return (since.days * _DAY_SECONDS + since.seconds) * _SECOND_US + since.microseconds


@dataclass(frozen=True, slots=True)
class Rate:
    """The generic cell rate algorithm: `burst` uses at once, then one every 60/`per_minute` s.

    At most `per_minute + burst - 1` in any 60 s (docs/protocol.md section 3).
    """

    per_minute: int
    burst: int
    # Microseconds between two uses. Rounded up: rounding down could allow one more per minute.
    interval_us: int = field(init=False, repr=False, compare=False)
    # How far the theoretical arrival time may run ahead of the clock.
    tolerance_us: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        interval_us = -(-_MINUTE_US // self.per_minute)
        object.__setattr__(self, "interval_us", interval_us)
        object.__setattr__(self, "tolerance_us", (self.burst - 1) * interval_us)

    def wait_us(self, tat_us: int | None, now_us: int) -> int:
        """Microseconds until the next use is allowed; 0 or less means now."""
        return 0 if tat_us is None else tat_us - self.tolerance_us - now_us

    def advance(self, tat_us: int | None, now_us: int) -> int:
        """The theoretical arrival time after one use at `now_us`."""
        return (now_us if tat_us is None else max(tat_us, now_us)) + self.interval_us

    def used_up(self, at_us: int) -> int:
        """The theoretical arrival time after the whole burst is used at `at_us`: the next use is
        allowed one interval later.
        """
        return at_us + self.tolerance_us + self.interval_us

    def remaining(self, tat_us: int | None, now_us: int) -> int:
        """How many uses would be allowed at `now_us`, one after the other."""
        ahead = 0 if tat_us is None else max(tat_us - now_us, 0)
        return max((self.tolerance_us - ahead) // self.interval_us + 1, 0)


def budget_wait(
    budgets: Sequence[Budget], amount: Money, ledger: Ledger, now: datetime
) -> tuple[bool, int | None]:
    """Does `amount` fit every budget?

    If not, seconds until it may, or None if waiting does not help. An amount in another currency
    than a budget's does not fit: it would pass uncounted.
    """
    waits: list[int | None] = []
    for budget in budgets:
        after = Money(ledger.used_minor(budget, now) + amount.minor, amount.currency)
        if after.within(budget.ceiling):
            continue
        end = period_end(budget.period, budget.zone, now) if amount.within(budget.ceiling) else None
        waits.append(None if end is None else seconds_until(end, now))
    known = [wait for wait in waits if wait is not None]
    # Every exceeded budget must empty first, so the longest wait counts; if one never ends, there
    # is none.
    return not waits, max(known) if known and len(known) == len(waits) else None


def debit(
    budgets: Sequence[Budget], amount: Money, ledger: Ledger, now: datetime
) -> dict[str, tuple[str, int]]:
    """The ledger's `spent` after `amount`.

    Counts of budgets no longer in the envelope are kept: a budget that returns in a later version
    of the grant must not return empty. The first debit in a new period keeps the former one as the
    period before, which may overlap a running period of another zone.
    """
    spent = dict(ledger.spent)
    for budget in budgets:
        start, minor = ledger.spent_minor(budget, now)
        former = ledger.spent.get(budget.key)
        if former is not None and former[0] != start:
            spent[budget.key_before] = former
        spent[budget.key] = (start, minor + amount.minor)
    return spent
