"""A push is encrypted for one browser, signed for its push service, and never tells names."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.encoding import b64u_decode, b64u_encode, sha256
from agentauth.protocol.errors import InvalidStateError
from approvals.models import Notification, NotificationChannel
from approvals.notifications import channel_secrets, push, push_encryption
from approvals.notifications.channel_management import MAX_BROWSERS, remove_gone
from approvals.notifications.delivery import send_notifications
from approvals.notifications.outbox import REMIND_BEFORE, tell_security
from approvals.notifications.push_encryption import BrowserKeys, encrypt
from approvals.services.expiry import expire_everything
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.tests.cast import Person
from approvals.tests.notifying import NIGHT, by_mail, by_webhook, outbox
from approvals.tests.push_service import by_push, decrypt, push_service
from approvals.tests.webhook_receiver import webhook_receiver
from audit.models import Event
from kms.seal_backfill import seal_rows
from registry.models import Grant, ServiceProvider
from registry.tests.cast import TESTER, AgentClient, pending

pytestmark = pytest.mark.django_db
BROWSERS = "/settings/notifications/browsers"
ALL = {"requests": "on", "confirmations": "on", "security": "on"}
MINUTE = timedelta(minutes=1)
# RFC 8291, appendix A.
VECTOR = {
    "text": "V2hlbiBJIGdyb3cgdXAsIEkgd2FudCB0byBiZSBhIHdhdGVybWVsb24",
    "sender": "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw",
    "browser": "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94",
    "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoI"
    "Aiw4",
    "salt": "DGv6ra1nlYgDCS1FRnbzlw",
    "auth": "BTBZMqHH6r4Tts7J_aSIgg",
    "body": "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocI"
    "nmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSx"
    "sj_Qulcy4a-fN",
}


@pytest.fixture
def request_(alice: Person, agent: AgentClient, service_provider: ServiceProvider) -> Any:
    """Returns what makes a pending request to alice."""
    return lambda now: pending(agent, service_provider, now=now)


def test_a_message_is_encrypted_as_the_vector_of_rfc_8291() -> None:
    known = {name: b64u_decode(text) for name, text in VECTOR.items()}

    def key(name: str) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(int.from_bytes(known[name], "big"), ec.SECP256R1())

    keys = BrowserKeys(known["p256dh"], known["auth"])
    body = encrypt(known["text"], keys, salt=known["salt"], ephemeral_key=key("sender"))
    assert body == known["body"]
    assert decrypt(body, key("browser"), known["auth"]) == known["text"]


def test_no_two_messages_share_a_key_and_only_the_browser_reads_them() -> None:
    device = ec.generate_private_key(ec.SECP256R1())
    keys = BrowserKeys(push_encryption.point_of(device.public_key()), b"a" * 16)
    first, second = encrypt(b"x", keys), encrypt(b"x", keys)
    assert first[:16] != second[:16]
    assert first[21:86] != second[21:86]
    with pytest.raises(InvalidTag):
        decrypt(first, device, b"b" * 16)
    with pytest.raises(ValueError, match="at most"):
        encrypt(b"x" * (push_encryption.MAX_TEXT_BYTES + 1), keys)
    longest = encrypt(b"x" * push_encryption.MAX_TEXT_BYTES, keys)
    assert len(longest) == push_encryption.RECORD_BYTES


def test_a_request_is_pushed_once_signed_and_without_names(
    request_: Any, alice: Person, now: datetime
) -> None:
    with push_service() as browser:
        by_push(alice.human, now, browser)
        grant: Grant = request_(now)
        assert send_notifications(now=now) == 1
        assert send_notifications(now=now + MINUTE) == 0
        [message] = browser.messages(now)
        [(_, headers, body)] = browser.service.received
    assert message["text"] == "A request is waiting for your decision."
    assert message["page"] == f"/approvals/{grant.pk}/"
    assert message["until"] == int(grant.expires_at.timestamp())
    assert message["TTL"] == str(int((grant.expires_at - now).total_seconds()))
    assert (message["Urgency"], message["Topic"]) == ("high", message["tag"])
    assert len(message["Topic"]) == 32
    named = (grant.agent.name, grant.service_provider.name, "Alice", str(grant.pk))
    assert not [name for name in named if name in str(headers) or name.encode() in body]
    assert not [name for name in named[:3] if name in str(message)]
    assert NotificationChannel.objects.get().last_sent_at == now


def test_the_reminder_replaces_the_first_push_and_comes_once(
    request_: Any, alice: Person, now: datetime
) -> None:
    with push_service() as browser:
        by_push(alice.human, now, browser)
        before = request_(now).expires_at - REMIND_BEFORE
        assert send_notifications(now=now) == 1
        assert [send_notifications(now=before + n * MINUTE) for n in range(3)] == [1, 0, 0]
        first, last = browser.messages(before)[0], browser.messages(before)[1]
    assert first["Topic"] == last["Topic"]
    assert last["text"] == "A request that is waiting for your decision expires soon."
    assert last["TTL"] == str(15 * 60)


def test_a_push_keeps_quiet_hours_and_security_comes_at_any_hour(
    request_: Any, alice: Person, now: datetime
) -> None:
    night = now.replace(hour=6, minute=30, second=0, microsecond=0)
    with push_service() as browser:
        by_push(alice.human, night - MINUTE, browser, NIGHT)
        request_(night)
        tell_security(human_id=alice.human.pk, what=Notification.What.PASSKEY_ADDED, now=night)
        assert send_notifications(now=night) == 1
        [message] = browser.messages(night)
        assert send_notifications(now=night.replace(hour=7, minute=0)) == 1
    assert (message["page"], message["Urgency"]) == ("/settings/", "normal")


@pytest.mark.parametrize("status", [404, 410])
def test_a_subscription_that_is_gone_is_removed_and_told(
    status: int, request_: Any, alice: Person, now: datetime
) -> None:
    mailed = by_mail(alice.human, now)
    with push_service() as browser:
        channel = by_push(alice.human, now, browser)
        request_(now)
        browser.service.statuses = [status]
        assert send_notifications(now=now) == 1
        assert send_notifications(now=now + MINUTE) == 1
    assert NotificationChannel.objects.get() == mailed
    assert outbox() == [("request", "sent"), ("channel_changed", "sent")]
    event = Event.objects.get(kind="approvals.channel.removed")
    assert (event.actor_kind, event.human_id) == ("system", alice.human.pk)
    assert event.data["channel_id"] == str(channel.pk)


@pytest.mark.parametrize("status", [201, 400, 403, 413, 429, 500])
def test_any_other_answer_removes_no_subscription(
    status: int, request_: Any, alice: Person, now: datetime
) -> None:
    with push_service() as browser:
        by_push(alice.human, now, browser)
        request_(now)
        browser.service.statuses = [status]
        send_notifications(now=now)
    row = Notification.objects.get()
    accepted = status == 201
    assert (row.state, row.error) == (
        "sent" if accepted else "pending",
        "" if accepted else f"http_{status}",
    )


@pytest.mark.parametrize("status", [404, 410])
def test_a_webhook_that_answers_gone_is_not_removed(
    status: int, request_: Any, alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box:
        by_webhook(alice.human, now, box.url)
        request_(now)
        box.statuses = [status]
        send_notifications(now=now)
    assert Notification.objects.get().error == f"http_{status}"


def test_a_browser_that_subscribed_again_meanwhile_is_not_removed(
    request_: Any, alice: Person, now: datetime
) -> None:
    with push_service() as browser:
        before = by_push(alice.human, now, browser)
        by_push(alice.human, now, browser)
    remove_gone(channel=before, now=now)
    assert NotificationChannel.objects.count() == 1


def test_a_browser_that_two_people_use_is_a_channel_of_each(
    alice: Person, bob: Person, now: datetime
) -> None:
    with push_service() as browser:
        for person in (alice, bob):
            by_push(person.human, now, browser)
    owners = NotificationChannel.objects.values_list("human_id", flat=True)
    assert set(owners) == {alice.human.pk, bob.human.pk}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_SS_4_a_push_service_cannot_redirect_a_message(
    status: int, request_: Any, alice: Person, now: datetime
) -> None:
    with push_service() as browser, webhook_receiver() as inner:
        by_push(alice.human, now, browser)
        request_(now)
        browser.service.statuses, browser.service.location = [status], inner.url
        assert send_notifications(now=now) == 0
        assert inner.received == []
    assert Notification.objects.get().error == f"http_{status}"


def test_a_push_outlives_a_rotation_of_the_secret_key(
    request_: Any, alice: Person, now: datetime, settings: Settings
) -> None:
    with push_service() as browser:
        channel = by_push(alice.human, now, browser)
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "rotated-" * 10
        assert push.application_server_key() != browser.application_server_key
        assert expire_everything(now=now)["webhooks"] == 1
        seal_rows(actor=TESTER, now=now)
        settings.SECRET_KEY_FALLBACKS = []
        request_(now)
        assert send_notifications(now=now) == 1
        assert len(browser.messages(now)) == 1
    channel.refresh_from_db()
    # Not for another person, whose browser would then get the messages of this one.
    channel.human_id = TESTER.id
    with pytest.raises(channel_secrets.UnreadableSecretError):
        channel_secrets.decrypt(channel)


def test_an_open_page_from_before_a_rotation_still_adds_its_browser(
    alice: Person, settings: Settings
) -> None:
    with push_service() as browser:
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY, settings.SECRET_KEY]
        settings.SECRET_KEY = "rotated-" * 10
        assert browser.parse().endpoint == browser.service.url


def test_a_browser_is_added_and_listed_by_name(alice: Person, now: datetime) -> None:
    agent = "Mozilla/5.0 (Linux; Android 10; K) Chrome/140.0.0.0 Mobile Safari/537.36 <b>"
    with push_service() as browser:
        alice.client.defaults["HTTP_USER_AGENT"] = agent
        assert alice.press(BROWSERS, ALL | browser.fields).status_code == 302
        assert alice.press(BROWSERS, ALL | browser.fields).status_code == 302
        assert outbox() == [("channel_changed", "pending")]
        assert send_notifications(now=timezone.now()) == 1
        [message] = browser.messages(timezone.now())
    assert message["text"] == "Your notification settings were changed."
    row = NotificationChannel.objects.get()
    assert (row.kind, row.name) == ("push", "Chrome on Android")
    page = alice.get("/settings/").content.decode()
    assert "Chrome on Android" in page
    assert browser.service.url not in page
    assert f'data-browser="{b64u_encode(sha256(browser.service.url.encode()))}"' in page
    assert alice.press(f"/settings/notifications/{row.pk}/remove").status_code == 302
    assert not NotificationChannel.objects.exists()


BAD = {
    "no endpoint": {"endpoint": ""},
    "an inner address": {"endpoint": "https://169.254.169.254/push"},
    "an address in clear": {"endpoint": "http://push.example.org/x"},
    "a long address": {"endpoint": "https://push.example.org/" + "x" * 1024},
    "no key": {"p256dh": ""},
    "a key in base64": {"p256dh": "+" * 87},
    "a padded key": {"p256dh": "A" * 87 + "="},
    "a short key": {"p256dh": b64u_encode(b"\x04" + b"a" * 63)},
    "a compressed key": {"p256dh": b64u_encode(b"\x02" + b"a" * 32)},
    "a key off the curve": {"p256dh": b64u_encode(b"\x04" + b"a" * 64)},
    "the point at infinity": {"p256dh": b64u_encode(b"\x04" + bytes(64))},
    "a huge key": {"p256dh": "A" * 40_000},
    "no auth": {"auth": ""},
    "a short auth": {"auth": b64u_encode(b"a" * 15)},
    "a long auth": {"auth": b64u_encode(b"a" * 17)},
    "another server's key": {"sender": b64u_encode(b"\x04" + b"a" * 64)},
    "nothing to tell": dict.fromkeys(ALL, ""),
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_a_malformed_subscription_is_refused_and_adds_nothing(
    changes: dict[str, str], alice: Person
) -> None:
    with push_service() as browser:
        fields = {**ALL, **browser.fields, **changes}
        fields = {name: value for name, value in fields.items() if value or name not in ALL}
        answer = alice.press(BROWSERS, fields)
    assert answer.status_code == 400
    assert not NotificationChannel.objects.exists()


def test_a_browser_needs_a_passkey_signature(alice: Person) -> None:
    with push_service() as browser:
        assert alice.client.post(BROWSERS, ALL | browser.fields).status_code == 401
    assert not NotificationChannel.objects.exists()


def test_a_person_has_a_limit_of_browsers(alice: Person, now: datetime) -> None:
    with push_service() as browser:
        for number in range(MAX_BROWSERS):
            browser.service.port = 1000 + number
            by_push(alice.human, now, browser)
        browser.service.port = 999
        with pytest.raises(InvalidStateError):
            by_push(alice.human, now, browser)
        browser.service.port = 1000
        by_push(alice.human, now, browser)
    assert NotificationChannel.objects.count() == MAX_BROWSERS
    assert "add-browser" not in alice.get("/settings/").content.decode()


def test_deleting_a_person_erases_their_browsers(
    request_: Any, alice: Person, now: datetime
) -> None:
    with push_service() as browser:
        by_push(alice.human, now, browser)
        request_(now)
        delete_human(human=alice.human, actor=TESTER, now=now)
        assert send_notifications(now=now) == 0
        assert browser.service.received == []
    assert not NotificationChannel.objects.exists()


def test_no_repr_and_no_error_shows_a_key_or_an_endpoint(
    request_: Any, alice: Person, now: datetime
) -> None:
    with push_service() as browser:
        subscription = browser.parse()
        channel = by_push(alice.human, now, browser)
        request_(now)
        NotificationChannel.objects.update(target=f"{channel.target}/x")
        assert send_notifications(now=now) == 0
    assert Notification.objects.get().error == "secret_unreadable"
    shown = repr(subscription) + repr(subscription.keys)
    assert str(subscription.keys.auth) not in shown
    assert "PrivateKey" not in shown
    assert browser.service.url not in shown
