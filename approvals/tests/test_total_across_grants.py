"""What the approval page says an agent could do in total, before and after."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from approvals.services.term_choices import Terms
from approvals.services.total_across_grants import total_reach
from approvals.tests.cast import PAY, READ_CALENDAR, Person
from registry.models import Grant, ServiceProvider
from registry.services.grants import suspend_grant
from registry.tests.cast import TESTER, AgentClient, approved, pending

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY, MONTH = "Spend at “Acme” per day (EUR)", "Spend at “Acme” per month (EUR)"


def euros(value: str) -> dict[str, str]:
    return {"value": value, "currency": "EUR"}


def budget(value: str, period: str, zone: str = "UTC") -> dict[str, str]:
    return euros(value) | {"period": period, "zone": zone}


def grant_of(
    *capabilities: dict[str, Any], at: str = "Acme", audience: str = "", **envelope: Any
) -> Grant:
    """A grant that is not stored."""
    return Grant(
        service_provider=ServiceProvider(name=at, audience=audience),
        capabilities=list(capabilities),
        envelope=envelope,
    )


def told(asked: Grant, *others: Grant) -> dict[str, tuple[str, str]]:
    assert asked.capabilities is not None
    terms = Terms(parse_capabilities(asked.capabilities), parse_envelope(asked.envelope), NOW)
    found = total_reach(asked, terms, others)
    return {each.label: (each.before, each.after) for each in found}


def test_permissions_and_those_with_high_risk_are_counted() -> None:
    delete = {"type": "delete", "resource": "files"}
    assert told(grant_of(READ_CALENDAR)) == {
        "Permissions": ("none", "1"),
        "Of these, with high risk": ("none", "none"),
    }
    held = grant_of(READ_CALENDAR)
    held.status = Grant.Status.APPROVED
    assert told(held)["Permissions"] == ("1", "1"), "a grant to renew is in force"
    counted = told(grant_of(READ_CALENDAR, delete), grant_of(READ_CALENDAR), grant_of(delete))
    assert counted == {"Permissions": ("2", "4"), "Of these, with high risk": ("1", "2")}


@pytest.mark.parametrize(
    ("envelope", "day", "month"),
    [
        ({}, "without limit", "without limit"),
        ({"budgets": [budget("50.00", "day")]}, "€50.00", "€1,550.00"),
        ({"budgets": [budget("50.00", "week")]}, "€50.00", "€300.00"),
        ({"budgets": [budget("50.00", "month")]}, "€50.00", "€50.00"),
        ({"budgets": [budget("50.00", "total")]}, "€50.00", "€50.00"),
        (
            {"budgets": [budget("50.00", "day"), budget("400.00", "month")]},
            "€50.00",
            "€400.00",
        ),
        ({"max_uses": 3}, "€300.00", "€300.00"),
        ({"max_uses": 3, "budgets": [budget("50.00", "day")]}, "€50.00", "€300.00"),
        # A threshold asks; it limits no sum.
        ({"confirm_above": euros("10.00")}, "without limit", "without limit"),
    ],
)
def test_the_tightest_limit_bounds_a_day_and_a_month(
    envelope: dict[str, Any], day: str, month: str
) -> None:
    found = told(grant_of(PAY, **envelope))
    assert (found[DAY], found[MONTH]) == (("nothing", day), ("nothing", month))


def test_budgets_of_one_period_at_one_service_count_each_other() -> None:
    asked = grant_of(PAY, budgets=[budget("300.00", "day")])
    other = grant_of(PAY, budgets=[budget("500.00", "day")])
    assert told(asked, other)[DAY] == ("€500.00", "€500.00")
    monthly = grant_of(PAY, budgets=[budget("500.00", "month")])
    assert told(asked, monthly)[DAY] == ("€500.00", "€800.00")


def test_budgets_of_two_zones_are_added() -> None:
    """A day of one zone has hours of two days of the other, so one budget can be spent twice."""
    asked = grant_of(PAY, budgets=[budget("100.00", "day")])
    other = grant_of(PAY, budgets=[budget("100.00", "day", "Europe/Berlin")])
    assert told(asked, other)[DAY] == ("€100.00", "€200.00")
    both = [budget("100.00", "day"), budget("300.00", "day", "Europe/Berlin")]
    assert told(grant_of(PAY, budgets=both), other)[DAY] == ("€100.00", "€200.00")
    assert told(grant_of(PAY, budgets=both), asked)[DAY] == ("€100.00", "€100.00")


def test_a_month_is_bound_by_the_days_and_weeks_it_touches() -> None:
    for period, month in (("day", "€310.00"), ("week", "€60.00"), ("month", "€10.00")):
        asked = grant_of(PAY, budgets=[budget("10.00", period)])
        other = grant_of(PAY, budgets=[budget("5.00", period)])
        assert told(asked, other)[MONTH][1] == month
        assert told(asked, other)[DAY][1] == "€10.00"


def test_services_of_the_same_name_are_not_one() -> None:
    """Their budgets count nothing of each other."""
    asked = grant_of(PAY, audience="https://a.example", budgets=[budget("100.00", "day")])
    other = grant_of(PAY, audience="https://b.example", budgets=[budget("100.00", "day")])
    found = told(asked, other)
    assert found["Spend at “Acme” (https://a.example) per day (EUR)"] == ("nothing", "€100.00")
    assert found["Spend at “Acme” (https://b.example) per day (EUR)"] == ("€100.00", "€100.00")
    assert found["Spend at all services per day (EUR)"] == ("€100.00", "€200.00")


def test_one_grant_without_a_limit_makes_the_sum_unlimited() -> None:
    asked = grant_of(PAY, budgets=[budget("300.00", "day")])
    assert told(asked, grant_of(PAY))[DAY] == ("without limit", "without limit")
    assert told(grant_of(PAY), asked)[DAY] == ("€300.00", "without limit")


def test_services_are_summed_by_currency() -> None:
    asked = grant_of(PAY, budgets=[budget("300.00", "day")])
    there = grant_of(PAY, at="Beta", budgets=[budget("20.00", "day")])
    dollars = {**PAY, "max_amount": {"value": "5.00", "currency": "USD"}}
    abroad = grant_of(dollars, at="Beta", max_uses=2)
    found = told(asked, there, abroad)
    assert found["Spend at “Beta” per day (EUR)"] == ("€20.00", "€20.00")
    assert found["Spend at “Beta” per day (USD)"] == ("$10.00", "$10.00")
    assert found["Spend at all services per day (EUR)"] == ("€20.00", "€320.00")
    assert "Spend at all services per day (USD)" not in found


@pytest.mark.django_db
def test_the_page_and_the_preview_count_active_grants_alone(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    limits = {"budgets": [budget("70.00", "day")]}
    approved(agent, service_provider, now=now, capabilities=[PAY], envelope=limits)
    stopped = approved(agent, service_provider, now=now, capabilities=[PAY])
    suspend_grant(grant=stopped, actor=TESTER, now=now)
    grant = pending(agent, service_provider, now=now, capabilities=[READ_CALENDAR, PAY])
    label = "Spend at “Acme Payments” per day (EUR)"
    page = alice.get(f"/approvals/{grant.pk}/")
    [row] = [each for each in page.context["totals"] if each.label == label]
    assert (row.before, row.after) == ("€70.00", "without limit")
    choices = {"permission.1": "on", "total": "30"}
    found = alice.ask(grant, "review", choices=choices).json()["totals"]
    assert [label, "€70.00", "€100.00"] in found
    assert ["Permissions", "1", "2"] in found


@pytest.mark.django_db
def test_a_preview_needs_the_same_number_of_queries_for_many_grants(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now, capabilities=[PAY])
    drawn = alice.drawn(grant)

    def count() -> int:
        with CaptureQueriesContext(connection) as captured:
            answer = alice.ask(grant, "review", drawn=drawn, choices={"permission.0": "on"})
            assert answer.status_code == 200
        # Once a second a process checks whether it may act.
        return sum("verifier_home" not in query["sql"] for query in captured)

    def more(number: int) -> None:
        wish = [{"type": "read", "resource": f"calendar/n{number}"}]
        approved(agent, service_provider, now=now, capabilities=wish)

    more(0)
    before = count()
    for number in range(1, 4):
        more(number)
    assert count() == before
