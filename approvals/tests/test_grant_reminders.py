"""Owners are told once that a grant their agent uses ends soon, and again for a later end."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from approvals.models import Notification
from approvals.notifications.delivery import send_notifications
from approvals.notifications.outbox import (
    MIN_GRANT_LIFE,
    REMIND_GRANT_BEFORE,
    USED_WITHIN,
    add_waiting,
)
from approvals.services.expiry import KEPT
from approvals.tests.cast import Person
from approvals.tests.notifying import NIGHT, by_mail, outbox
from approvals.tests.test_renewal import asked
from registry.models import Agent, Grant, ServiceProvider
from registry.services.grants import revoke_grant
from registry.tests.cast import TESTER, AgentClient, approve, issue, pending

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def ends_in(
    days: float, agent: AgentClient, provider: ServiceProvider, now: datetime, *, life: int = 30
) -> Grant:
    """Approved long ago; with a token since."""
    grant = pending(agent, provider, now=now)
    end = (now + days * DAY).replace(microsecond=0)
    approve(grant, _owner(grant), now=now, valid_until=end)
    Grant.objects.filter(pk=grant.pk).update(decided_at=end - life * DAY)
    assert issue(agent, grant).status_code == 201
    return grant


def _owner(grant: Grant) -> Any:
    return grant.agent.human


@pytest.fixture
def ending(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> Grant:
    by_mail(alice.human, now)
    return ends_in(2.9, agent, service_provider, now)


def test_the_owner_is_told_once_that_a_used_grant_ends_soon(
    alice: Person, ending: Grant, now: datetime, mailoutbox: list[Any]
) -> None:
    add_waiting(now=now)
    add_waiting(now=now + DAY)
    assert outbox() == [("grant_ends", "pending")]
    assert send_notifications(now=now + DAY) == 1
    [mail] = mailoutbox
    assert "ends within 3 days" in mail.body
    assert f"/approvals/{ending.pk}/" in mail.body
    add_waiting(now=now + 2 * DAY)
    assert outbox() == [("grant_ends", "sent")]
    # A row that was sent stays longer than the time in which it would be added again.
    assert REMIND_GRANT_BEFORE < KEPT


def test_a_renewal_ends_the_reminder_and_its_end_has_another(
    alice: Person, ending: Grant, now: datetime
) -> None:
    send_notifications(now=now)
    assert outbox() == [("grant_ends", "sent")]
    assert alice.approve(asked(alice, ending)).status_code == 200
    assert outbox() == []
    add_waiting(now=now)
    assert outbox() == []
    ending.refresh_from_db()
    end = ending.valid_until
    assert end is not None
    assert add_waiting(now=end - REMIND_GRANT_BEFORE) == 0, "no token for a month"
    Grant.objects.filter(pk=ending.pk).update(
        decided_at=now - MIN_GRANT_LIFE, valid_until=now + DAY
    )
    assert add_waiting(now=now) == 1


def test_a_reminder_is_dropped_once_the_grant_ends_later_or_is_revoked(
    alice: Person, ending: Grant, now: datetime
) -> None:
    add_waiting(now=now)
    revoke_grant(grant=ending, actor=TESTER, now=now)
    assert send_notifications(now=now) == 0
    assert outbox() == [("grant_ends", "moot")]


def test_what_is_unused_short_or_far_from_its_end_has_no_reminder(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    by_mail(alice.human, now)
    ends_in(3.1, agent, service_provider, now)
    assert add_waiting(now=now) == 0
    short = ends_in(2, agent, service_provider, now, life=MIN_GRANT_LIFE.days - 1)
    assert add_waiting(now=now) == 0
    Grant.objects.filter(pk=short.pk).update(
        decided_at=now - 30 * DAY, valid_until=now + USED_WITHIN + DAY
    )
    assert add_waiting(now=now + USED_WITHIN + DAY / 24) == 0
    Grant.objects.filter(pk=short.pk).update(valid_until=now + DAY)
    Agent.objects.update(status=Agent.Status.SUSPENDED)
    assert add_waiting(now=now) == 0
    Agent.objects.update(status=Agent.Status.ACTIVE)
    assert add_waiting(now=now) == 1


def test_a_reminder_keeps_quiet_hours_and_the_choice_of_subjects(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    channel = by_mail(alice.human, now, NIGHT)
    ends_in(2.9, agent, service_provider, now)
    midnight = now.replace(hour=23, minute=30) + (DAY if now.hour == 23 else 0 * DAY)
    add_waiting(now=midnight)
    assert Notification.objects.get().due_at > midnight
    Notification.objects.all().delete()
    type(channel).objects.update(for_requests=False)
    assert add_waiting(now=now) == 0
