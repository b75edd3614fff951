"""The page of spending and use: what is counted, what its limits leave out, and the chart."""

from datetime import date, datetime, timedelta

import pytest

from approvals.tests.acting import PAID, READ, act
from approvals.tests.cast import Person
from approvals.views import spending
from approvals.views.day_chart import Series, draw_days
from audit import kinds
from audit.models import Event
from registry.models import Grant, ServiceProvider
from registry.tests.cast import approved, enrolled

pytestmark = pytest.mark.django_db


@pytest.fixture
def acts(reading: Grant, now: datetime) -> list[Event]:
    return [
        act(reading, now),
        act(reading, now, READ),
        act(reading, now, refused=("envelope_exceeded", "budget")),
    ]


def test_spending_adds_up_by_day_agent_and_currency(
    alice: Person, reading: Grant, now: datetime
) -> None:
    for value in ("80.00", "0.05"):
        act(reading, now, PAID | {"amount": {"value": value, "currency": "EUR"}})
    act(reading, now, PAID | {"amount": {"value": "1200", "currency": "JPY"}})
    act(reading, now, READ)
    act(reading, now, refused=("envelope_exceeded", "budget"))
    # Neither debits.
    act(reading, now, kind=kinds.DECISION_REPEATED)
    act(reading, now, kind=kinds.DECISION_REHEARSED)
    [row] = alice.get("/activity/spending/").context["rows"]
    assert (row["allowed"], row["refused"]) == (4, 1)
    assert row["spent"] == "€80.05, ¥1,200"


def test_spending_counts_a_permit_that_came_too_late_once_and_no_dry_run(
    alice: Person, reading: Grant, now: datetime
) -> None:
    late = act(reading, now)
    act(reading, now, refused=("temporarily_unavailable", "withheld"), withholds=str(late.pk))
    act(reading, now, refused=("envelope_exceeded", "budget"), dry_run=True)
    [row] = alice.get("/activity/spending/").context["rows"]
    assert (row["allowed"], row["refused"], row["spent"]) == (1, 0, "€80.00")


def test_spending_is_the_persons_own(alice: Person, bob: Person, acts: list[Event]) -> None:
    assert alice.get("/activity/spending/").context["rows"]
    page = bob.get("/activity/spending/")
    assert (page.context["rows"], page.context["budgets"], page.context["chart"]) == ([], [], None)


def test_spending_counts_a_bounded_number_of_events_and_says_so(
    alice: Person, acts: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending, "COUNTED", 2)
    page = alice.get("/activity/spending/")
    assert sum(row["allowed"] + row["refused"] for row in page.context["rows"]) == 2
    assert "Only the newest 2 events are counted" in page.content.decode()


def test_spending_says_nothing_if_all_events_are_counted(
    alice: Person, acts: list[Event], now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Event.objects.filter(human_id=alice.human.pk).count()
    today = now.date()
    monkeypatch.setattr(spending, "COUNTED", found)
    assert spending.count_days(alice.human, today - timedelta(days=1))[1] is None
    monkeypatch.setattr(spending, "COUNTED", found - 1)
    assert spending.count_days(alice.human, today - timedelta(days=1))[1] is not None


def test_spending_does_not_mistake_events_before_its_days_for_uncounted_ones(
    alice: Person, acts: list[Event], now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All happened in the hour before the first day.
    monkeypatch.setattr(spending, "COUNTED", 1)
    monkeypatch.setattr(spending, "start_of_day", lambda *_: now + timedelta(minutes=30))
    assert spending.count_days(alice.human, now.date()) == ([], None)


def test_spending_shows_a_bounded_number_of_lines_and_says_so(
    alice: Person,
    acts: list[Event],
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act(approved(enrolled(alice.human, now=now), service_provider, now=now), now)
    assert len(alice.get("/activity/spending/").context["rows"]) == 2
    monkeypatch.setattr(spending, "_LINES", 1)
    page = alice.get("/activity/spending/")
    assert len(page.context["rows"]) == 1
    assert "1 more line is not shown" in page.content.decode()


def test_budgets_in_force_show_what_is_used(alice: Person, paying: Grant) -> None:
    alice.approve(paying)
    page = alice.get("/activity/spending/").content.decode()
    assert "€500.00 a day" in page
    assert "€0.00 spent" in page
    alice.end(f"/approvals/{paying.pk}/revoke/")
    assert "€500.00 a day" not in alice.get("/activity/spending/").content.decode()


def test_bars_of_a_day_stand_on_each_other_and_stay_inside() -> None:
    days = [date(2026, 11, 1) + timedelta(days=each) for each in range(3)]
    chart = draw_days(days, [Series("a", "1", [3, 0, 1]), Series("b", "2", [7, 0, 0])])
    first, second, third = chart["bars"]
    assert float(second["y"]) + float(second["height"]) == pytest.approx(float(first["y"]))
    assert float(second["y"]) == chart["top"]
    assert chart["most"] == "10"
    assert first["x"] == second["x"] != third["x"]
    assert first["title"] == "1 November, a: 3"
