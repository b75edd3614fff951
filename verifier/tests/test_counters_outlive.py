"""Counters outlive the grant (EN-18): a grant after a revoked one continues its counters."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from registry.models import Grant
from registry.services.grants import revoke_grant
from verifier.models import GrantLedger
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, assert_refused, key, pay, scene
from verifier.tests.test_concurrency import together
from verifier.tests.test_two_grants import second, token_of, verdict

pytestmark = pytest.mark.django_db

# A Wednesday in the middle of a month: every period began before that day.
NOON = datetime(2027, 1, 13, 12, tzinfo=UTC)


def budget(value: str, period: str = "day", zone: str = "UTC") -> dict[str, str]:
    return {"value": value, "currency": "EUR", "period": period, "zone": zone}


def asked_again(place: Scene, *capabilities: dict[str, Any], **envelope: Any) -> Scene:
    """Revoke the agent's grant and approve another one at the same service provider."""
    revoke_grant(grant=Grant.objects.get(pk=place.grant.pk), actor=SYSTEM, now=timezone.now())
    return replace(place, grant=second(place, *capabilities, **envelope))


def left(answer: dict[str, Any]) -> str:
    remaining: str = answer["limits"]["budgets"][0]["remaining"]
    return remaining


@pytest.mark.parametrize("period", ["day", "week", "month"])
def test_a_budget_is_not_full_again_after_revoke_and_ask(period: str) -> None:
    with time_machine.travel(NOON, tick=False):
        place = scene(PAY, budgets=[budget("100.00", period)])
        assert left(place.pay("60.00")) == "40.00"
        again = asked_again(place, PAY, budgets=[budget("100.00", period)])
        answer = assert_refused(again, again.body(pay("40.01"), idempotency_key=key()))
        assert (answer["error"], answer["reason"]) == ("envelope_exceeded", "budget")
        assert answer["retry_after"] > 0
        assert left(again.pay("30.00")) == "10.00"
        # After a third grant, the spending of both ended grants counts.
        third = asked_again(again, PAY, budgets=[budget("100.00", period)])
        assert verdict(third.pay("10.01")) == "budget"
        assert left(third.pay("10.00")) == "0.00"


def test_the_next_period_begins_empty_whatever_ended_before() -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        place = scene(PAY, budgets=[budget("10.00")])
        assert left(place.pay("10.00")) == "0.00"
        again = asked_again(place, PAY, budgets=[budget("10.00")])
        assert verdict(again.pay("1.00")) == "budget"
        clock.move_to(NOON + timedelta(hours=12, microseconds=-1))
        assert verdict(again.pay("1.00")) == "budget"
        clock.move_to(NOON + timedelta(hours=12))
        assert left(again.pay("1.00")) == "9.00"


def test_grants_of_two_zones_used_in_turn_share_one_budget() -> None:
    with time_machine.travel(NOON - timedelta(hours=12), tick=False) as clock:
        place = scene(PAY, budgets=[budget("500.00")])
        # This zone's day begins at noon UTC.
        other = second(place, PAY, budgets=[budget("500.00", zone="Etc/GMT-12")])

        def paid(grant: Grant, value: str) -> str:
            return verdict(place.pay(value, token=token_of(place, grant)))

        assert paid(place.grant, "0.01") == "valid"
        assert [paid(other, "99.99") for _ in range(5)] == ["valid"] * 5
        clock.move_to(NOON)
        assert paid(other, "0.01") == "valid"
        assert GrantLedger.objects.get(grant=other).spent == {
            "EUR/day-before/Etc/GMT-12": ["2027-01-13", 49_995],
            "EUR/day/Etc/GMT-12": ["2027-01-14", 1],
        }
        assert paid(place.grant, "0.04") == "budget"
        assert paid(place.grant, "0.03") == "valid"
        # In its own zone, the previous day no longer counts.
        assert paid(other, "499.95") == "valid"


