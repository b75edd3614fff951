"""The badge: how much waits, in one query, for a page that asks again and again."""

import os
import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from approvals.services.pending_items import MOST, waiting_for
from approvals.sessions import BACKGROUND_HEADER
from approvals.tests.cast import Person, waiting_confirmation
from audit.models import Event
from registry.models import Grant, ServiceProvider
from registry.services.grant_requests import withdraw_grant
from registry.tests.cast import TESTER, AgentClient, pending

pytestmark = pytest.mark.django_db
WAITING = "/approvals/waiting"


def many(grant: Grant, count: int) -> None:
    """Copies of a pending request, beyond what agents may ask for: as many wait after a restore."""
    fields = [field.attname for field in Grant._meta.concrete_fields]
    same = {name: getattr(grant, name) for name in fields}
    Grant.objects.bulk_create(
        [
            Grant(
                **same
                | {
                    "id": uuid.uuid4(),
                    "request_digest": os.urandom(32),
                    "created_at": grant.created_at + timedelta(seconds=number),
                }
            )
            for number in range(count)
        ]
    )


def test_everything_that_waits_is_counted_and_nothing_else(
    alice: Person,
    bob: Person,
    agent: AgentClient,
    reading: Grant,
    service_provider: ServiceProvider,
) -> None:
    now = timezone.now()
    before = waiting_for(alice.human, now)
    assert before.count == 1
    assert alice.approve(reading).status_code == 200
    reading.refresh_from_db()
    assert waiting_for(alice.human, now).count == 0
    waiting_confirmation(reading, now)
    assert waiting_for(alice.human, now).count == 1
    row = pending(agent, service_provider, now=now)
    both = waiting_for(alice.human, now)
    assert both.count == 2
    withdraw_grant(grant=row, actor=TESTER, now=now)
    after = waiting_for(alice.human, now)
    assert after.count == 1
    assert len({before.state, both.state, after.state}) == 3
    assert waiting_for(alice.human, now) == after
    assert waiting_for(alice.human, now + timedelta(hours=2)).count == 0
    assert waiting_for(bob.human, now).count == 0


def test_a_thousand_items_take_a_query_of_a_hundred_rows(alice: Person, reading: Grant) -> None:
    many(reading, 1_000)
    human, now = alice.human, timezone.now()
    with CaptureQueriesContext(connection) as queries:
        found = waiting_for(human, now)
    # One reads whose the agents are.
    assert len(queries) == 2
    assert f"LIMIT {MOST}" in queries.captured_queries[0]["sql"]
    assert (found.count, found.shown) == (MOST, "99+")
    assert alice.get(WAITING).json()["waiting"] == "99+"
    page = alice.get("/agents/").content.decode()
    assert "<title>(99+) Agents" in page
    # The newest decide whether a page must be drawn again.
    Grant.objects.order_by("-created_at").first().delete()  # type: ignore[union-attr]
    assert waiting_for(human, now).state != found.state


def test_the_badge_costs_as_many_queries_for_any_number(alice: Person, reading: Grant) -> None:
    counts = []
    for number in (0, 1, 300):
        many(reading, number)
        with CaptureQueriesContext(connection) as queries:
            assert alice.get(WAITING).status_code == 200
        counts.append(sum("verifier_home" not in each["sql"] for each in queries.captured_queries))
    # One of them finds that no rule sends this person anything, one whose the agents are.
    assert counts[0] == counts[1] == counts[2] <= 5


def test_every_page_has_the_number_in_its_title_and_badge(alice: Person, reading: Grant) -> None:
    assert reading.status == "pending"
    for path in ("/approvals/", "/agents/", "/activity/", "/settings/"):
        page = alice.get(path).content.decode()
        assert "<title>(1) " in page
        assert ' id="waits"' in page


def test_a_person_for_whom_nothing_waits_has_no_number(bob: Person) -> None:
    page = bob.get("/agents/").content.decode()
    assert "<title>Agents" in page
    assert bob.get(WAITING).json()["waiting"] == ""


def test_asking_keeps_no_session_alive_and_writes_nothing(alice: Person) -> None:
    before = alice.client.session.get_expiry_date()
    seen = alice.client.session["seen"]
    events = Event.objects.count()
    session = alice.client.session
    session["seen"] = seen - 3600
    session.save()
    alice.client.get(WAITING, headers={BACKGROUND_HEADER: "1"})
    assert alice.client.session["seen"] == seen - 3600
    assert alice.client.session.get_expiry_date() >= before
    assert Event.objects.count() == events


def test_asking_ends_with_the_session(alice: Person) -> None:
    alice.client.post("/sign-out/")
    answer = alice.get(WAITING)
    assert answer.status_code == 302
    assert answer["Location"].startswith("/sign-in/")


def test_a_post_asks_nothing(alice: Person) -> None:
    assert alice.post(WAITING).status_code == 405
