"""No message waits long because another person's, another channel's or another message fails."""

import logging
import socket
from datetime import datetime, timedelta

import pytest
from django.core import mail as django_mail
from django.db import IntegrityError

from approvals.models import Notification, NotificationChannel
from approvals.notifications import delivery, mail, outbox, posting
from approvals.notifications.channel_management import MAX_WEBHOOKS, forget_removed
from approvals.notifications.delivery import BATCH, MAX_ATTEMPTS, send_notifications
from approvals.notifications.outbox import add_waiting, tell_security
from approvals.tests.cast import Person
from approvals.tests.notifying import by_mail, by_webhook
from approvals.tests.push_service import by_push, push_service
from approvals.tests.webhook_receiver import webhook_receiver
from audit.new_ids import new_id
from registry.models import Grant, ServiceProvider
from registry.services.grant_requests import withdraw_grant
from registry.tests.cast import PAY, TESTER, AgentClient, pending

pytestmark = pytest.mark.django_db
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
What = Notification.What


def fill(channel: NotificationChannel, count: int, at: datetime) -> None:
    """Security messages that wait for this channel since `at`."""
    Notification.objects.bulk_create(
        Notification(
            channel=channel, what=What.PASSKEY_ADDED, subject=new_id(), created_at=at, due_at=at,
            expires_at=at + DAY,
        )
        for _ in range(count)
    )  # fmt: skip


def test_a_person_whose_webhooks_hang_delays_no_other_person_and_no_mail(
    alice: Person, bob: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more messages than any run looks at, on as many channels as there may be."""
    monkeypatch.setattr(posting, "SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as silent,
        webhook_receiver() as box,
        push_service() as browser,
    ):
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for number in range(MAX_WEBHOOKS):
            channel, _ = by_webhook(alice.human, now, f"{hanging}/{number}")
            fill(channel, 50, now - MINUTE)
        for person in (alice, bob):
            by_mail(person.human, now)
        by_webhook(bob.human, now, box.url)
        by_push(bob.human, now, browser)
        tell_security(human_id=bob.human.pk, what=What.PASSKEY_ADDED, now=now)
        fill(NotificationChannel.objects.get(human=alice.human, kind="email"), 1, now)
        assert send_notifications(now=now) == 4
        assert len(box.received) == len(browser.messages(now)) == 1
    assert {each.to[0] for each in django_mail.outbox} == {"alice@example.org", bob.human.email}


def test_each_person_has_a_turn_before_one_has_a_second(
    alice: Person, bob: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "BATCH", 2)
    with webhook_receiver() as box:
        for number in range(MAX_WEBHOOKS):
            channel, _ = by_webhook(alice.human, now, f"{box.url}/{number}")
            fill(channel, 1, now - MINUTE)
        channel, _ = by_webhook(bob.human, now, f"{box.url}/bob")
        fill(channel, 1, now)
        assert send_notifications(now=now) == 2
        assert "/hook/bob" in {path for path, _, _ in box.received}


def test_a_run_sends_one_message_to_each_channel_the_oldest(alice: Person, now: datetime) -> None:
    channel = by_mail(alice.human, now)
    fill(channel, 2, now)
    fill(channel, 1, now - MINUTE)
    assert send_notifications(now=now) == 1
    assert Notification.objects.get(state="sent").created_at == now - MINUTE


def test_what_is_not_sent_any_more_takes_no_turn(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    channel = by_mail(alice.human, now - MINUTE)
    withdrawn = pending(agent, service_provider, now=now - MINUTE)
    add_waiting(now=now - MINUTE)
    withdraw_grant(grant=withdrawn, actor=TESTER, now=now)
    fill(channel, BATCH, now - 2 * DAY)
    fill(channel, 1, now)
    assert send_notifications(now=now) == 1
    assert Notification.objects.filter(state="moot").count() == BATCH + 1


def test_a_fault_of_ours_in_one_message_stops_no_other(
    alice: Person, bob: Person, now: datetime, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for person in (alice, bob):
        fill(by_mail(person.human, now), 1, now)
    real, broken = mail.compose, alice.human.pk

    def compose(row: Notification) -> object:
        if row.channel.human_id == broken:
            raise KeyError("a fault")
        return real(row)

    monkeypatch.setattr(mail, "compose", compose)
    with caplog.at_level(logging.ERROR):
        assert send_notifications(now=now) == 1
    row = Notification.objects.get(channel__human=alice.human)
    assert (row.state, row.error, row.attempts) == ("pending", "unexpected", 1)
    assert str(row.pk) in caplog.text


def test_a_message_whose_process_died_each_time_is_dead(alice: Person, now: datetime) -> None:
    fill(by_mail(alice.human, now), 1, now)
    Notification.objects.update(attempts=MAX_ATTEMPTS)
    assert send_notifications(now=now) == 0
    row = Notification.objects.get()
    assert (row.state, row.error) == ("dead", "unexpected")


def test_what_a_new_channel_is_not_told_keeps_nothing_else_back(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(outbox, "BATCH", 1)
    pending(agent, service_provider, now=now)
    by_mail(alice.human, now + MINUTE)
    later = pending(agent, service_provider, now=now + MINUTE, capabilities=[PAY])
    assert add_waiting(now=now + MINUTE) == 1
    assert Notification.objects.get().subject == later.pk


def test_a_channel_removed_during_the_job_stops_no_other_message(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    by_mail(alice.human, now)
    pending(agent, service_provider, now=now)

    def refused(*_: object, **__: object) -> None:
        raise IntegrityError("the channel is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Notification.objects, "bulk_create", refused)
        assert add_waiting(now=now) == 0
    assert Grant.objects.count() == add_waiting(now=now)
    assert forget_removed() == 0
