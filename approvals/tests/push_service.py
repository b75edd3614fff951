"""A named double of a push service and of the browser behind it: no real one can be reached.

As a push service (RFC 8030, 8292) it takes a message only with a VAPID token for itself, signed by
the key with which the browser subscribed. As a browser (RFC 8291) it decrypts the message.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from approvals.models import Notification, NotificationChannel
from approvals.notifications.channel_management import Choices, add_browser
from approvals.notifications.push import Subscription, application_server_key, parse_subscription
from approvals.notifications.push_encryption import point_of
from approvals.tests.notifying import ALL
from approvals.tests.webhook_receiver import Receiver, webhook_receiver
from registry.models import Human
from registry.tests.cast import TESTER

DAY_SECONDS = 24 * 3600


@dataclass
class SubscribedBrowser:
    """One subscription: its private key and secret, and the messages that came for it."""

    service: Receiver
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    auth: bytes = field(default_factory=lambda: os.urandom(16))
    # The key of the server for which it subscribed.
    application_server_key: str = field(default_factory=application_server_key)

    @property
    def fields(self) -> dict[str, str]:
        """What the page posts."""
        return {
            "endpoint": self.service.url,
            "p256dh": b64u_encode(point_of(self.key.public_key())),
            "auth": b64u_encode(self.auth),
            "sender": self.application_server_key,
        }

    def parse(self) -> Subscription:
        """The subscription that the page reads from these fields."""
        fields = self.fields
        return parse_subscription(application_server_key=fields.pop("sender"), **fields)

    def messages(self, now: datetime) -> list[dict[str, Any]]:
        """The decrypted messages, each with its headers; fails for one that is refused."""
        return [self._read(headers, body, now) for _, headers, body in self.service.received]

    def _read(self, headers: Any, body: bytes, now: datetime) -> dict[str, Any]:
        self._check_sender(headers["Authorization"], now.timestamp())
        assert headers["Content-Encoding"] == "aes128gcm"
        named = {name: headers[name] for name in ("TTL", "Topic", "Urgency")}
        return dict(json.loads(decrypt(body, self.key, self.auth))) | named

    def _check_sender(self, authorization: str, now: float) -> None:
        scheme, _, parameters = authorization.partition(" ")
        given = dict(each.strip().split("=", 1) for each in parameters.split(","))
        assert (scheme, given["k"]) == ("vapid", self.application_server_key)
        claims = proved(given["t"], b64u_decode(given["k"]))
        assert claims["aud"] == f"http://127.0.0.1:{self.service.port}"
        # Tokens for more than a day are refused (RFC 8292 section 2).
        assert now < claims["exp"] <= now + DAY_SECONDS
        assert str(claims["sub"]).startswith(("https:", "mailto:", "http://localhost"))


def proved(token: str, point: bytes) -> dict[str, Any]:
    """The claims of a JWT that the key signed with ES256, read without our own reader."""
    signed, _, signature = token.rpartition(".")
    header, claims = (json.loads(b64u_decode(part)) for part in signed.split("."))
    assert (header["typ"], header["alg"]) == ("JWT", "ES256")
    raw = b64u_decode(signature)
    numbers = (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    key.verify(encode_dss_signature(*numbers), signed.encode(), ec.ECDSA(SHA256()))
    return dict(claims)


def decrypt(body: bytes, key: ec.EllipticCurvePrivateKey, auth: bytes) -> bytes:
    """As RFC 8291 and RFC 8188 say, independently of the code under test."""
    salt, size, length = body[:16], int.from_bytes(body[16:20], "big"), body[20]
    sender, record = body[21 : 21 + length], body[21 + length :]
    assert len(record) <= size
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
    info = b"WebPush: info\x00" + point_of(key.public_key()) + sender
    ikm = HKDF(SHA256(), 32, salt=auth, info=info).derive(key.exchange(ec.ECDH(), peer))
    content_key = HKDF(SHA256(), 16, salt=salt, info=b"Content-Encoding: aes128gcm\x00").derive(ikm)
    nonce = HKDF(SHA256(), 12, salt=salt, info=b"Content-Encoding: nonce\x00").derive(ikm)
    text = AESGCM(content_key).decrypt(nonce, record, None).rstrip(b"\x00")
    assert text[-1:] == b"\x02"
    return text[:-1]


@contextmanager
def push_service() -> Iterator[SubscribedBrowser]:
    """A push service with one subscription."""
    with webhook_receiver() as service:
        yield SubscribedBrowser(service)


def by_push(
    human: Human, now: datetime, browser: SubscribedBrowser, choices: Choices = ALL
) -> NotificationChannel:
    """A browser whose first message was sent."""
    add_browser(
        human=human,
        subscription=browser.parse(),
        name="Chrome on Android",
        choices=choices,
        actor=TESTER,
        now=now,
    )
    Notification.objects.filter(what=Notification.What.CHANNEL_CHANGED).delete()
    return NotificationChannel.objects.get(human=human, target=browser.service.url)
