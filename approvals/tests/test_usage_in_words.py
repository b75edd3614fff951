"""What pages say about use under other grants, and about a threshold without a budget."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from approvals import sentences
from approvals.models import Receipt
from approvals.resume_consent_texts import grant_text
from approvals.tests.cast import PAY, READ_CALENDAR, Person
from approvals.views.usage_in_words import load_usage
from registry.models import Grant, ServiceProvider
from registry.services.grants import revoke_grant
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, enrolled, pending
from verifier.models import GrantLedger

pytestmark = pytest.mark.django_db

NOON = datetime(2027, 1, 13, 12, tzinfo=UTC)
DAY = {"value": "500.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}
ENDED = "a grant that ended on 13 January 2027, 13:00 (Europe/Berlin)"
FOUND = "Today €340.00 was already spent under %s. It counts towards the budget of €500.00 a day."
RATES_ADD = "Another grant at this service is active. Its requests per minute come on top of these."


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    """Stopped at noon on a Wednesday."""
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


@pytest.fixture
def now(clock: time_machine.Traveller) -> datetime:
    return NOON


@pytest.fixture
def alice(alice: Person) -> Person:
    type(alice.human).objects.update(time_zone="Europe/Berlin")
    return alice


def asked(agent: AgentClient, provider: ServiceProvider, **envelope: Any) -> Grant:
    return pending(
        agent, provider, now=timezone.now(), capabilities=[READ_CALENDAR, PAY], envelope=envelope
    )


def used(grant: Grant, uses: int = 3, **spent: int) -> None:
    """Set the ledger as decisions leave it: minor units by period."""
    starts = {"day": "2027-01-13", "month": "2027-01-01", "total": "total"}
    counted = {
        f"EUR/{period}/Europe/Berlin": [starts[period], minor] for period, minor in spent.items()
    }
    GrantLedger.objects.create(grant=grant, uses=uses, spent=counted)


def revoked(grant: Grant) -> None:
    grant.refresh_from_db()
    revoke_grant(grant=grant, actor=TESTER, now=timezone.now())


def before(person: Person, grant: Grant) -> Sequence[str]:
    """What the grant's page says, in its text and not only in its context."""
    page = person.get(f"/approvals/{grant.pk}/")
    lines: list[str] = page.context["before"]
    for line in lines:
        assert line in page.content.decode()
    return lines


