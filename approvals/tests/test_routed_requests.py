"""The job that records each step of what waits, and tells those who may decide since."""

from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from approvals.models import Notification
from approvals.notifications.outbox import add_waiting
from approvals.services.routed_requests import tell_approvers
from approvals.tests.cast import Person, registered
from approvals.tests.notifying import NIGHT, by_mail, outbox
from approvals.tests.test_pages import asking
from audit import kinds
from audit.models import Event
from registry.models import ApprovalRule, ApproverGroup, Grant, GroupMember
from registry.services.approvers import add_member, create_group, create_rule, remove_member
from registry.tests.cast import TESTER
from verifier.models import Confirmation

__all__ = ["asking"]

pytestmark = pytest.mark.django_db


@pytest.fixture
def carol(keys: None, now: datetime) -> Person:
    return registered("carol@example.org", "Carol", now=now)


@pytest.fixture
def groups(bob: Person, carol: Person, now: datetime) -> tuple[ApproverGroup, ApproverGroup]:
    """Bob's Finance, with 15 minutes; then Carol's Directors."""
    last = create_group(name="Directors", wait_minutes=15, next_group=None, actor=TESTER, now=now)
    first = create_group(name="Finance", wait_minutes=15, next_group=last, actor=TESTER, now=now)
    add_member(group=first, human=bob.human, actor=TESTER, now=now)
    add_member(group=last, human=carol.human, actor=TESTER, now=now)
    create_rule(name="Everything", group=first, actor=TESTER, now=now)
    return first, last


def steps(grant: Grant) -> list[tuple[str, str]]:
    events = Event.objects.filter(
        grant_id=grant.pk, kind__in=[kinds.REQUEST_ROUTED, kinds.REQUEST_PASSED_ON]
    )
    return [(each.kind, each.data["because"]) for each in events.order_by("pk")]


def minutes(number: int) -> timedelta:
    return timedelta(minutes=number)


def test_each_group_is_told_when_the_request_comes_to_it_and_once(
    bob: Person,
    carol: Person,
    groups: tuple[ApproverGroup, ApproverGroup],
    paying: Grant,
    now: datetime,
) -> None:
    for person in (bob, carol):
        by_mail(person.human, now)
    at = paying.created_at
    assert tell_approvers(now=at) == 1
    assert outbox(channel__human=bob.human) == [("request", "pending")]
    assert outbox(channel__human=carol.human) == []
    assert steps(paying) == [(kinds.REQUEST_ROUTED, "rule")]
    assert tell_approvers(now=at + minutes(14)) == 0
    assert carol.get(f"/approvals/{paying.pk}/").status_code == 404
    assert tell_approvers(now=at + minutes(15)) == 1
    assert outbox(channel__human=carol.human) == [("request", "pending")]
    assert steps(paying)[1:] == [(kinds.REQUEST_PASSED_ON, "waited")]
    assert tell_approvers(now=at + minutes(16)) == 0
    assert len(steps(paying)) == 2
    # Then the administrators, of whom there are none: the groups still decide.
    assert tell_approvers(now=at + minutes(30)) == 0
    assert len(steps(paying)) == 3


def test_those_who_decide_are_reminded_and_the_owner_is_not_asked(
    alice: Person,
    bob: Person,
    groups: tuple[ApproverGroup, ApproverGroup],
    paying: Grant,
    now: datetime,
) -> None:
    for person in (alice, bob):
        by_mail(person.human, now - timedelta(days=1))
    late = paying.expires_at - minutes(14)
    for at in (paying.created_at, late, late + minutes(1)):
        add_waiting(now=at)
        tell_approvers(now=at)
    assert outbox(channel__human=bob.human) == [
        ("request", "pending"),
        ("request_ends", "pending"),
    ]
    assert outbox(channel__human=alice.human) == []


def test_an_owner_is_not_asked_to_confirm_what_others_decide(
    alice: Person, asking: Confirmation, groups: tuple[ApproverGroup, ApproverGroup], now: datetime
) -> None:
    by_mail(alice.human, now - timedelta(days=1))
    add_waiting(now=now)
    assert outbox(channel__human=alice.human) == []
    ApprovalRule.objects.all().delete()
    add_waiting(now=now)
    assert outbox(channel__human=alice.human) == [("confirmation", "pending")]


def test_an_empty_group_passes_on_at_once_and_the_log_says_why(
    carol: Person, groups: tuple[ApproverGroup, ApproverGroup], paying: Grant, now: datetime
) -> None:
    remove_member(member=GroupMember.objects.get(group=groups[0]), actor=TESTER, now=now)
    tell_approvers(now=now)
    assert steps(paying) == [(kinds.REQUEST_ROUTED, "rule"), (kinds.REQUEST_PASSED_ON, "empty")]
    page = carol.get(f"/approvals/{paying.pk}/").content.decode()
    assert "No member of “Finance” could decide: passed on to “Directors” at" in page
    assert "the rule “Everything” sends this to a group that passed it on to the group" in page
    assert carol.approve(paying).status_code == 200


def test_quiet_hours_hold_for_approvers_too(
    bob: Person, groups: tuple[ApproverGroup, ApproverGroup], paying: Grant, now: datetime
) -> None:
    by_mail(bob.human, now, NIGHT)
    night = now.replace(hour=23)
    Grant.objects.update(created_at=night, expires_at=night + minutes(60))
    assert tell_approvers(now=night) == 0
    day = night + timedelta(hours=8)
    Grant.objects.update(created_at=day, expires_at=day + minutes(60))
    assert tell_approvers(now=day) == 1


def test_the_job_costs_as_many_queries_for_many_requests_as_for_one(
    groups: tuple[ApproverGroup, ApproverGroup], paying: Grant, now: datetime
) -> None:
    tell_approvers(now=now)
    with CaptureQueriesContext(connection) as few:
        tell_approvers(now=now)
    for number in range(50):
        Grant.objects.create(
            agent_id=paying.agent_id,
            service_provider_id=paying.service_provider_id,
            requested_capabilities=paying.requested_capabilities,
            requested_envelope=paying.requested_envelope,
            requested_seconds=paying.requested_seconds,
            request_digest=number.to_bytes(32, "big"),
            created_at=now,
            expires_at=now + minutes(60),
        )
    tell_approvers(now=now)
    with CaptureQueriesContext(connection) as many:
        tell_approvers(now=now)
    assert len(many) == len(few)


def test_without_rules_the_job_asks_one_question_and_does_nothing(
    paying: Grant, now: datetime
) -> None:
    with CaptureQueriesContext(connection) as asked:
        assert tell_approvers(now=now) == 0
    assert len(asked) == 1
    assert not Notification.objects.exists()