def test_other_zone_does_not_restart_a_budget() -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        place = scene(PAY, budgets=[budget("10.00", zone="Europe/Berlin")])
        assert left(place.pay("10.00")) == "0.00"
        again = asked_again(place, PAY, budgets=[budget("10.00")])
        # After midnight in Berlin it is still the same day in UTC.
        for hours in (0, 11.5):
            clock.move_to(NOON + timedelta(hours=hours))
            assert verdict(again.pay("0.01")) == "budget"
        clock.move_to(NOON + timedelta(hours=12))
        assert left(again.pay("1.00")) == "9.00"


def test_total_and_max_uses_begin_with_each_grant() -> None:
    place = scene(PAY, budgets=[budget("10.00", "total")], max_uses=2)
    assert left(place.pay("10.00")) == "0.00"
    again = asked_again(place, PAY, budgets=[budget("10.00", "total")], max_uses=2)
    answer = again.pay("1.00")
    assert (left(answer), answer["limits"]["uses_remaining"]) == ("9.00", 1)


def test_an_operation_repeated_costs_nothing_under_either_grant() -> None:
    with time_machine.travel(NOON, tick=False):
        place, operation = scene(PAY, budgets=[budget("10.00")]), key()
        for _ in range(2):
            assert verdict(place.pay("4.00", operation)) == "valid"
        again = asked_again(place, PAY, budgets=[budget("10.00")])
        # The same idempotency key under another grant is another operation, and is paid once.
        answers = [again.pay("4.00", operation) for _ in range(2)]
        assert [answer.get("repeated", False) for answer in answers] == [False, True]
        assert verdict(again.pay("2.01")) == "budget"
        assert left(again.pay("2.00")) == "0.00"


def test_what_was_refused_or_rehearsed_counts_nowhere() -> None:
    with time_machine.travel(NOON, tick=False):
        place = scene(PAY, budgets=[budget("10.00")])
        assert verdict(place.pay("10.01")) == "budget"
        assert left(place.pay("9.00", dry_run=True)) == "10.00"
        again = asked_again(place, PAY, budgets=[budget("10.00")])
        assert left(again.pay("1.00", dry_run=True)) == "10.00"
        assert left(again.pay("10.00")) == "0.00"
        assert verdict(again.pay("0.01", dry_run=True)) == "budget"


def test_a_rate_goes_on_without_its_burst_after_revoke_and_ask() -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        place = scene(READ, max_requests_per_minute=6, max_burst=3)
        assert [verdict(place.ask(LOOK)) for _ in range(4)] == ["valid", "valid", "valid", "rate"]
        again = asked_again(place, READ, max_requests_per_minute=6, max_burst=3)
        assert assert_refused(again, again.body(LOOK))["retry_after"] == 10
        clock.shift(10)
        assert [verdict(again.ask(LOOK)) for _ in range(2)] == ["valid", "rate"]
        clock.shift(60)
        assert [verdict(again.ask(LOOK)) for _ in range(4)] == ["valid", "valid", "valid", "rate"]


def test_a_payments_rate_goes_on_too_and_a_later_grant_has_its_burst() -> None:
    terms = {"max_requests_per_minute": 6, "max_burst": 2, "budgets": [budget("10.00")]}
    with time_machine.travel(NOON, tick=False) as clock:
        place = scene(PAY, **terms)
        assert [verdict(place.pay("1.00")) for _ in range(3)] == ["valid", "valid", "rate"]
        again = asked_again(place, PAY, **terms)
        assert verdict(again.pay("1.00")) == "rate"
        revoke_grant(grant=again.grant, actor=SYSTEM, now=timezone.now())
        clock.shift(timedelta(minutes=5))
        later = replace(place, grant=second(place, PAY, **terms))
        assert [verdict(later.pay("1.00")) for _ in range(3)] == ["valid", "valid", "rate"]