def test_pages_show_a_period_before_in_no_budget_of_its_own_zone(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    first = asked(agent, service_provider, budgets=[DAY])
    alice.approve(first)
    used(first, day=34_000)
    row = GrantLedger.objects.get(grant=first)
    row.spent["EUR/day-before/Europe/Berlin"] = ["2027-01-12", 10_000]
    row.save()
    [bar] = load_usage(agent.agent()).bars(Grant.objects.get(pk=first.pk), now)
    assert (bar["text"], bar["value"]) == ("€340.00 spent", 34_000)
    revoked(first)
    again = asked(agent, service_provider, budgets=[DAY])
    assert before(alice, again)[0] == FOUND % ENDED
    [line, _uses] = load_usage(agent.agent()).of_ended(Grant.objects.get(pk=first.pk), now)
    assert line.startswith("Today €340.00 was spent under this grant.")


def test_the_approval_page_says_what_was_spent_and_that_a_permission_ended(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    first = asked(agent, service_provider, budgets=[DAY])
    alice.approve(first)
    used(first, day=34_000)
    revoked(first)
    again = asked(agent, service_provider, budgets=[DAY])
    assert before(alice, again) == [FOUND % ENDED]
    alice.approve(again)
    assert before(alice, again) == [FOUND % ENDED]
    # On the agent's page too, with the budget that limits a payment.
    [each] = alice.get(f"/agents/{first.agent_id}/").context["grants"]
    assert each["before"] == [FOUND % ENDED]
    [bar] = each["use"]
    assert (bar["value"], bar["max"]) == (34_000, 50_000)
    assert bar["text"] == "€340.00 spent, €340.00 of it under other grants"
    # And on the page of the grant that ended.
    assert before(alice, first) == [
        (
            "Today €340.00 was spent under this grant. It also counts towards later grants with "
            "such a budget."
        ),
        "It was used 3 times.",
    ]


def test_last_end_of_several_former_grants_is_shown(
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    clock: time_machine.Traveller,
) -> None:
    for _ in range(2):
        one = asked(agent, service_provider, budgets=[DAY])
        alice.approve(one)
        used(one, day=17_000)
        revoked(one)
        clock.shift(timedelta(minutes=5))
    again = asked(agent, service_provider, budgets=[DAY])
    under = "2 grants, the last of which ended on 13 January 2027, 13:05 (Europe/Berlin)"
    assert before(alice, again) == [FOUND % under]
    clock.shift(timedelta(days=1))
    alice.sign_in()
    assert before(alice, asked(agent, service_provider, budgets=[DAY])) == []


def test_total_and_uses_begin_again_and_the_page_says_what_was_used(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    terms: dict[str, Any] = {"budgets": [DAY | {"period": "total"}], "max_uses": 10}
    first = asked(agent, service_provider, **terms)
    alice.approve(first)
    used(first, uses=7, total=45_000)
    revoked(first)
    assert before(alice, asked(agent, service_provider, **terms)) == [
        (
            "This grant starts a new total (€500.00 in all): €450.00 spent under earlier grants "
            "does not count."
        ),
        f"This grant starts a new count of uses: 7 uses under {ENDED} do not count.",
    ]


def test_a_second_permission_shares_the_budget_and_its_rate_comes_on_top(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    first = asked(agent, service_provider, budgets=[DAY], max_requests_per_minute=30)
    alice.approve(first)
    used(first, day=34_000)
    then = asked(agent, service_provider, budgets=[DAY], max_requests_per_minute=20)
    assert before(alice, then) == [FOUND % "another active grant", RATES_ADD]


def test_spending_that_no_new_budget_counts_is_shown_too(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    month = DAY | {"period": "month"}
    first = asked(agent, service_provider, budgets=[DAY, month])
    alice.approve(first)
    used(first, day=34_000, month=40_000)
    revoked(first)
    uncounted = f"Today €340.00 was already spent under {ENDED}. No budget of this grant counts it."
    assert before(alice, asked(agent, service_provider, budgets=[DAY | {"period": "week"}])) == [
        uncounted
    ]
    assert before(alice, asked(agent, service_provider)) == [uncounted]
    # If one budget counts it, the page says that.
    assert before(alice, asked(agent, service_provider, budgets=[month])) == [
        (
            f"This month €400.00 was already spent under {ENDED}. It counts towards the budget of "
            "€500.00 a month."
        )
    ]
    reading = pending(agent, service_provider, now=now, capabilities=[READ_CALENDAR])
    assert before(alice, reading) == []


def test_use_at_another_service_or_by_another_agent_is_not_told(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    elsewhere, _secret = create_service_provider(
        name="Other",
        audience="http://127.0.0.1:8002",
        allowed=service_provider.allowed,
        actor=TESTER,
        now=now,
    )
    other = enrolled(alice.human, now=now)
    for each in (
        asked(agent, elsewhere, budgets=[DAY]),
        asked(other, service_provider, budgets=[DAY]),
    ):
        alice.approve(each)
        used(each, day=34_000)
        revoked(each)
    assert before(alice, asked(agent, service_provider, budgets=[DAY], max_uses=3)) == []


def warning(count: int, each: str, total: str) -> str:
    return (
        f"No budget limits the sum: {count} payments of {each} move {total} without a confirmation."
    )


@pytest.mark.parametrize(
    ("envelope", "expected"),
    [
        ({"confirm_above": "99.00"}, [warning(10, "€99.00", "€990.00")]),
        # An amount above the permission's limit is never asked about either.
        ({"confirm_above": "900.00"}, [warning(10, "€100.00", "€1,000.00")]),
        ({"confirm_above": "99.00", "max_uses": 4}, [warning(4, "€99.00", "€396.00")]),
        ({"confirm_above": "99.00", "max_uses": 1}, []),
        ({"confirm_above": "0.00"}, []),
        ({"confirm_above": "99.00", "budgets": [DAY]}, []),
        ({}, []),
    ],
    ids=str,
)
def test_a_threshold_without_a_budget_is_flagged(
    envelope: dict[str, Any], expected: list[str]
) -> None:
    if "confirm_above" in envelope:
        envelope = envelope | {
            "confirm_above": {"value": envelope["confirm_above"], "currency": "EUR"}
        }
    pay = PAY | {"max_amount": {"value": "100.00", "currency": "EUR"}}
    capabilities = parse_capabilities([READ_CALENDAR, pay])
    assert sentences.unasked_total(capabilities, parse_envelope(envelope)) == expected
    assert (
        sentences.unasked_total(parse_capabilities([READ_CALENDAR]), parse_envelope(envelope)) == []
    )


def test_warning_is_on_the_page_and_in_the_signed_text(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider
) -> None:
    grant = asked(agent, service_provider, confirm_above={"value": "40.00", "currency": "EUR"})
    page, flag = alice.get(f"/approvals/{grant.pk}/"), warning(10, "€40.00", "€400.00")
    assert page.content.decode().count(flag) == 1
    assert (flag, None) in page.context["statement"]
    # With a budget chosen by the user the warning disappears.
    choices = {"permission.0": "on", "permission.1": "on", "daily": "100.00"}
    reviewed = alice.ask(grant, "review", choices=choices).json()
    assert not any("No budget" in line for line, _place in reviewed["lines"])
    alice.approve(grant)
    assert flag in Receipt.objects.get().consent_text
    # Wherever its limits are read or signed again.
    grant.refresh_from_db()
    assert flag in grant_text(grant, by_admin=False)
    assert flag in alice.get(f"/approvals/{grant.pk}/").content.decode()
