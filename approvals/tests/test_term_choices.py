"""A user's choices as terms: how they are parsed, and how changes are described."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import Capability
from agentauth.protocol.errors import GrantChangedError, InvalidRequestError
from agentauth.protocol.money import Money
from approvals.services.decidable_requests import find_case
from approvals.services.grant_decision_signing import draw_approval, review_choices
from approvals.services.term_choices import (
    Terms,
    changes,
    chosen_terms,
    read_choices,
    round_up_life,
)
from approvals.tests.cast import READ_CALENDAR, Person
from registry.models import Grant, ServiceProvider
from registry.services.grants import latest_end, suspend_grant
from registry.tests.cast import TESTER, AgentClient, approved

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
# What the fixture `reading` asks for.
REQUESTED_DAYS = 30
PAY = Capability.transact("payments", max_amount=("100.00", "EUR"))
ASKED = Terms(
    capabilities=(Capability.read("calendar"), PAY),
    envelope=parse_envelope(
        {
            "max_requests_per_minute": 10,
            "budgets": [
                {"value": "500.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}
            ],
        }
    ),
    valid_until=NOW + timedelta(days=30),
)


def told(**chosen: object) -> list[str]:
    return changes(ASKED, replace(ASKED, **chosen), at="Acme", now=NOW)  # type: ignore[arg-type]  # by name


def test_what_was_kept_is_not_told() -> None:
    assert told() == []


def test_each_changed_term_is_shown_with_both_values() -> None:
    lower = replace(PAY, max_amount=Money(4_000, "EUR"))
    assert told(capabilities=(Capability.read("calendar"), lower)) == [
        "Maximum amount: €100.00 → €40.00"
    ]
    assert told(capabilities=(PAY,), offered_indexes=(1,)) == ["Off: read “calendar” at “Acme”"]
    [budget] = ASKED.envelope.budgets
    tighter = replace(
        ASKED.envelope,
        max_requests_per_minute=5,
        max_uses=3,
        confirm_above=Money(0, "EUR"),
        budgets=(replace(budget, ceiling=Money(10_000, "EUR")),),
    )
    assert told(envelope=tighter) == [
        "Requests per minute: 10 → 5",
        "Uses in all: no limit → 3",
        "Ask me above: no limit → €0.00",
        "Daily budget: €500.00 → €100.00",
    ]
    assert told(valid_until=NOW + timedelta(days=10)) == ["Valid for, in days: 30 → 10"]


def test_days_are_rounded_up_and_at_least_one() -> None:
    for until, days in ((-1, 1), (1, 1), (86_400, 1), (86_401, 2)):
        assert round_up_life(NOW + timedelta(seconds=until), NOW) == days


def test_up_to_512_known_choices_of_500_characters_are_read() -> None:
    most = {f"limit.{place}.{index}": "1" for place in range(32) for index in range(16)}
    assert read_choices(most) == most
    assert read_choices({"reason": "x" * 500}) == {"reason": "x" * 500}
    unread: list[object] = [
        *([], most | {"budget.0": "on"}),
        *({"reason": "x" * 501}, {"reason": 1}, {"other": "on"}),
    ]
    for wrong in unread:
        with pytest.raises(InvalidRequestError, match="must name fields"):
            read_choices(wrong)


@pytest.mark.django_db
def test_an_end_that_passed_since_the_page_was_drawn_is_refused(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now, capabilities=[READ_CALENDAR])
    suspend_grant(grant=grant, cause=Grant.SuspensionCause.RECOVERY, actor=TESTER, now=now)
    case = find_case(grant.pk, alice.human, now)
    drawn = draw_approval(case, now=now).drawn

    def review(later: timedelta) -> None:
        choices = {"permission.0": "on", "days": "1"}
        review_choices(case, choices, drawn=drawn, now=now + later)

    review(timedelta(hours=23))
    with pytest.raises(GrantChangedError, match="has passed"):
        review(timedelta(days=1))


@pytest.mark.django_db
def test_chosen_limits_replace_requested_ones(paying: Grant, now: datetime) -> None:
    choices = {"permission.0": "on", "permission.1": "on", "rate": "5", "uses": "3"}
    chosen = chosen_terms(paying, choices, zone="UTC", now=now).envelope
    assert (chosen.max_requests_per_minute, chosen.max_burst, chosen.max_uses) == (5, None, 3)


@pytest.mark.django_db
def test_blank_limit_keeps_the_requested_one(paying: Grant, now: datetime) -> None:
    paying.requested_envelope = paying.requested_envelope | {"max_uses": 9, "max_burst": 20}
    choices = {"permission.0": "on", "permission.1": "on", "rate": "5", "uses": ""}
    chosen = chosen_terms(paying, choices, zone="UTC", now=now).envelope
    # A burst cannot be larger than the rate.
    assert (chosen.max_burst, chosen.max_uses) == (5, 9)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("days", "shortened"), [(REQUESTED_DAYS - 1, True), (REQUESTED_DAYS, False)]
)
def test_chosen_end_is_a_whole_second_and_at_most_the_latest(
    reading: Grant, now: datetime, days: int, *, shortened: bool
) -> None:
    assert timedelta(seconds=reading.requested_seconds) == timedelta(days=REQUESTED_DAYS)
    now = now.replace(microsecond=123)
    choices = {"permission.0": "on", "days": str(days)}
    end = chosen_terms(reading, choices, zone="UTC", now=now).valid_until
    assert end.microsecond == 0
    assert (end < latest_end(reading, now)) is shortened
