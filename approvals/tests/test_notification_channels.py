"""A person adds and changes their own notification channels, each time with a passkey."""

import json
from datetime import datetime, time, timedelta

import pytest
from django.core import mail
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from approvals.models import Notification, NotificationChannel
from approvals.notifications.channel_management import MAX_WEBHOOKS
from approvals.notifications.delivery import send_notifications
from approvals.notifications.outbox import tell_security
from approvals.services.data_export import export_data
from approvals.services.expiry import expire_everything
from approvals.tests.cast import Person
from approvals.tests.notifying import by_mail, by_webhook, outbox
from audit.models import Event, Opening
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db
EMAIL, WEBHOOK = "/settings/notifications/email", "/settings/notifications/webhooks"
URL = "https://hooks.example.org/services/T0/B0/secret"
MINUTE = timedelta(minutes=1)
ALL = {"requests": "on", "confirmations": "on", "security": "on"}


def channel_path(channel: NotificationChannel, act: str) -> str:
    return f"/settings/notifications/{channel.pk}/{act}"


def test_mail_is_switched_on_and_its_first_message_shows_that_it_works(
    alice: Person, now: datetime
) -> None:
    assert alice.press(EMAIL, ALL).status_code == 302
    row = NotificationChannel.objects.get()
    assert (row.human, row.kind, row.target, row.secret) == (alice.human, "email", "", "")
    assert outbox() == [("channel_changed", "pending")]
    Notification.objects.update(due_at=now)
    assert send_notifications(now=now) == 1
    assert mail.outbox[0].to == ["alice@example.org"]


def test_a_webhook_shows_its_key_once(alice: Person) -> None:
    page = alice.press(WEBHOOK, ALL | {"url": URL})
    text = page.content.decode()
    assert page.status_code == 200
    [key] = {part for part in text.split() if "whsec_" in part}
    assert "whsec_" in key
    again = alice.get("/settings/").content.decode()
    assert "whsec_" not in again
    # Nor the path, which may itself be a secret.
    assert "Webhook at hooks.example.org" in again
    assert "/services/T0" not in again


def test_no_event_and_no_export_holds_a_key_and_no_event_the_address(
    alice: Person, now: datetime
) -> None:
    channel, key = by_webhook(alice.human, now, URL)
    exported = "".join(export_data(human=alice.human, actor=TESTER, now=now))
    assert URL in exported
    assert key not in exported
    assert channel.secret not in exported
    logged = str(list(Event.objects.values_list("data"))) + str(list(Opening.objects.values()))
    assert "hooks.example.org" not in logged
    event = Event.objects.get(kind="approvals.channel.added")
    assert event.human_id == alice.human.pk
    assert event.data["kind"] == "webhook"


@pytest.mark.parametrize("act", ["email", "webhooks", "change", "remove"])
def test_without_a_passkey_signature_nothing_changes(
    act: str, alice: Person, now: datetime
) -> None:
    channel = by_mail(alice.human, now)
    before = list(NotificationChannel.objects.values())
    path = EMAIL if act == "email" else WEBHOOK if act == "webhooks" else channel_path(channel, act)
    answer = alice.client.post(path, ALL | {"url": URL})
    assert answer.status_code == 401
    assert list(NotificationChannel.objects.values()) == before


@pytest.mark.parametrize("act", ["change", "remove"])
def test_a_channel_of_another_person_is_404(
    act: str, alice: Person, bob: Person, now: datetime
) -> None:
    channel = by_mail(alice.human, now)
    before = list(NotificationChannel.objects.values())
    assert bob.press(channel_path(channel, act), {"security": "on"}).status_code == 404
    assert list(NotificationChannel.objects.values()) == before


