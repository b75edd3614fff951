"""Enforcement step by step: order, exact counts, a refusal counts nothing, and no narrower
envelope allows more.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentauth.protocol.behavioural_envelope import (
    Confirmation,
    Envelope,
    EnvelopeAllowed,
    EnvelopeRefused,
    Ledger,
    Outcome,
    StepUp,
    enforce,
    limits_left,
    narrows_envelope,
    parse_envelope,
)
from agentauth.protocol.capability import Action, parse_action
from agentauth.protocol.money import Money
from agentauth.protocol.usage_counters import Rate

from .strategies import envelopes, tightened_envelope

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)  # a Wednesday
READ = Action("read", "a")


def pay(value: str, currency: str = "EUR") -> Action:
    amount = {"value": value, "currency": currency}
    return parse_action({"type": "transact", "resource": "payments", "amount": amount})


def ask(
    envelope: Envelope,
    ledger: Ledger | None = None,
    *,
    action: Action | None = READ,
    now: datetime = NOON,
    human_online: bool = False,
    confirmation: Confirmation = "none",
) -> Outcome:
    return enforce(
        envelope,
        Ledger() if ledger is None else ledger,
        action=action,
        now=now,
        human_online=human_online,
        confirmation=confirmation,
    )


def budget(value: str, period: str = "day", zone: str = "UTC") -> dict[str, str]:
    return {"value": value, "currency": "EUR", "period": period, "zone": zone}


def allowed(outcome: Outcome) -> EnvelopeAllowed:
    assert isinstance(outcome, EnvelopeAllowed), outcome
    return outcome


def test_without_limits_a_use_is_allowed_and_counted() -> None:
    outcome = allowed(ask(Envelope()))
    assert outcome.ledger == Ledger(None, 1, {})
    assert outcome.limits.to_json() == {
        "rate_remaining": None,
        "budgets": [],
        "uses_remaining": None,
    }


def test_EN_1_three_at_once_then_one_per_six_seconds() -> None:
    envelope = parse_envelope({"max_requests_per_minute": 10, "max_burst": 3})
    ledger, passed, left = Ledger(), [], []
    for tenth in range(600):
        now = NOON + timedelta(seconds=tenth / 10)
        for _ in range(20 if tenth == 0 else 1):
            outcome = ask(envelope, ledger, now=now)
            if isinstance(outcome, EnvelopeAllowed):
                ledger = outcome.ledger
                passed.append(tenth / 10)
                left.append(outcome.limits.rate_remaining)
    assert passed == [0, 0, 0, 6, 12, 18, 24, 30, 36, 42, 48, 54]
    assert len(passed) == 10 + 3 - 1
    assert left[:4] == [2, 1, 0, 0]


def test_EN_1_a_rate_refusal_tells_when_the_next_use_is_allowed() -> None:
    envelope = parse_envelope({"max_requests_per_minute": 10})
    ledger = allowed(ask(envelope)).ledger
    assert ask(envelope, ledger) == EnvelopeRefused("envelope_exceeded", "rate", 6)
    late = NOON + timedelta(seconds=5, microseconds=999_999)
    assert ask(envelope, ledger, now=late) == EnvelopeRefused("envelope_exceeded", "rate", 1)
    # A second and a microsecond have not passed after one second.
    late -= timedelta(seconds=1)
    assert ask(envelope, ledger, now=late) == EnvelopeRefused("envelope_exceeded", "rate", 2)
    assert isinstance(ask(envelope, ledger, now=NOON + timedelta(seconds=6)), EnvelopeAllowed)


@settings(max_examples=60)
@given(st.integers(1, 70), st.data())
def test_EN_1_no_minute_sees_more_than_rate_plus_burst_minus_one(
    per_minute: int, data: st.DataObject
) -> None:
    rate = Rate(per_minute, data.draw(st.integers(1, per_minute)))
    gaps = data.draw(
        st.lists(
            st.sampled_from([0, 1, 999_999, rate.interval_us, rate.interval_us - 1, 7_000_000])
        )
    )
    now, tat, passed = 0, None, []
    for gap in [*gaps, *[rate.interval_us // 3] * 200]:
        now += gap
        if rate.wait_us(tat, now) <= 0:
            assert rate.remaining(tat, now) > 0
            tat = rate.advance(tat, now)
            passed.append(now)
        else:
            assert rate.remaining(tat, now) == 0
    for start in passed:
        assert (
            sum(start <= at < start + 60_000_000 for at in passed)
            <= rate.per_minute + rate.burst - 1
        )


@pytest.mark.parametrize("per_minute", [1, 7, 11, 59, 61, 599, 5999])
def test_EN_1_fractional_microsecond_interval_allows_no_extra_use(per_minute: int) -> None:
    rate = Rate(per_minute, 1)
    now, tat, passed = 0, None, 0
    while now < 60_000_000:
        tat = rate.advance(tat, now)
        passed += 1
        now += max(rate.wait_us(tat, now), 0)
    assert passed == per_minute


def test_a_clock_that_goes_backwards_gives_no_extra_use() -> None:
    envelope = parse_envelope(
        {"max_requests_per_minute": 10, "max_burst": 2, "budgets": [budget("1.00")]}
    )
    ledger = allowed(ask(envelope, action=pay("1.00"))).ledger
    yesterday = NOON - timedelta(days=1)
    assert ask(envelope, ledger, action=pay("0.01"), now=yesterday) == EnvelopeRefused(
        "envelope_exceeded", "rate", 86_400
    )
    slow = parse_envelope({"budgets": [budget("1.00")]})
    assert isinstance(ask(slow, ledger, action=pay("0.01"), now=yesterday), EnvelopeRefused)


def test_a_budget_is_spent_to_the_last_cent_and_not_beyond() -> None:
    envelope = parse_envelope({"budgets": [budget("100.00")]})
    ledger, count = Ledger(), 0
    for _ in range(40):
        outcome = ask(envelope, ledger, action=pay("3.00"))
        if isinstance(outcome, EnvelopeAllowed):
            ledger, count = outcome.ledger, count + 1
    assert count == 33
    assert limits_left(envelope, ledger, NOON).to_json()["budgets"] == [
        {"currency": "EUR", "period": "day", "remaining": "1.00"}
    ]
    assert allowed(ask(envelope, ledger, action=pay("1.00"))).limits.budgets[0].remaining == "0.00"
    # Twelve hours until midnight in UTC.
    assert ask(envelope, ledger, action=pay("1.01")) == EnvelopeRefused(
        "envelope_exceeded", "budget", 43_200
    )


def test_a_budget_returns_in_its_next_period_in_its_zone() -> None:
    envelope = parse_envelope({"budgets": [budget("5.00", "day", "Europe/Berlin")]})
    ledger = allowed(ask(envelope, action=pay("5.00"))).ledger
    midnight = datetime(2026, 11, 25, 23, tzinfo=UTC)
    assert isinstance(
        ask(envelope, ledger, action=pay("0.01"), now=midnight - timedelta(microseconds=1)),
        EnvelopeRefused,
    )
    assert isinstance(ask(envelope, ledger, action=pay("5.00"), now=midnight), EnvelopeAllowed)


def test_every_budget_must_fit_and_the_longest_wait_is_returned() -> None:
    envelope = parse_envelope({"budgets": [budget("5.00"), budget("6.00", "month")]})
    ledger = allowed(ask(envelope, action=pay("5.00"))).ledger
    until_december = (datetime(2026, 12, 1, tzinfo=UTC) - NOON) // timedelta(seconds=1)
    assert ask(envelope, ledger, action=pay("1.50")) == EnvelopeRefused(
        "envelope_exceeded", "budget", until_december
    )
    assert ask(envelope, ledger, action=pay("1.00")) == EnvelopeRefused(
        "envelope_exceeded", "budget", 43_200
    )


def test_time_does_not_heal_a_total_nor_an_amount_above_the_whole_budget() -> None:
    total = parse_envelope({"budgets": [budget("5.00", "total"), budget("5.00")]})
    ledger = allowed(ask(total, action=pay("5.00"))).ledger
    assert ask(total, ledger, action=pay("1.00")) == EnvelopeRefused(
        "envelope_exceeded", "budget", None
    )
    daily = parse_envelope({"budgets": [budget("5.00")]})
    assert ask(daily, action=pay("5.01")) == EnvelopeRefused("envelope_exceeded", "budget", None)


def test_an_amount_that_no_budget_can_count_is_refused() -> None:
    envelope = parse_envelope({"budgets": [budget("5.00")]})
    assert ask(envelope, action=pay("1.00", "USD")) == EnvelopeRefused(
        "envelope_exceeded", "budget", None
    )


def test_what_a_budget_had_counted_is_kept_while_it_is_not_in_the_envelope() -> None:
    first = allowed(ask(parse_envelope({"budgets": [budget("5.00")]}), action=pay("4.00"))).ledger
    other = allowed(
        ask(parse_envelope({"budgets": [budget("9.00", "week")]}), first, action=pay("1.00"))
    ).ledger
    assert other.spent == {"EUR/day/UTC": ("2026-11-25", 400), "EUR/week/UTC": ("2026-11-23", 100)}


def test_uses_end_for_good() -> None:
    envelope = parse_envelope({"max_uses": 2})
    one = allowed(ask(envelope))
    two = allowed(ask(envelope, one.ledger))
    assert (one.limits.uses_remaining, two.limits.uses_remaining) == (1, 0)
    assert ask(envelope, two.ledger) == EnvelopeRefused("envelope_exceeded", "max_uses", None)


NIGHT = {"days": ["wed"], "start": "22:00", "end": "23:00", "zone": "UTC"}


def test_refusal_outside_its_windows_gives_the_next_opening() -> None:
    envelope = parse_envelope({"allowed_time_windows": [NIGHT]})
    assert ask(envelope) == EnvelopeRefused("outside_time_window", None, 36_000)
    assert isinstance(ask(envelope, now=NOON + timedelta(hours=10)), EnvelopeAllowed)
    assert ask(Envelope(allowed_time_windows=())) == EnvelopeRefused(
        "outside_time_window", None, None
    )


def test_EN_10_without_a_presence_lease_nothing_is_allowed() -> None:
    envelope = parse_envelope({"requires_human_online": True})
    assert ask(envelope) == EnvelopeRefused("step_up_required", "human_offline")
    assert isinstance(ask(envelope, human_online=True), EnvelopeAllowed)
    # Presence is not a confirmation, and a confirmation is not presence.
    assert ask(envelope, confirmation="confirmed") == EnvelopeRefused(
        "step_up_required", "human_offline"
    )


def test_EN_11_above_the_threshold_a_human_must_confirm() -> None:
    envelope = parse_envelope({"confirm_above": {"value": "100.00", "currency": "EUR"}})
    assert isinstance(ask(envelope, action=pay("100.00")), EnvelopeAllowed)
    assert ask(envelope, action=pay("100.01"), human_online=True) == StepUp()
    assert ask(envelope, action=pay("100.01"), confirmation="denied") == EnvelopeRefused(
        "step_up_required", "confirmation_denied"
    )
    assert isinstance(
        ask(envelope, action=pay("100.01"), confirmation="confirmed"), EnvelopeAllowed
    )
    assert ask(envelope, action=pay("1.00", "USD")) == StepUp()
    # A denial of the larger amount does not affect amounts that need no confirmation.
    assert isinstance(ask(envelope, action=pay("100.00"), confirmation="denied"), EnvelopeAllowed)
    assert isinstance(ask(envelope, action=READ), EnvelopeAllowed)


def test_no_confirmation_is_asked_for_what_would_be_refused_anyway() -> None:
    limits = {"confirm_above": {"value": "1.00", "currency": "EUR"}}
    for extra, reason in (
        ({"budgets": [budget("5.00")]}, "budget"),
        ({"max_uses": 1}, "max_uses"),
        ({"max_requests_per_minute": 1}, "rate"),
    ):
        envelope = parse_envelope({**limits, **extra})
        ledger = allowed(ask(envelope, action=pay("0.50"))).ledger
        refusal = ask(envelope, ledger, action=pay("4.60"))
        assert isinstance(refusal, EnvelopeRefused)
        assert refusal.reason == reason


EVERYTHING: dict[str, Any] = {
    "allowed_time_windows": [NIGHT],
    "requires_human_online": True,
    "confirm_above": {"value": "1.00", "currency": "EUR"},
    "max_requests_per_minute": 1,
    "budgets": [budget("1.50")],
    "max_uses": 1,
}


def test_the_checks_come_in_the_order_of_the_contract() -> None:
    """All limits are exceeded at once. Each step lifts the first one and meets the next."""
    body, seen = dict(EVERYTHING), []
    used = Ledger(tat_us=10**17, uses=1, spent={"EUR/day/UTC": ("2026-11-25", 150)})
    for name in EVERYTHING:
        refusal = ask(parse_envelope(body), used, action=pay("1.20"), confirmation="denied")
        assert isinstance(refusal, EnvelopeRefused)
        seen.append(refusal.reason or refusal.error)
        del body[name]
    assert seen == [
        "outside_time_window",
        "human_offline",
        "confirmation_denied",
        "rate",
        "budget",
        "max_uses",
    ]


def test_call_without_action_checks_windows_and_presence_uncounted() -> None:
    body = dict(EVERYTHING)
    used = Ledger(tat_us=10**17, uses=1, spent={})
    assert ask(parse_envelope(body), used, action=None) == EnvelopeRefused(
        "outside_time_window", None, 36_000
    )
    del body["allowed_time_windows"]
    assert ask(parse_envelope(body), used, action=None) == EnvelopeRefused(
        "step_up_required", "human_offline"
    )
    outcome = allowed(ask(parse_envelope(body), used, action=None, human_online=True))
    assert outcome.ledger is used
    assert outcome.limits.to_json() == {
        "rate_remaining": 0,
        "budgets": [{"currency": "EUR", "period": "day", "remaining": "1.50"}],
        "uses_remaining": 0,
    }


def test_EN_16_asking_a_thousand_times_consumes_nothing() -> None:
    envelope = parse_envelope(
        {"max_requests_per_minute": 1, "max_uses": 1, "budgets": [budget("5.00")]}
    )
    ledger = Ledger(spent={"EUR/day/UTC": ("2026-11-25", 100)})
    before = (ledger.tat_us, ledger.uses, dict(ledger.spent))
    first = ask(envelope, ledger, action=pay("4.00"))
    for _ in range(999):
        assert ask(envelope, ledger, action=pay("4.00")) == first
    assert (ledger.tat_us, ledger.uses, dict(ledger.spent)) == before
    assert isinstance(first, EnvelopeAllowed)


Step = tuple[Action | None, timedelta, bool, Confirmation]

amounts = st.integers(1, 5).map(lambda minor: Action("transact", "p", Money(minor, "EUR")))
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.none() | st.just(READ) | amounts,
        st.sampled_from([0, 0, 1, 10, 30, 60, 3600, 43_200]).map(
            lambda seconds: timedelta(seconds=seconds)
        ),
        st.booleans(),
        st.sampled_from(["none", "confirmed", "confirmed"]),
    ),
    min_size=1,
    max_size=12,
)


def allows_all(envelope: Envelope, sequence: Sequence[Step], start: datetime) -> int:
    """How many steps the envelope allows before the first other answer."""
    ledger, now = Ledger(), start
    for index, (action, wait, online, confirmation) in enumerate(sequence):
        now += wait
        outcome = ask(
            envelope, ledger, action=action, now=now, human_online=online, confirmation=confirmation
        )
        if not isinstance(outcome, EnvelopeAllowed):
            return index
        ledger = outcome.ledger
    return len(sequence)


@settings(max_examples=500)
@given(
    st.data(), steps, st.sampled_from(["2026-10-24T22:00", "2026-11-23T00:00", "2026-11-24T01:30"])
)
def test_a_sequence_a_narrower_envelope_allows_the_wider_one_allows(
    data: st.DataObject, sequence: list[Step], start: str
) -> None:
    wide = data.draw(envelopes())
    near = data.draw(tightened_envelope(wide))
    begin = datetime.fromisoformat(start).replace(tzinfo=UTC)
    for new, old in ((near, wide), (wide, near)):
        if narrows_envelope(new, old):
            assert allows_all(old, sequence, begin) >= allows_all(new, sequence, begin)
