"""Two grants of an agent with budgets in two time zones, used in turn, never allow both budgets."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from agentauth.protocol.behavioural_envelope import (
    EnvelopeAllowed,
    Ledger,
    enforce,
    limits_left,
    parse_envelope,
)
from agentauth.protocol.hours_and_periods import period_start
from agentauth.protocol.money import Money
from agentauth.protocol.usage_counters import Spent

from .test_enforce import budget, pay

CEILING = Money.of("500.00", "EUR", "ceiling")
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
ZONES = [
    ("UTC", "Etc/GMT-12"),
    ("UTC", "Etc/GMT+12"),
    ("Europe/Berlin", "America/New_York"),
    ("Asia/Kolkata", "America/Los_Angeles"),
    # More than a day apart.
    ("Pacific/Kiritimati", "Pacific/Pago_Pago"),
]


class Attacker:
    """An agent with one grant for each zone:

    `paid` has the instant and the minor units of each payment.
    """

    def __init__(self, period: str, zones: tuple[str, str]) -> None:
        self.period = period
        self.spent: dict[str, Spent] = {zone: {} for zone in zones}
        self.paid: list[tuple[datetime, int]] = []

    def left(self, zone: str, now: datetime) -> str:
        """What remains of the budget of `zone`, by the answer of verify."""
        envelope = parse_envelope({"budgets": [budget("500.00", self.period, zone)]})
        return limits_left(envelope, self._ledger(zone), now).budgets[0].remaining

    def pay(self, zone: str, value: str, now: datetime) -> bool:
        """Whether the payment is allowed under the grant of `zone`."""
        envelope = parse_envelope({"budgets": [budget("500.00", self.period, zone)]})
        ledger, action = self._ledger(zone), pay(value)
        outcome = enforce(
            envelope, ledger, action=action, now=now, human_online=False, confirmation="none"
        )
        if isinstance(outcome, EnvelopeAllowed):
            self.spent[zone] = outcome.ledger.spent
            self.paid.append((now, Money.of(value, "EUR", "value").minor))
        return isinstance(outcome, EnvelopeAllowed)

    def in_running_period(self, zone: str, now: datetime) -> int:
        """The minor units paid under both grants in the period of `zone` that runs."""
        running = period_start(self.period, zone, now)
        return sum(
            minor for at, minor in self.paid if period_start(self.period, zone, at) == running
        )

    def _ledger(self, zone: str) -> Ledger:
        return Ledger(
            spent=self.spent[zone],
            beside=tuple(each for name, each in self.spent.items() if name != zone),
        )


def midnights(period: str, zones: tuple[str, str], days: int) -> Iterator[tuple[datetime, str]]:
    """Each instant, just after the half hour, by which a period of one of `zones` has begun, and
    that zone.
    """
    half = timedelta(minutes=30)
    for step in range(1, days * 48):
        now = MONDAY + timedelta(seconds=1) + step * half
        for zone in zones:
            if period_start(period, zone, now) != period_start(period, zone, now - half):
                yield now, zone


@pytest.mark.parametrize(("period", "days"), [("day", 7), ("week", 35), ("month", 100)])
@pytest.mark.parametrize("zones", ZONES, ids="+".join)
def test_two_zones_rolled_over_in_turn_share_one_budget(
    period: str, days: int, zones: tuple[str, str]
) -> None:
    attacker = Attacker(period, zones)
    begun = 0
    for now, zone in midnights(period, zones, days):
        begun += zone == zones[0]
        other = zones[1 - zones.index(zone)]
        attacker.pay(zone, "0.01", now)
        for each in (other, zone):
            if (left := attacker.left(each, now)) != "0.00":
                assert attacker.pay(each, left, now)
                # Everything paid, under either grant, in the period that this grant counts.
                assert attacker.in_running_period(each, now) <= CEILING.minor
    assert begun >= 3
    # In total, no more than one grant could have spent by itself, plus the rest of the period
    # before the first.
    assert sum(minor for _, minor in attacker.paid) <= (begun + 1) * CEILING.minor


def test_a_grant_never_counts_its_own_period_before() -> None:
    now = MONDAY + timedelta(hours=12)
    attacker = Attacker("day", ("UTC", "Etc/GMT-12"))
    assert attacker.pay("UTC", "500.00", now - timedelta(days=1))
    assert attacker.pay("UTC", "1.00", now)
    assert attacker.spent["UTC"] == {
        "EUR/day-before/UTC": ("2026-11-22", 50_000),
        "EUR/day/UTC": ("2026-11-23", 100),
    }
    assert attacker.left("UTC", now) == "499.00"
    # A clock that went backwards does not end a period.
    assert not attacker.pay("UTC", "499.01", now - timedelta(days=1))
    assert attacker.pay("UTC", "1.00", now - timedelta(days=1))
    assert attacker.spent["UTC"]["EUR/day/UTC"] == ("2026-11-23", 200)
