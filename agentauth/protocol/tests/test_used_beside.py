"""What other grants of the agent at the service provider have spent counts in the running period,
and in no other.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from agentauth.protocol.behavioural_envelope import (
    EnvelopeAllowed,
    EnvelopeRefused,
    Ledger,
    enforce,
    limits_left,
    parse_envelope,
)
from agentauth.protocol.hours_and_periods import reaches_into
from agentauth.protocol.money import Money
from agentauth.protocol.usage_counters import Budget, spent_beside

from .test_enforce import NOON, budget, pay

# NOON is a Wednesday, 25 November 2026.
TEN = {"value": "10.00", "currency": "EUR"}


@pytest.mark.parametrize(
    ("period", "start", "zone", "running_in", "now", "common"),
    [
        ("day", "2026-11-25", "UTC", "UTC", "2026-11-25T12:00", True),
        ("day", "2026-11-24", "UTC", "UTC", "2026-11-25T12:00", False),
        # Counted by a process whose clock is ahead.
        ("day", "2026-11-26", "UTC", "UTC", "2026-11-25T12:00", True),
        # Berlin's day ends an hour before the one in UTC, and begins an hour before it.
        ("day", "2026-11-25", "Europe/Berlin", "UTC", "2026-11-25T23:30", True),
        ("day", "2026-11-25", "Europe/Berlin", "UTC", "2026-11-26T00:00", False),
        ("day", "2026-11-25", "UTC", "Europe/Berlin", "2026-11-25T23:30", True),
        ("day", "2026-11-25", "UTC", "Europe/Berlin", "2026-11-26T23:30", False),
        # One ends when the other begins.
        ("day", "2026-11-24", "Europe/Paris", "Europe/Berlin", "2026-11-25T12:00", False),
        ("day", "2026-11-24", "Pacific/Kiritimati", "Pacific/Pago_Pago", "2026-11-24T11:00", False),
        ("week", "2026-11-23", "Asia/Tokyo", "UTC", "2026-11-29T20:00", True),
        ("week", "2026-11-16", "Asia/Tokyo", "UTC", "2026-11-23T00:00", False),
        ("month", "2026-12-01", "UTC", "America/New_York", "2027-01-01T04:59", True),
        ("month", "2026-11-01", "UTC", "America/New_York", "2027-01-01T04:59", False),
        ("total", "total", "UTC", "UTC", "2026-11-25T12:00", False),
    ],
)
def test_a_period_counts_while_it_overlaps_the_running_one(
    period: str, start: str, zone: str, running_in: str, now: str, *, common: bool
) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert reaches_into(period, start, zone, running_in=running_in, now=at) is common


@pytest.mark.parametrize(
    ("spent", "expected"),
    [
        ({}, 0),
        ({"EUR/day/UTC": ("2026-11-25", 340)}, 340),
        ({"EUR/day/UTC": ("2026-11-24", 340)}, 0),
        # Two budgets of one grant counted the same payments.
        ({"EUR/day/UTC": ("2026-11-25", 340), "EUR/day/Europe/Berlin": ("2026-11-25", 300)}, 340),
        # In the same zone, the day before has ended. In another, it overlaps the current day: both
        # count.
        ({"EUR/day/UTC": ("2026-11-25", 340), "EUR/day-before/UTC": ("2026-11-24", 100)}, 340),
        (
            {
                "EUR/day/Etc/GMT-12": ("2026-11-26", 340),
                "EUR/day-before/Etc/GMT-12": ("2026-11-25", 100),
            },
            440,
        ),
        (
            {
                "EUR/day/UTC": ("2026-11-25", 400),
                "EUR/day/Etc/GMT-12": ("2026-11-26", 340),
                "EUR/day-before/Etc/GMT-12": ("2026-11-25", 100),
            },
            440,
        ),
        (
            {
                "EUR/day/Etc/GMT-12": ("2026-11-25", 340),
                "EUR/day-before/Etc/GMT-12": ("2026-11-24", 100),
            },
            340,
        ),
        # Another currency, another period.
        ({"USD/day/UTC": ("2026-11-25", 340), "EUR/week/UTC": ("2026-11-25", 340)}, 0),
    ],
    ids=str,
)
def test_what_another_grant_spent_in_the_period(
    spent: Mapping[str, tuple[str, int]], expected: int
) -> None:
    assert spent_beside(spent, Budget(Money.parse(TEN), "day"), NOON) == expected


def test_budget_limits_the_sum_but_a_debit_counts_only_for_its_grant() -> None:
    envelope = parse_envelope({"budgets": [budget("10.00")]})
    others = ({"EUR/day/UTC": ("2026-11-25", 300)}, {"EUR/day/UTC": ("2026-11-25", 200)})
    ledger = Ledger(spent={"EUR/day/UTC": ("2026-11-25", 100)}, beside=others)
    assert limits_left(envelope, ledger, NOON).budgets[0].remaining == "4.00"

    def asked(value: str) -> object:
        return enforce(
            envelope, ledger, action=pay(value), now=NOON, human_online=False, confirmation="none"
        )

    refused, allowed = asked("4.01"), asked("4.00")
    assert isinstance(refused, EnvelopeRefused)
    assert (refused.reason, refused.retry_after) == ("budget", 12 * 3600)
    assert isinstance(allowed, EnvelopeAllowed)
    assert allowed.ledger.spent == {"EUR/day/UTC": ("2026-11-25", 500)}
    assert allowed.ledger.beside == others
    assert allowed.limits.budgets[0].remaining == "0.00"
