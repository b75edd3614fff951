"""Webhooks are signed, reach public addresses only, and are retried until they are dead."""

import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidRequestError
from approvals.models import Notification, NotificationChannel
from approvals.notifications import channel_secrets, posting, webhooks
from approvals.notifications.channel_addresses import is_public, parse_target
from approvals.notifications.delivery import send_notifications
from approvals.notifications.outbox import tell_security
from approvals.services.expiry import expire_everything
from approvals.tests.cast import Person
from approvals.tests.notifying import by_webhook
from approvals.tests.webhook_receiver import webhook_receiver
from audit import bounded_http_post
from registry.models import Grant, ServiceProvider
from registry.tests.cast import AgentClient, pending
from tests.certificates import self_signed

pytestmark = pytest.mark.django_db
Resolve = Callable[..., None]


@pytest.fixture
def request_(alice: Person, agent: AgentClient, service_provider: ServiceProvider) -> Any:
    """Returns what makes a pending request to alice."""
    return lambda now: pending(agent, service_provider, now=now)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """A double of the resolver, which no test can ask: it answers with these addresses."""
    real = socket.getaddrinfo

    def resolved(*addresses: str) -> None:
        def answer(host: Any, *more: Any, **named: Any) -> Any:
            if str(host).endswith("example.org"):
                return [each for one in addresses for each in real(one, *more, **named)]
            return real(host, *more, **named)

        monkeypatch.setattr(socket, "getaddrinfo", answer)

    return resolved


