"""The inbox and the feed in pages, wording of times, and small refusals of related pages."""

import uuid
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from approvals.templatetags.display_filters import when
from approvals.tests.cast import PAY, Person, waiting_confirmation
from approvals.tests.test_pending_items import many
from approvals.views import inbox, paging
from audit.models import Event
from audit.services import Actor
from registry.models import Grant, ServiceProvider
from registry.services.grant_requests import withdraw_grant
from registry.tests.cast import TESTER, AgentClient, assert_refused, enrolled, pending

pytestmark = pytest.mark.django_db


def test_the_history_of_the_inbox_comes_in_pages(
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paging, "PAGE", 2)
    made = []
    for number in range(3):
        wish = [{"type": "read", "resource": f"calendar/{number}"}]
        grant = pending(
            agent, service_provider, now=now + timedelta(seconds=number), capabilities=wish
        )
        withdraw_grant(grant=grant, actor=TESTER, now=now)
        made.append(grant.pk)
    first = alice.get("/approvals/").context
    assert [each["grant"].pk for each in first["history"]] == made[:0:-1]
    assert first["first_page"]
    rest = alice.get(f"/approvals/?after={first['next']}").context
    assert [each["grant"].pk for each in rest["history"]] == made[:1]
    assert (rest["next"], rest["first_page"]) == (None, False)
    assert alice.get("/approvals/?after=nonsense").context["history"] == []


def test_what_waits_comes_in_pages_that_lose_nothing(
    alice: Person,
    agent: AgentClient,
    reading: Grant,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "SHOWN", 3)
    paying = pending(agent, service_provider, now=now, capabilities=[PAY])
    alice.approve(paying)
    paying.refresh_from_db()
    payment = waiting_confirmation(paying, now)
    payment.action = {**PAY, "amount": PAY["max_amount"]}
    del payment.action["max_amount"]
    payment.save()
    many(reading, 4)
    requests = Grant.objects.waiting(now).order_by("created_at", "pk")
    whole = [payment.pk, *requests.values_list("pk", flat=True)]
    seen, page = [], alice.get("/approvals/")
    while True:
        context = page.context
        seen += [each["row"].pk for each in context["confirmations"]]
        seen += [each["grant"].pk for each in context["waiting"]]
        assert context["waiting_count"] == len(whole)
        if not context["later"]:
            break
        assert f'href="?skip={context["later"]}"' in page.content.decode()
        page = alice.get(f"/approvals/?skip={context['later']}")
    assert seen == whole
    assert 'href="?skip=0"' in page.content.decode()
    for nonsense in ("900", "-1", "x", "²", "٣", "9" * 40, ""):
        assert alice.get(f"/approvals/?skip={nonsense}").context["first"] == 1


def test_what_one_agent_asks_for_stands_together(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    other = enrolled(alice.human, now=now)
    made = [
        pending(
            each,
            service_provider,
            now=now + timedelta(seconds=number),
            capabilities=[{"type": "read", "resource": f"calendar/{number}"}],
        ).pk
        for number, each in enumerate((agent, other, agent))
    ]
    page = alice.get("/approvals/")
    assert [each["grant"].pk for each in page.context["waiting"]] == [made[0], made[2], made[1]]
    assert page.content.count(b'class="card group"') == 2


def test_a_request_has_the_highest_risk_of_its_permissions(
    alice: Person, reading: Grant, paying: Grant
) -> None:
    found = {each["grant"].pk: each["risk"] for each in alice.get("/approvals/").context["waiting"]}
    assert found == {reading.pk: "low", paying.pk: "high"}


def test_agents_come_in_pages(
    alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE", 2)
    made = [enrolled(alice.human, now=now).agent().pk for _ in range(3)]
    first = alice.get("/agents/")
    assert [each["agent"].pk for each in first.context["rows"]] == made[:0:-1]
    assert f'href="?after={made[1]}"'.encode() in first.content
    rest = alice.get(f"/agents/?after={made[1]}")
    assert [each["agent"].pk for each in rest.context["rows"]] == made[:1]
    assert b"?after=" not in rest.content


def test_the_feed_comes_in_pages_and_of_one_agent(
    alice: Person,
    agent: AgentClient,
    reading: Grant,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enrolled(alice.human, now=now)
    mine = Event.objects.filter(human_id=alice.human.pk).order_by("-id")
    expected = list(mine.values_list("pk", flat=True))
    monkeypatch.setattr(paging, "PAGE", 2)
    seen, query = [], ""
    while True:
        page = alice.get(f"/activity/{query}").context
        seen += [line["event"].pk for line in page["lines"]]
        if page["next"] is None:
            break
        query = f"?after={page['next']}"
    assert seen == expected
    monkeypatch.setattr(paging, "PAGE", 50)
    of_one = alice.get(f"/activity/?agent={reading.agent_id}").context["lines"]
    assert {line["event"].agent_id for line in of_one} == {reading.agent_id}
    assert alice.get("/activity/?agent=nonsense").context["lines"] == []


def test_the_page_of_an_agent_names_only_others_who_acted(
    alice: Person, reading: Grant, now: datetime
) -> None:
    withdraw_grant(grant=reading, actor=Actor("agent", str(reading.agent_id)), now=now)
    page = alice.get(f"/agents/{reading.agent_id}/")
    by_others = [line for line in page.context["lines"] if not line["by"]]
    assert 0 < len(by_others) < len(page.context["lines"])
    assert page.content.count(b'class="small muted by"') == len(by_others)


def test_time_is_shown_in_relative_words() -> None:
    now = timezone.now()
    for at, words in (
        (None, "never"),
        (now, "just now"),
        (now + timedelta(seconds=50), "in a moment"),
        (now + timedelta(hours=2, minutes=5), "in 2\xa0hours"),
        (now - timedelta(days=3), "3\xa0days ago"),
    ):
        assert words in when(at)


def test_what_is_not_there_is_not_found(alice: Person, admin: Person, reading: Grant) -> None:
    assert_refused(alice.client.post(f"/approvals/{uuid.uuid4()}/revoke/x"), 404, "not_found")
    assert_refused(alice.get(f"/approvals/{reading.pk}/receipt/"), 404, "not_found")
    assert_refused(alice.statement(reading, "perhaps"), 400, "invalid_request")
    reading.refresh_from_db()
    assert reading.status == "pending"
    # A signed-in user who is no administrator must not be redirected in a loop.
    assert alice.get("/admin/login/")["Location"] == "/approvals/"
    assert admin.get("/admin/login/")["Location"].startswith("/sign-in/")
