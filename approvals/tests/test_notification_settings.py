"""A pending decision is mailed to its person once, and never after it was made."""

import logging
from datetime import UTC, datetime, time, timedelta

import pytest
from django.core import mail
from django.db import transaction
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Notification, NotificationChannel
from approvals.notifications import delivery
from approvals.notifications.channel_management import Choices
from approvals.notifications.delivery import MAX_ATTEMPTS, retry, send_notifications
from approvals.notifications.outbox import REMIND_BEFORE, add_waiting, quiet_end
from approvals.services.expiry import expire_everything
from approvals.services.human_suspension_and_erasure import delete_human, suspend_human
from approvals.services.routed_requests import tell_owner
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import Person, waiting_confirmation
from approvals.tests.notifying import NIGHT, by_mail, by_webhook, outbox
from approvals.tests.recovering import begun
from approvals.tests.smtp_server import smtp_server
from audit.models import Event
from audit.new_ids import new_id
from registry.models import Grant, ServiceProvider
from registry.models.grants import PENDING_LIFE
from registry.services.grant_requests import withdraw_grant
from registry.tests.cast import TESTER, AgentClient, pending
from verifier.models import Confirmation

pytestmark = pytest.mark.django_db
SMTP = "django.core.mail.backends.smtp.EmailBackend"
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def request_(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> Grant:
    """A pending request to alice, who is told by mail."""
    by_mail(alice.human, now)
    return pending(agent, service_provider, now=now)


def test_a_pending_request_is_mailed_once_without_names(
    request_: Grant, settings: Settings, now: datetime
) -> None:
    settings.EMAIL_BACKEND, settings.EMAIL_HOST = SMTP, "127.0.0.1"
    settings.EMAIL_USE_TLS = settings.EMAIL_USE_SSL = False
    with smtp_server() as box:
        settings.EMAIL_PORT = box.port
        assert send_notifications(now=now) == 1
        assert send_notifications(now=now + MINUTE) == 0
    [(receivers, text)] = box.mails
    assert receivers == ["alice@example.org"]
    assert "Subject: AgentAuth: A request is waiting for your decision\r\n" in text
    assert f"http://localhost:8000/approvals/{request_.pk}/" in text
    assert "Auto-Submitted: auto-generated" in text
    named = (request_.agent.name, request_.service_provider.name, "Alice")
    assert not [name for name in named if name in text]


def test_a_message_that_a_mail_server_refuses_is_tried_again_later(
    request_: Grant, settings: Settings, now: datetime
) -> None:
    settings.EMAIL_BACKEND, settings.EMAIL_HOST = SMTP, "127.0.0.1"
    settings.EMAIL_USE_TLS = settings.EMAIL_USE_SSL = False
    with smtp_server() as box:
        settings.EMAIL_PORT, box.refusing = box.port, 1
        assert send_notifications(now=now) == 0
        row = Notification.objects.get()
        assert (row.state, row.attempts, row.error) == ("pending", 1, "SMTPRecipientsRefused")
        assert now + timedelta(seconds=5) <= row.due_at <= now + timedelta(seconds=6.25)
        assert send_notifications(now=row.due_at) == 1
    assert [mail[0] for mail in box.mails] == [["alice@example.org"]]
    assert Notification.objects.get().error == ""


def test_the_wait_between_attempts_doubles_up_to_an_hour() -> None:
    waits = [delivery._wait(attempts) for attempts in range(1, MAX_ATTEMPTS)]
    bases = [timedelta(seconds=5 * 2**number) for number in range(9)]
    assert all(base <= wait <= base * 1.25 for wait, base in zip(waits, bases, strict=False))
    assert delivery.LONGEST_WAIT <= waits[-1] <= delivery.LONGEST_WAIT * 1.25


def test_a_message_that_always_fails_is_dead_and_may_be_sent_again(
    alice: Person, settings: Settings, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    by_mail(alice.human, now)
    _add_passkey(alice)
    settings.EMAIL_BACKEND = ""
    at = Notification.objects.get().due_at
    with caplog.at_level(logging.ERROR):
        for _ in range(MAX_ATTEMPTS):
            assert send_notifications(now=at) == 0
            at = Notification.objects.get().due_at
    row = Notification.objects.get()
    assert (row.state, row.attempts, row.error) == ("dead", MAX_ATTEMPTS, "no_mail_server")
    assert caplog.text.count("after 16 attempts: no_mail_server") == 1
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert send_notifications(now=at) == 0
    retry(notification=row, actor=TESTER, now=at)
    with pytest.raises(InvalidStateError):
        retry(notification=row, actor=TESTER, now=at)
    assert send_notifications(now=at) == 1
    assert Event.objects.filter(kind="approvals.notification.retried").count() == 1


def test_what_failed_until_its_end_is_dead_and_not_sent_again(
    request_: Grant, settings: Settings, now: datetime
) -> None:
    settings.EMAIL_BACKEND = ""
    send_notifications(now=now)
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    over = request_.expires_at
    assert send_notifications(now=over) == 0
    row = Notification.objects.get()
    assert (row.state, row.error) == ("dead", "no_mail_server")
    with pytest.raises(InvalidStateError):
        retry(notification=row, actor=TESTER, now=over)


def test_nothing_is_sent_for_a_request_that_was_decided_meanwhile(
    request_: Grant, now: datetime
) -> None:
    assert add_waiting(now=now) == 1
    withdraw_grant(grant=request_, actor=TESTER, now=now)
    assert send_notifications(now=now) == 0
    assert (mail.outbox, outbox()) == ([], [("request", "moot")])


def test_nothing_is_sent_for_a_request_of_a_revoked_agent(request_: Grant, now: datetime) -> None:
    add_waiting(now=now)
    type(request_.agent).objects.filter(pk=request_.agent_id).update(status="revoked")
    assert send_notifications(now=now) == 0
    assert add_waiting(now=now) == 0


def test_a_request_is_told_again_before_it_ends_and_only_once(
    request_: Grant, now: datetime
) -> None:
    send_notifications(now=now)
    before = request_.expires_at - REMIND_BEFORE
    assert send_notifications(now=before - timedelta(seconds=1)) == 0
    assert send_notifications(now=before) == 1
    assert send_notifications(now=before + MINUTE) == 0
    subject = mail.outbox[1].subject
    assert subject == "AgentAuth: A request that is waiting for your decision expires soon"


def test_a_decided_request_has_no_reminder(request_: Grant, now: datetime) -> None:
    send_notifications(now=now)
    withdraw_grant(grant=request_, actor=TESTER, now=now)
    assert send_notifications(now=request_.expires_at - REMIND_BEFORE) == 0


def test_a_new_channel_is_not_told_of_what_waited_before(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    pending(agent, service_provider, now=now)
    by_mail(alice.human, now + MINUTE)
    assert add_waiting(now=now + MINUTE) == 0


def test_of_two_channels_the_newer_is_not_told_of_what_waited_before(
    request_: Grant, alice: Person, now: datetime
) -> None:
    by_webhook(alice.human, now + MINUTE, "https://hooks.example.org/")
    assert add_waiting(now=now + MINUTE) == 1
    assert Notification.objects.get().channel.kind == "email"


def test_a_transaction_that_waits_for_confirmation_is_told_until_it_is_decided(
    alice: Person, reading: Grant, now: datetime
) -> None:
    by_mail(alice.human, now)
    Notification.objects.all().delete()
    rows = [waiting_confirmation(reading, now, key=f"order-{number}") for number in range(2)]
    reading.status = Grant.Status.WITHDRAWN
    reading.save()
    assert add_waiting(now=now) == 2
    rows[0].status = Confirmation.Status.EXPIRED
    rows[0].save()
    assert send_notifications(now=now) == 1
    assert f"/confirmations/{rows[1].pk}/" in mail.outbox[0].body
    assert outbox(what="confirmation", subject=rows[0].pk) == [("confirmation", "moot")]


def test_only_the_owner_is_told(request_: Grant, bob: Person, now: datetime) -> None:
    by_mail(bob.human, now)
    assert send_notifications(now=now) == 1
    assert mail.outbox[0].to == ["alice@example.org"]


def test_a_channel_is_told_only_of_what_it_is_for(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    by_mail(alice.human, now, Choices(requests=False, confirmations=False, security=True))
    pending(agent, service_provider, now=now)
    assert add_waiting(now=now) == 0
    NotificationChannel.objects.update(for_requests=True, for_security=False)
    _add_passkey(alice)
    assert outbox() == []
    assert add_waiting(now=now) == 1
    NotificationChannel.objects.update(for_requests=False, for_security=True)
    # Switched off between the row and its sending.
    assert send_notifications(now=now) == 0


def test_quiet_hours_hold_requests_back_and_not_security(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    night = now.replace(hour=6, minute=30, second=0, microsecond=0)
    channel = by_mail(alice.human, night - DAY, NIGHT)
    pending(agent, service_provider, now=night)
    _add_passkey(alice)
    Notification.objects.update(created_at=night, due_at=night, expires_at=night + DAY)
    assert send_notifications(now=night) == 1
    assert "passkey was added" in mail.outbox[0].subject
    morning = night.replace(hour=7, minute=0)
    assert quiet_end(channel, alice.human, night) == morning
    assert send_notifications(now=morning - timedelta(seconds=1)) == 0
    assert send_notifications(now=morning) == 1


@pytest.mark.parametrize(
    ("at", "end"),
    [
        # Berlin is an hour ahead of UTC in winter, two in summer; on 29 March 2026 the clock goes
        # from 2 to 3, on 25 October from 3 back to 2.
        ("2026-03-28T23:00", "2026-03-29T05:00"),
        ("2026-10-24T22:00", "2026-10-25T06:00"),
        ("2026-01-15T20:59", None),
        ("2026-01-15T21:00", "2026-01-16T06:00"),
        ("2026-01-15T05:59", "2026-01-15T06:00"),
        ("2026-01-15T06:00", None),
        # In the night in which 2 to 3 comes twice, quiet until 7.
        ("2026-10-25T00:30", "2026-10-25T06:00"),
    ],
)
def test_quiet_hours_are_those_of_the_persons_zone(at: str, end: str | None, alice: Person) -> None:
    human = alice.human
    human.time_zone = "Europe/Berlin"
    channel = NotificationChannel(quiet_from=time(22), quiet_until=time(7))
    found = quiet_end(channel, human, datetime.fromisoformat(at).replace(tzinfo=UTC))
    assert (found and f"{found.astimezone(UTC):%Y-%m-%dT%H:%M}") == end


@pytest.mark.parametrize(
    ("at", "end"),
    [
        ("2026-10-25T00:15", "2026-10-25T00:30"),
        ("2026-10-25T01:15", "2026-10-25T01:30"),
    ],
)
def test_quiet_hours_that_end_in_an_hour_that_comes_twice(at: str, end: str, alice: Person) -> None:
    """From 1 to 2:30 in Berlin, where 2 to 3 is 0 to 1 UTC and then 1 to 2 UTC."""
    human = alice.human
    human.time_zone = "Europe/Berlin"
    channel = NotificationChannel(quiet_from=time(1), quiet_until=time(2, 30))
    found = quiet_end(channel, human, datetime.fromisoformat(at).replace(tzinfo=UTC))
    assert (found and f"{found.astimezone(UTC):%Y-%m-%dT%H:%M}") == end


def test_quiet_hours_in_a_zone_that_this_host_lacks_are_in_utc(alice: Person) -> None:
    human = alice.human
    channel = NotificationChannel(quiet_from=time(22), quiet_until=time(7))
    for zone in ("Atlantis/Capital", "/etc"):
        human.time_zone = zone
        found = quiet_end(channel, human, datetime(2026, 1, 15, 23, tzinfo=UTC))
        assert found == datetime(2026, 1, 16, 7, tzinfo=UTC)


def test_a_passkey_that_is_added_or_removed_is_told(alice: Person, now: datetime) -> None:
    by_mail(alice.human, now)
    passkey = _add_passkey(alice)
    assert alice.press(f"/settings/passkeys/{passkey}/remove").status_code == 302
    assert [what for what, _ in outbox()] == ["passkey_added", "passkey_removed"]


def test_an_act_that_is_rolled_back_is_not_told(alice: Person, now: datetime) -> None:
    by_mail(alice.human, now)
    with transaction.atomic():
        _add_passkey(alice)
        transaction.set_rollback(True)
    assert outbox() == []


def test_a_recovery_is_mailed_once(alice: Person, now: datetime) -> None:
    """By its own mail, which cannot be switched off."""
    by_mail(alice.human, now)
    begun(alice.human, now)
    assert outbox() == []


def test_a_suspended_human_is_told_of_security_only(
    request_: Grant, alice: Person, now: datetime
) -> None:
    human = alice.human
    _add_passkey(alice)
    Notification.objects.update(due_at=now, expires_at=now + DAY)
    add_waiting(now=now)
    suspend_human(human=human, actor=TESTER, now=now)
    assert [send_notifications(now=now) for _ in range(2)] == [1, 0]
    assert "passkey was added" in mail.outbox[0].subject


@pytest.mark.parametrize("what", ["decided", "decided_payment"])
@pytest.mark.parametrize("change", ["nothing", "switched off", "suspended"])
def test_a_decision_of_another_is_not_told_once_it_is_unwanted(
    what: str, change: str, alice: Person, now: datetime
) -> None:
    by_mail(alice.human, now)
    tell_owner(owner=alice.human, what=Notification.What(what), subject=new_id(), now=now)
    if change == "switched off":
        NotificationChannel.objects.update(for_requests=False, for_confirmations=False)
    if change == "suspended":
        suspend_human(human=alice.human, actor=TESTER, now=now)
    assert send_notifications(now=now) == (change == "nothing")


def test_deleting_a_person_erases_channels_and_outbox(
    request_: Grant, alice: Person, now: datetime
) -> None:
    add_waiting(now=now)
    delete_human(human=alice.human, actor=TESTER, now=now)
    assert (NotificationChannel.objects.count(), outbox()) == (0, [])
    assert send_notifications(now=now) == 0


def test_a_channel_that_an_earlier_release_left_is_erased_and_not_used(
    request_: Grant, alice: Person, now: datetime
) -> None:
    human = alice.human
    channel = NotificationChannel.objects.get()
    delete_human(human=human, actor=TESTER, now=now)
    channel.save(force_insert=True)
    Notification.objects.create(
        channel=channel, what="passkey_added", subject=human.pk, created_at=now, due_at=now,
        expires_at=now + DAY,
    )  # fmt: skip
    assert send_notifications(now=now) == 0
    assert mail.outbox == []
    expire_everything(now=now + MINUTE)
    assert NotificationChannel.objects.count() == 0


def test_hostile_names_and_addresses_enter_no_header(
    request_: Grant, alice: Person, now: datetime
) -> None:
    name = "Eve\r\nBcc: mallory@example.org"
    type(request_.agent).objects.filter(pk=request_.agent_id).update(name=name)
    type(alice.human).objects.filter(pk=alice.human.pk).update(
        name=name, email="alice@example.org\nBcc: mallory@example.org"
    )
    assert send_notifications(now=now) == 0
    assert (mail.outbox, Notification.objects.get().error) == ([], "BadHeaderError")


def test_a_claim_of_a_process_that_died_runs_out(
    request_: Grant, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(delivery, "_finish", dies)
    with pytest.raises(KeyboardInterrupt):
        send_notifications(now=now)
    monkeypatch.undo()
    assert send_notifications(now=now + delivery.CLAIM - timedelta(seconds=1)) == 0
    assert send_notifications(now=now + delivery.CLAIM) == 1
    # The same message id, so that a mailbox can show it once.
    first, second = (message.message()["Message-ID"] for message in mail.outbox)
    assert first == second


def test_of_two_processes_one_sends_a_message(
    request_: Grant, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = delivery._due

    def also_elsewhere(alike: tuple[str, ...], at: datetime) -> list[Notification]:
        found = real(alike, at)
        if found:
            monkeypatch.setattr(delivery, "_due", real)
            # The other process has no answer yet.
            assert len(delivery._claim_due(now)) == 1
        return found

    monkeypatch.setattr(delivery, "_due", also_elsewhere)
    assert send_notifications(now=now) == 0
    assert mail.outbox == []


def test_old_messages_are_forgotten_and_not_added_again(request_: Grant, now: datetime) -> None:
    send_notifications(now=now)
    expire_everything(now=now + 6 * DAY)
    assert outbox() == [("request", "sent")]
    later = now + 8 * DAY
    expire_everything(now=later)
    assert outbox() == []
    assert add_waiting(now=later) == 0
    assert PENDING_LIFE < 7 * DAY


def _add_passkey(person: Person) -> str:
    credential = Authenticator().registration(person.ask_passkey().json()["publicKey"])
    answer = person.post("/settings/passkeys/finish", {"credential": credential})
    assert answer.status_code == 200, answer.content
    return str(_passkeys(person)[-1])


def _passkeys(person: Person) -> list[object]:
    from approvals.models import Passkey

    rows = Passkey.objects.filter(human=person.human).order_by("created_at")
    return list(rows.values_list("pk", flat=True))