def test_SS_7_a_message_verifies_as_standard_webhooks(
    request_: Any, alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box:
        _, key = by_webhook(alice.human, now, box.url)
        grant: Grant = request_(now)
        assert send_notifications(now=now) == 1
        [(path, headers, body)] = box.received
    assert path == "/hook"
    secret = base64.b64decode(key.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    made = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{made}"
    assert int(headers["webhook-timestamp"]) == int(now.timestamp())
    content = json.loads(body)
    assert content["type"] == "request.waiting"
    assert content["data"] == {
        "text": "A request is waiting for your decision.",
        "url": f"http://localhost:8000/approvals/{grant.pk}/",
    }
    assert not [name for name in (grant.agent.name, "Acme", "Alice") if name in body.decode()]


def test_SS_7_the_signature_is_that_of_the_published_vector() -> None:
    """The example of the specification's libraries."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = webhooks.sign(
        secret,
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        seconds=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert webhooks.shown(secret) == "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_SS_7_a_retry_has_the_same_id_and_a_new_time(
    request_: Any, alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box:
        by_webhook(alice.human, now, box.url)
        request_(now)
        box.statuses = [503]
        assert send_notifications(now=now) == 0
        assert Notification.objects.get().error == "http_503"
        assert send_notifications(now=now + timedelta(minutes=1)) == 1
        first, second = (headers for _, headers, _ in box.received)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 60
    assert first["webhook-signature"] != second["webhook-signature"]


def test_SS_8_a_receiver_that_is_down_for_a_day_leaves_a_dead_message(
    alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box:
        url = box.url
    by_webhook(alice.human, now, url)
    tell_security(human_id=alice.human.pk, what=Notification.What.PASSKEY_ADDED, now=now)
    row = Notification.objects.get()
    while row.state == "pending" and row.due_at < now + timedelta(days=1):
        send_notifications(now=max(now, row.due_at))
        row.refresh_from_db()
    assert (row.state, row.attempts, row.error) == ("dead", 16, "ConnectError")


def test_SS_8_a_receiver_that_hangs_does_not_hold_up_the_others(
    request_: Any, alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, webhook_receiver() as box:
        by_webhook(alice.human, now, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        by_webhook(alice.human, now, box.url)
        request_(now)
        assert send_notifications(now=now) == 1
        assert len(box.received) == 1
    assert set(Notification.objects.values_list("state", "error")) == {
        ("pending", "TimeoutError"),
        ("sent", ""),
    }


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_SS_4_a_redirect_is_not_followed(
    status: int, request_: Any, alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box, webhook_receiver() as inner:
        by_webhook(alice.human, now, box.url)
        request_(now)
        box.statuses, box.location = [status], inner.url
        assert send_notifications(now=now) == 0
        assert (len(box.received), inner.received) == (1, [])
    assert Notification.objects.get().error == f"http_{status}"


def test_an_answer_that_is_too_long_is_not_read(
    request_: Any, alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box:
        by_webhook(alice.human, now, box.url)
        request_(now)
        box.statuses, box.answer = [200], b"x" * (posting.MAX_ANSWER_BYTES + 1)
        assert send_notifications(now=now) == 0
    assert Notification.objects.get().error == "answer_too_long"


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/", "file:///etc/passwd", "ftp://hooks.example.org/",
        "data:text/plain,x", "gopher://hooks.example.org/", "javascript:alert(1)",
        "//hooks.example.org/", "hooks.example.org", "", "https://", "https:///x",
        "https://user@hooks.example.org/", "https://user:pw@hooks.example.org/",
        "https://hooks.example.org/#x", "https://hooks.example.org\\@127.0.0.1/",
        "https://hooks.example.org:99999/", "https://hooks.example.org/a b",
        "https://hooks.example.org/\r\nHost: x", "https://hooks.example.org/" + "x" * 1024,
        "https://①②⑦.0.0.1/", "https://bücher.example/",
    ],
)  # fmt: skip
def test_SS_1_only_https_urls_of_an_ordinary_form_are_taken(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_target(url)


INNER = [
    "127.0.0.1", "[::1]", "0.0.0.0", "169.254.169.254", "[fd00::1]", "[fe80::1]", "10.0.0.1",
    "192.168.1.1", "172.16.0.1", "100.64.0.1", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]",
    "0x7f000001", "2130706433", "127.1", "0177.0.0.1", "0x7f.1", "1.2.3.4.", "localhost",
    "localhost.", "x.localhost", "intranet", "[::]", "[ff02::1]", "224.0.0.1", "255.255.255.255",
    "240.0.0.1", "192.0.2.1", "198.18.0.1", "[2001:db8::1]", "[2002:7f00:1::]",
    "[64:ff9b::7f00:1]", "[2001:0:4136:e378::1]", "[fec0::1]", "192.88.99.1", "[::7f00:1]",
]  # fmt: skip


@pytest.mark.parametrize("host", INNER)
def test_SS_2_no_webhook_goes_to_an_inner_address(host: str, settings: Settings) -> None:
    settings.DEVELOPMENT = False
    with pytest.raises(InvalidRequestError):
        parse_target(f"https://{host}/hook")


@pytest.mark.parametrize(
    "url",
    ["https://hooks.example.org", "https://hooks.example.org:8443/a?b=%20c", "https://1.1.1.1/",
     "https://[2606:4700::1111]/x", "https://xn--bcher-kva.example/"],
)  # fmt: skip
def test_SS_2_names_and_public_addresses_are_taken(url: str, settings: Settings) -> None:
    settings.DEVELOPMENT = False
    assert parse_target(url).url == url


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1",
     "64:ff9b::a00:1", "2002:a00:1::1", "fec0::1"],
)  # fmt: skip
def test_SS_2_a_name_that_resolves_to_an_inner_address_is_refused(
    address: str,
    request_: Any,
    alice: Person,
    now: datetime,
    settings: Settings,
    resolve: Resolve,
) -> None:
    """Also if only one of its addresses is."""
    settings.DEVELOPMENT = False
    by_webhook(alice.human, now, "https://hooks.example.org/")
    request_(now)
    resolve("1.1.1.1", address)
    assert send_notifications(now=now) == 0
    assert Notification.objects.get().error == "address_refused"
    assert not is_public(ipaddress.ip_address(address))


def test_SS_2_the_connection_goes_to_the_address_that_was_checked(
    request_: Any,
    alice: Person,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A name that resolves to another address the second time is asked for once only."""
    self_signed(tmp_path, "hooks.example.org")
    _trust(monkeypatch, tmp_path)
    real, asked = socket.getaddrinfo, []

    def rebinding(host: Any, *more: Any, **named: Any) -> Any:
        if host == "hooks.example.org":
            asked.append(host)
            host = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return real(host, *more, **named)

    with webhook_receiver(tmp_path) as box:
        by_webhook(alice.human, now, f"https://hooks.example.org:{box.port}/a?b=c")
        request_(now)
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        assert send_notifications(now=now) == 1
        [(path, headers, _)] = box.received
        assert (path, headers["Host"]) == ("/a?b=c", f"hooks.example.org:{box.port}")
    assert len(asked) == 1


def test_SS_2_the_certificate_must_be_that_of_the_name(
    request_: Any,
    alice: Person,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    resolve: Resolve,
) -> None:
    self_signed(tmp_path, "elsewhere.example.org")
    _trust(monkeypatch, tmp_path)
    resolve("127.0.0.1")
    with webhook_receiver(tmp_path) as box:
        by_webhook(alice.human, now, f"https://hooks.example.org:{box.port}/")
        request_(now)
        assert send_notifications(now=now) == 0
        assert box.received == []
    assert Notification.objects.get().error == "ConnectError"


def test_the_second_address_is_tried_if_the_first_does_not_answer(
    request_: Any, alice: Person, now: datetime, resolve: Resolve, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    self_signed(tmp_path, "hooks.example.org")
    _trust(monkeypatch, tmp_path)
    resolve("::1", "127.0.0.1")
    with webhook_receiver(tmp_path) as box:
        by_webhook(alice.human, now, f"https://hooks.example.org:{box.port}/")
        request_(now)
        assert send_notifications(now=now) == 1


def test_a_proxy_of_the_environment_is_not_used(
    request_: Any, alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with webhook_receiver() as box:
        by_webhook(alice.human, now, box.url)
        request_(now)
        assert send_notifications(now=now) == 1


def test_a_copy_of_the_database_has_no_signing_key(alice: Person, now: datetime) -> None:
    channel, key = by_webhook(alice.human, now, "https://hooks.example.org/")
    secret = channel_secrets.decrypt(channel)
    assert webhooks.shown(secret) == key
    assert len(secret) == channel_secrets.KEY_BYTES
    assert key.removeprefix("whsec_")[:12] not in channel.secret


@pytest.mark.parametrize("change", ["target", "id", "human", "ciphertext", "key"])
def test_a_channel_that_was_changed_in_the_database_sends_nothing(
    change: str, request_: Any, alice: Person, bob: Person, now: datetime, settings: Settings
) -> None:
    with webhook_receiver() as box, webhook_receiver() as other:
        channel, _ = by_webhook(alice.human, now, box.url)
        second, _ = by_webhook(alice.human, now, f"{box.url}/2")
        rows = NotificationChannel.objects.filter(pk=channel.pk)
        if change == "target":
            rows.update(target=other.url)
        elif change == "id":
            rows.update(secret=second.secret)
        elif change == "human":
            # As if Bob had added it: Alice's agent asks her, and the row is another one's.
            rows.update(human=bob.human)
            tell_security(human_id=bob.human.pk, what=Notification.What.PASSKEY_ADDED, now=now)
        elif change == "ciphertext":
            rows.update(secret=channel.secret[:-4] + "AAAA")
        second.delete()
        request_(now)
        if change == "key":
            # No agent has a seal under that key, so no request is anyone's.
            tell_security(human_id=alice.human.pk, what=Notification.What.PASSKEY_ADDED, now=now)
            settings.SECRET_KEY = "another-" * 10
        assert send_notifications(now=now) == 0
        assert (box.received, other.received) == ([], [])
    assert Notification.objects.get().error == "secret_unreadable"


def test_each_kind_of_message_has_a_type_for_receivers() -> None:
    assert set(webhooks.TYPES) == set(Notification.What)


def test_a_signing_key_survives_the_rotation_of_secret_key(
    alice: Person, now: datetime, settings: Settings
) -> None:
    channel, key = by_webhook(alice.human, now, "https://hooks.example.org/")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "rotated-" * 10
    assert webhooks.shown(channel_secrets.decrypt(channel)) == key
    assert expire_everything(now=now)["webhooks"] == 1
    assert expire_everything(now=now)["webhooks"] == 0
    settings.SECRET_KEY_FALLBACKS = []
    channel.refresh_from_db()
    assert webhooks.shown(channel_secrets.decrypt(channel)) == key


def test_keys_that_cannot_be_read_do_not_hold_up_those_that_can(
    alice: Person, now: datetime, settings: Settings
) -> None:
    channels = [by_webhook(alice.human, now, f"https://hooks.example.org/{n}")[0] for n in range(4)]
    for channel in channels[:2]:
        changed = f"{channel.target}/changed"
        NotificationChannel.objects.filter(pk=channel.pk).update(target=changed)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "rotated-" * 10
    assert [channel_secrets.encrypt_again(limit=1) for _ in range(3)] == [1, 1, 0]


def _trust(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Trust the certificate in this directory, as if its issuer were known."""
    context = ssl.create_default_context(cafile=str(directory / "proxy.crt"))
    monkeypatch.setattr(bounded_http_post, "_ssl_context", lambda: context)
