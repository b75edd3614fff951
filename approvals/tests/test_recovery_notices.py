"""A user is mailed about a recovery; a failed mail is recorded and sent again."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from smtplib import SMTPRecipientsRefused

import pytest
from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from approvals.models import Recovery
from approvals.services.human_suspension_and_erasure import delete_human, suspend_human
from approvals.services.recovery import cancel_recovery, confirm_recovery
from approvals.services.recovery_alert_mail import send_notices
from approvals.tests.cast import Person
from approvals.tests.recovering import DAY, begun, link_of, path_of, ready_link, recovered
from audit.models import Event
from registry.tests.cast import TESTER
from tests.acts.test_acts import refused_events

pytestmark = pytest.mark.django_db
SENT, FAILED = "approvals.recovery.notice_sent", "approvals.recovery.notice_failed"


class Refusing(BaseEmailBackend):
    """A mail server that refuses all mail, and repeats the address in its error as servers do."""

    def send_messages(self, email_messages: object) -> int:
        raise SMTPRecipientsRefused({"alice@example.org": (550, b"no such user")})


def events(kind: str) -> int:
    return Event.objects.filter(kind=kind).count()


def test_WR_15_a_mail_says_when_and_how_to_cancel_and_holds_no_secret(
    alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now)
    assert send_notices(now=now) == 1
    [message] = mail.outbox
    assert (message.to, message.from_email) == (["alice@example.org"], "agentauth@localhost")
    assert f"{row.ready_at:%H:%M}" in message.body
    assert "http://localhost:8000/recovery/" in message.body
    assert "/recover/" not in message.body
    assert send_notices(now=now + DAY) == 0
    assert (len(mail.outbox), events(SENT)) == (1, 1)


def test_WR_15_each_turn_is_due_at_once_whatever_failed_before(
    alice: Person, bob: Person, admin: Person, now: datetime
) -> None:
    ready, other = ready_link(alice.human, now), begun(bob.human, now)
    Recovery.objects.update(notice_failures=5, notice_due_at=now + DAY)
    confirm_recovery(recovery=other, admin=admin.human, actor=TESTER, now=now)
    recovered(ready)
    for row in Recovery.objects.all():
        assert row.notice_due_at is not None
        assert (row.notice_failures, row.notice_due_at < now + DAY) == (0, True)
    Recovery.objects.update(notice_failures=5, notice_due_at=now + DAY)
    cancel_recovery(recovery=other, actor=TESTER, now=now)
    other.refresh_from_db()
    assert (other.notice_failures, other.notice_due_at) == (0, now)


def test_WR_15_each_turn_of_a_recovery_is_a_mail(
    alice: Person, admin: Person, now: datetime
) -> None:
    row = begun(alice.human, now)
    said = [
        "because your passkeys were reported lost",
        "ended the wait",
        "All earlier passkeys",
    ]
    send_notices(now=now)
    confirm_recovery(recovery=row, admin=admin.human, actor=TESTER, now=now)
    send_notices(now=now)
    link = link_of(row, now)
    recovered(link)
    send_notices(now=now + timedelta(minutes=1))
    assert [text in message.body for text, message in zip(said, mail.outbox, strict=True)] == [
        True
    ] * 3
    assert path_of(link) not in "".join(str(message.body) for message in mail.outbox)
    assert events(SENT) == 3


def test_WR_15_user_is_mailed_about_a_cancelled_recovery(alice: Person, now: datetime) -> None:
    row = begun(alice.human, now)
    send_notices(now=now)
    cancel_recovery(recovery=row, actor=TESTER, now=now)
    send_notices(now=now)
    assert "was cancelled" in mail.outbox[1].body


def test_WR_15_user_with_a_stolen_passkey_is_mailed_about_recovery(
    alice: Person, admin: Person, now: datetime
) -> None:
    human = alice.human
    suspend_human(human=human, actor=TESTER, now=now)
    row = begun(human, now, case="stolen")
    send_notices(now=now)
    confirm_recovery(recovery=row, admin=admin.human, actor=TESTER, now=now)
    send_notices(now=now)
    assert "must decide" in mail.outbox[0].body
    assert "approved it" in mail.outbox[1].body


def test_WR_15_a_mail_that_fails_is_on_record_once_and_tried_again(
    alice: Person, now: datetime, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    begun(alice.human, now)
    settings.EMAIL_BACKEND = f"{__name__}.Refusing"
    tries = [now + timedelta(minutes=minutes) for minutes in range(15)]
    with caplog.at_level(logging.ERROR):
        for at in tries:
            assert send_notices(now=at) == 0
    lines = [
        each.getMessage()
        for each in caplog.records
        if each.name == "approvals.services.recovery_mail"
    ]
    # At 0, then 2, 4 and 8 minutes after the previous try.
    assert len(lines) == 4
    assert "SMTPRecipientsRefused" in lines[0]
    assert "alice@example.org" not in "".join(lines)
    assert (events(FAILED), events(SENT)) == (1, 0)
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert send_notices(now=now + DAY) == 1
    assert (len(mail.outbox), events(SENT)) == (1, 1)
    assert Recovery.objects.get().notice_failures == 0


def test_WR_15_without_a_mail_server_the_notice_is_not_lost(
    alice: Person, now: datetime, settings: Settings
) -> None:
    begun(alice.human, now)
    settings.EMAIL_BACKEND = ""
    assert send_notices(now=now) == 0
    assert events(FAILED) == 1
    assert "could not be sent yet" in alice.get("/activity/").content.decode()
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert send_notices(now=now + DAY) == 1


def test_of_two_processes_one_sends_each(
    alice: Person, bob: Person, now: datetime, settings: Settings
) -> None:
    begun(alice.human, now - timedelta(seconds=1))
    begun(bob.human, now)
    settings.EMAIL_BACKEND = f"{__name__}.Twice"
    Twice.now, Twice.sent = now, []
    assert send_notices(now=now) == 1
    assert Twice.sent == [["alice@example.org"], ["bob@example.org"]]


class Twice(BaseEmailBackend):
    """While one process with a list of due mails waits for the server, another sends the rest."""

    now: datetime
    sent: list[list[str]]

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        Twice.sent.append(email_messages[0].to)
        if len(Twice.sent) == 1:
            assert send_notices(now=Twice.now) == 1
        return 1


def test_WR_15_change_while_a_mail_is_sent_goes_into_another_mail(
    alice: Person, now: datetime, settings: Settings
) -> None:
    begun(alice.human, now)
    settings.EMAIL_BACKEND = f"{__name__}.Cancelling"
    assert send_notices(now=now) == 1
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert send_notices(now=now + timedelta(seconds=1)) == 1
    assert "was cancelled" in mail.outbox[0].body


class Cancelling(BaseEmailBackend):
    """The user cancels on their page at this moment."""

    def send_messages(self, email_messages: object) -> int:
        row = Recovery.objects.get()
        cancel_recovery(recovery=row, actor=TESTER, now=row.begun_at)
        return 1


@pytest.mark.parametrize("kind", [SENT, FAILED])
def test_WR_15_a_notice_that_is_not_on_record_is_sent_again(
    alice: Person, now: datetime, settings: Settings, kind: str
) -> None:
    begun(alice.human, now)
    settings.EMAIL_BACKEND = "" if kind == FAILED else settings.EMAIL_BACKEND
    with refused_events(kind), pytest.raises(TemporarilyUnavailableError):
        send_notices(now=now)
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    assert send_notices(now=now + timedelta(minutes=2)) == 1
    assert events(SENT) == 1


def test_no_mail_goes_to_a_deleted_person(alice: Person, now: datetime) -> None:
    ready_link(alice.human, now)
    delete_human(human=alice.human, actor=TESTER, now=now)
    assert send_notices(now=now + DAY) == 0
    assert mail.outbox == []
