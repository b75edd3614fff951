"""Web Push (RFC 8030): a message to one browser, through the push service of its maker.

The push service learns when a message is sent, its length and its urgency, but not its content. It
accepts messages for a subscription only from the holder of the key that the browser subscribed with
(VAPID, RFC 8292).
"""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from agentauth.protocol.encoding import b64u_decode, b64u_encode, sha256
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.keys import LocalSigner, PrivateKey
from approvals.models import Notification
from approvals.notifications.channel_addresses import parse_target
from approvals.notifications.messages import page_of, sentence_of
from approvals.notifications.posting import Outgoing, open_channel
from approvals.notifications.push_encryption import (
    AUTH_BYTES,
    POINT_BYTES,
    BrowserKeys,
    encrypt,
    point_of,
)

# Statuses for a subscription that no longer exists (RFC 8030 section 7.3).
GONE: Final = frozenset({"http_404", "http_410"})
_SCALAR_BYTES: Final = 32
_LABEL: Final = b"agentauth/push-key/v1"
# The order of P-256 (SEC 2): a private key is 1 to this, exclusive.
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# Longer than a private key, so that the reduction modulo the order favours none (FIPS 186-5 A.2.1).
_WIDE_BYTES: Final = 48
# A push service refuses a token valid for more than 24 hours. Ours is for one message.
_TOKEN_LIFE: Final = timedelta(hours=1)
# A topic has at most 32 characters of base64url: 24 bytes.
_TOPIC_BYTES: Final = 24
What = Notification.What
# Other messages do not wake a sleeping device.
_URGENT: Final = {What.REQUEST, What.REQUEST_ENDS, What.CONFIRMATION, What.RECOVERY_BEGUN}


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a browser returned from `PushManager.subscribe`."""

    endpoint: str = field(repr=False)
    keys: BrowserKeys
    # The key that it subscribed with; the push service accepts messages from no other key.
    sender: ec.EllipticCurvePrivateKey = field(repr=False)

    def secret(self) -> bytes:
        """The bytes that the channel stores encrypted."""
        scalar = self.sender.private_numbers().private_value.to_bytes(_SCALAR_BYTES, "big")
        return self.keys.p256dh + self.keys.auth + scalar


def parse_subscription(*, endpoint: str, p256dh: str, auth: str, sender: str) -> Subscription:
    """The fields of the form. Raises InvalidRequestError that says which one is wrong.

    `sender` is the public key for which the page had the browser subscribe.
    """
    target = parse_target(endpoint)
    keys = BrowserKeys(_decoded("p256dh", p256dh), _decoded("auth", auth))
    for each in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        if _public(key := _sender_key(each)) == sender:
            return Subscription(target.url, keys, key)
    raise InvalidRequestError(
        "The subscription is for another key than that of this page. Reload the page and try again."
    )


def public_key() -> str:
    """The `applicationServerKey` for new subscriptions, base64url."""
    return _public(_sender_key(settings.SECRET_KEY))


def compose(row: Notification, *, now: datetime) -> Outgoing:
    """The message for this row, encrypted now. Raises NotAcceptedError."""
    url, stored = open_channel(row.channel)
    keys = BrowserKeys(stored[:POINT_BYTES], stored[POINT_BYTES : POINT_BYTES + AUTH_BYTES])
    scalar = int.from_bytes(stored[POINT_BYTES + AUTH_BYTES :], "big")
    sender = ec.derive_private_key(scalar, ec.SECP256R1())
    # The reminder of a request, or the same message sent again, replaces the earlier one: on the
    # device by its tag, and at the push service, if it still waits there, by its topic.
    topic = b64u_encode(sha256(row.subject.bytes)[:_TOPIC_BYTES])
    content = {
        "text": sentence_of(row),
        "page": page_of(row),
        "tag": topic,
        "until": int(row.expires_at.timestamp()),
    }
    headers = {
        "Authorization": f"vapid t={_token(url, sender, now)}, k={_public(sender)}",
        "Content-Encoding": "aes128gcm",
        "Content-Type": "application/octet-stream",
        # The push service drops the message when it is no longer true.
        "TTL": str(max(0, int((row.expires_at - now).total_seconds()))),
        "Topic": topic,
        "Urgency": "high" if row.what in _URGENT else "normal",
    }
    return Outgoing(url, headers, encrypt(json.dumps(content).encode(), keys))


def _token(url: str, sender: ec.EllipticCurvePrivateKey, now: datetime) -> str:
    place = urlsplit(url)
    claims = {
        "aud": f"{place.scheme}://{place.netloc.lower()}",
        "exp": int((now + _TOKEN_LIFE).timestamp()),
        # The contact for the operator of the push service.
        "sub": settings.PUBLIC_URL,
    }
    return sign_compact(claims, LocalSigner(PrivateKey(sender)), typ="JWT")


@lru_cache(maxsize=8)
def _sender_key(secret_key: str) -> ec.EllipticCurvePrivateKey:
    """Our VAPID key, from SECRET_KEY."""
    wide = HKDF(SHA256(), _WIDE_BYTES, salt=None, info=_LABEL).derive(secret_key.encode())
    scalar = int.from_bytes(wide, "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def _public(key: ec.EllipticCurvePrivateKey) -> str:
    return b64u_encode(point_of(key.public_key()))


def _decoded(name: str, text: str) -> bytes:
    try:
        return b64u_decode(text)
    except EncodingError:
        raise InvalidRequestError(
            f"`{name}` of a subscription must be base64url without padding."
        ) from None