def test_a_change_is_saved_and_told_to_the_channels_for_security(
    alice: Person, now: datetime
) -> None:
    channel = by_mail(alice.human, now)
    other, _ = by_webhook(alice.human, now, URL)
    NotificationChannel.objects.filter(pk=other.pk).update(for_security=False)
    fields = {"security": "on", "quiet_from": "22:00", "quiet_until": "06:30"}
    assert alice.press(channel_path(channel, "change"), fields).status_code == 302
    channel.refresh_from_db()
    assert (channel.for_requests, channel.for_security) == (False, True)
    assert (channel.quiet_from, channel.quiet_until) == (time(22), time(6, 30))
    assert [row.channel_id for row in Notification.objects.all()] == [channel.pk]


def test_a_removal_ends_what_waits_and_is_told_to_the_others(alice: Person, now: datetime) -> None:
    other = by_mail(alice.human, now)
    channel, _ = by_webhook(alice.human, now, URL)
    assert alice.press(channel_path(channel, "remove")).status_code == 302
    assert [row.channel_id for row in Notification.objects.all()] == [other.pk]
    assert NotificationChannel.objects.get() == other
    assert Event.objects.filter(kind="approvals.channel.removed").count() == 1


def test_a_channel_that_is_no_longer_for_security_is_told_so(alice: Person, now: datetime) -> None:
    channel = by_mail(alice.human, now)
    path = channel_path(channel, "change")
    assert alice.press(path, {"requests": "on"}).status_code == 302
    assert outbox(channel=channel) == [("channel_changed", "pending")]
    send_notifications(now=now + MINUTE)
    assert alice.press(path, {"confirmations": "on"}).status_code == 302
    assert outbox(channel=channel) == [("channel_changed", "sent")]


def test_a_channel_is_told_once_of_changes_that_wait(alice: Person, now: datetime) -> None:
    channel = by_mail(alice.human, now)
    for _ in range(3):
        assert alice.press(channel_path(channel, "change"), ALL).status_code == 302
    assert outbox() == [("channel_changed", "pending")]


def test_removing_mail_is_told_by_mail_with_what_still_waits(alice: Person, now: datetime) -> None:
    channel = by_mail(alice.human, now)
    tell_security(human_id=alice.human.pk, what=Notification.What.PASSKEY_ADDED, now=now)
    assert alice.press(channel_path(channel, "remove")).status_code == 302
    page = alice.get("/settings/").content.decode()
    assert f"/settings/notifications/{channel.pk}" not in page
    assert "You get no notifications yet" in page
    assert alice.press(channel_path(channel, "change"), ALL).status_code == 404
    assert alice.press(channel_path(channel, "remove")).status_code == 404
    exported = json.loads("".join(export_data(human=alice.human, actor=TESTER, now=now)))
    assert exported["notification_channels"] == []
    later = timezone.now() + MINUTE
    tell_security(human_id=alice.human.pk, what=Notification.What.PASSKEY_REMOVED, now=later)
    assert expire_everything(now=now)["channels"] == 0
    assert [send_notifications(now=later + MINUTE) for _ in range(3)] == [1, 1, 0]
    assert [each.to for each in mail.outbox] == [["alice@example.org"]] * 2
    assert expire_everything(now=now)["channels"] == 1
    assert not NotificationChannel.objects.exists()


def test_mail_that_is_added_again_keeps_what_still_waits(alice: Person, now: datetime) -> None:
    channel = by_mail(alice.human, now)
    tell_security(human_id=alice.human.pk, what=Notification.What.PASSKEY_ADDED, now=now)
    alice.press(channel_path(channel, "remove"))
    assert alice.press(EMAIL, {"requests": "on", "security": "on"}).status_code == 302
    row = NotificationChannel.objects.get()
    assert (row.pk, row.for_requests, row.for_confirmations) == (channel.pk, True, False)
    assert row.created_at > channel.created_at
    assert outbox() == [("passkey_added", "pending"), ("channel_changed", "pending")]
    assert alice.press(EMAIL, ALL).status_code == 409