def test_a_grant_that_ended_by_time_counts_as_one_that_was_revoked() -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        place = scene(PAY, max_requests_per_minute=6, max_burst=2, budgets=[budget("10.00")])
        assert verdict(place.pay("8.00")) == "valid"
        end = timezone.now() + timedelta(minutes=1)
        Grant.objects.filter(pk=place.grant.pk).update(valid_until=end)
        clock.move_to(end)
        later = replace(
            place,
            grant=second(
                place, PAY, max_requests_per_minute=6, max_burst=2, budgets=[budget("10.00")]
            ),
        )
        assert verdict(later.pay("1.00")) == "rate"
        clock.shift(10)
        assert verdict(later.pay("2.01")) == "budget"


def test_another_agent_and_another_service_count_apart() -> None:
    with time_machine.travel(NOON, tick=False):
        place = scene(PAY, budgets=[budget("10.00")])
        elsewhere = scene(PAY, budgets=[budget("10.00")])
        assert verdict(place.pay("10.00")) == "valid"
        # The same agent at the other service provider.
        there = replace(place, provider=elsewhere.provider, secret=elsewhere.secret)
        other = replace(there, grant=second(there, PAY, budgets=[budget("10.00")]))
        assert left(other.pay("9.00")) == "1.00"
        assert left(elsewhere.pay("9.00")) == "1.00"


def test_a_row_holds_what_was_spent_under_its_grant_alone() -> None:
    """The previous release writes and reads rows this way; each finds what the other counted."""
    with time_machine.travel(NOON, tick=False):
        place = scene(PAY, budgets=[budget("10.00")])
        # As written by the previous release, which has no other counters.
        GrantLedger.objects.create(
            grant=place.grant, uses=1, spent={"EUR/day/UTC": ["2027-01-13", 600]}
        )
        again = asked_again(place, PAY, budgets=[budget("10.00")])
        assert left(again.pay("3.00")) == "1.00"
        rows = {row.grant_id: (row.uses, row.spent) for row in GrantLedger.objects.all()}
        assert rows == {
            place.grant.pk: (1, {"EUR/day/UTC": ["2027-01-13", 600]}),
            again.grant.pk: (1, {"EUR/day/UTC": ["2027-01-13", 300]}),
        }


def test_a_month_counts_what_ended_on_its_first_day() -> None:
    with time_machine.travel(datetime(2027, 1, 1, tzinfo=UTC), tick=False) as clock:
        place = scene(PAY, budgets=[budget("10.00", "month")])
        assert verdict(place.pay("8.00")) == "valid"
        revoke_grant(grant=place.grant, actor=SYSTEM, now=timezone.now())
        clock.move_to(datetime(2027, 1, 31, 23, tzinfo=UTC))
        again = replace(place, grant=second(place, PAY, budgets=[budget("10.00", "month")]))
        assert verdict(again.pay("2.01")) == "budget"
        assert left(again.pay("1.00")) == "1.00"
        clock.move_to(datetime(2027, 2, 1, tzinfo=UTC))
        assert left(again.pay("1.00")) == "9.00"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("used", [False, True], ids=["first uses", "used before"])
def test_forty_at_once_under_two_grants_pass_one_budget_only(*, used: bool) -> None:
    place = scene(PAY, budgets=[budget("100.00", "month")])
    other = replace(place, grant=second(place, PAY, budgets=[budget("100.00", "month")]))
    for each in (place, other) if used else ():
        assert verdict(each.pay("0.50")) == "valid"
    tokens = [place.token(), other.token()]
    bodies = [
        place.body(pay("3.00"), token=tokens[number % 2], idempotency_key=key())
        for number in range(40)
    ]
    assert together(place, bodies) == {"valid": 33, "budget": 7}
    spent = sum(row.spent["EUR/month/UTC"][1] for row in GrantLedger.objects.all())
    assert spent == 9900 + 100 * used