BAD: dict[str, dict[str, str]] = {
    "nothing to tell": {},
    "half quiet hours": ALL | {"quiet_from": "22:00"},
    "empty quiet hours": ALL | {"quiet_from": "22:00", "quiet_until": "22:00"},
    "no time": ALL | {"quiet_from": "late", "quiet_until": "06:00"},
    "an hour without minutes": ALL | {"quiet_from": "22", "quiet_until": "06:00"},
    "a time with seconds": ALL | {"quiet_from": "22:00:01", "quiet_until": "06:00"},
    "a time with a zone": ALL | {"quiet_from": "22:00+02:00", "quiet_until": "06:00"},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_choices_that_make_no_sense_are_refused(fields: dict[str, str], alice: Person) -> None:
    assert alice.press(EMAIL, fields).status_code == 400
    assert not NotificationChannel.objects.exists()


def test_a_webhook_to_an_inner_address_is_refused_at_the_page(alice: Person) -> None:
    answer = alice.press(WEBHOOK, ALL | {"url": "https://169.254.169.254/latest"})
    assert answer.status_code == 400
    assert not NotificationChannel.objects.exists()


def test_there_is_one_mail_channel_and_a_limit_of_webhooks(alice: Person, now: datetime) -> None:
    by_mail(alice.human, now)
    assert alice.press(EMAIL, ALL).status_code == 409
    for number in range(MAX_WEBHOOKS):
        by_webhook(alice.human, now, f"{URL}/{number}")
    assert alice.press(WEBHOOK, ALL | {"url": URL}).status_code == 409
    assert NotificationChannel.objects.count() == MAX_WEBHOOKS + 1


def test_the_page_takes_the_same_queries_for_any_number_of_channels(
    alice: Person, now: datetime
) -> None:
    counts = []
    for number in range(3):
        with CaptureQueriesContext(connection) as queries:
            alice.get("/settings/")
        # Once a second a process checks whether it may act.
        counts.append(sum("verifier_home" not in each["sql"] for each in queries.captured_queries))
        by_webhook(alice.human, now, f"{URL}/{number}")
    assert counts[1:] == counts[:-1]


def test_the_page_says_how_the_last_message_fared(alice: Person, now: datetime) -> None:
    by_mail(alice.human, now)
    assert "No message delivered yet" in alice.get("/settings/").content.decode()
    row = Notification.objects.create(
        channel=NotificationChannel.objects.get(), what="passkey_added", subject=alice.human.pk,
        created_at=now, due_at=now, expires_at=now, error="http_500",
    )  # fmt: skip
    for error, said in {
        "http_500": "it answered with an error",
        "answer_too_long": "it answered with an error",
        "secret_unreadable": "remove it and add it again",
        "address_refused": "it could not be reached",
        "ConnectError": "it could not be reached",
    }.items():
        Notification.objects.filter(pk=row.pk).update(error=error)
        page = alice.get("/settings/").content.decode()
        assert said in page
        # The exact reason would say what answers at an address that a person typed.
        assert error not in page
    Notification.objects.filter(pk=row.pk).update(state="sent", ended_at=now, error="")
    page = alice.get("/settings/").content.decode()
    assert "last attempt failed" not in page
    assert "delivered" in page


def test_an_administrator_sees_dead_messages_and_no_address_or_key(
    alice: Person, admin: Person, now: datetime
) -> None:
    channel, _ = by_webhook(alice.human, now, URL)
    row = Notification.objects.create(
        channel=channel, what="passkey_added", subject=alice.human.pk, state="dead", ended_at=now,
        created_at=now, due_at=now, expires_at=now, error="http_410",
    )  # fmt: skip
    listed = admin.get("/admin/approvals/notification/?state__exact=dead")
    shown = admin.get(f"/admin/approvals/notification/{row.pk}/change/")
    assert (listed.status_code, shown.status_code) == (200, 200)
    assert "http_410" in listed.content.decode()
    text = listed.content.decode() + shown.content.decode()
    assert URL not in text
    assert channel.secret not in text
