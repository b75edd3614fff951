"""Web Push (RFC 8030): a message to one browser, through the push service of its maker.

The push service learns when a message is sent, its length, urgency and time to live, and by its
topic which messages are about the same subject, but not its content. It accepts messages for a
subscription only from the holder of the key that the browser subscribed with (VAPID, RFC 8292).
"""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Self
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

What = Notification.What

# Texts of the NotAcceptedError of `posting.send` for a subscription that no longer exists (RFC 8030
# section 7.3).
GONE_ERRORS: Final = frozenset({"http_404", "http_410"})
_SCALAR_BYTES: Final = 32
_LABEL: Final = b"agentauth/push-key/v1"
# The order of P-256 (SEC 2). Private keys lie in 1 … order − 1.
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# Longer than a private key, so that reducing modulo the order leaves negligible bias (FIPS 186-5
# A.2.1).
_WIDE_BYTES: Final = 48
# A push service refuses a token valid for more than 24 hours (RFC 8292 section 2). One hour is
# enough for one send and tolerates clock skew.
_TOKEN_LIFE: Final = timedelta(hours=1)
# A topic has at most 32 characters of base64url: 24 bytes.
_TOPIC_BYTES: Final = 24
# Sent with `Urgency: high`, which wakes a sleeping device.
_URGENT: Final = {What.REQUEST, What.REQUEST_ENDS, What.CONFIRMATION, What.RECOVERY_BEGUN}


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a browser returned from `PushManager.subscribe`."""

    endpoint: str = field(repr=False)
    keys: BrowserKeys
    # Our key pair that the browser subscribed with; the push service accepts no other.
    vapid_key: ec.EllipticCurvePrivateKey = field(repr=False)

    def secret(self) -> bytes:
        """The bytes that the channel stores encrypted."""
        scalar = self.vapid_key.private_numbers().private_value.to_bytes(_SCALAR_BYTES, "big")
        return self.keys.p256dh + self.keys.auth + scalar

    @classmethod
    def from_secret(cls, endpoint: str, secret: bytes) -> Self:
        """The subscription whose `secret()` was stored."""
        p256dh, rest = secret[:POINT_BYTES], secret[POINT_BYTES:]
        auth, scalar = rest[:AUTH_BYTES], int.from_bytes(rest[AUTH_BYTES:], "big")
        vapid_key = ec.derive_private_key(scalar, ec.SECP256R1())
        return cls(endpoint, BrowserKeys(p256dh, auth), vapid_key)


def parse_subscription(
    *, endpoint: str, p256dh: str, auth: str, application_server_key: str
) -> Subscription:
    """Parse the form's fields. Raises InvalidRequestError that says what is wrong.

    `application_server_key` is the `applicationServerKey` that the page gave the browser.
    """
    target = parse_target(endpoint)
    keys = BrowserKeys(_decoded("p256dh", p256dh), _decoded("auth", auth))
    for secret_key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        vapid_key = _derive_vapid_key(secret_key)
        if _encode_public(vapid_key) == application_server_key:
            return Subscription(target.url, keys, vapid_key)
    raise InvalidRequestError(
        "This subscription was made with a different server key. Reload the page and try again."
    )


def application_server_key() -> str:
    """The `applicationServerKey` for new subscriptions, base64url."""
    return _encode_public(_derive_vapid_key(settings.SECRET_KEY))


def compose(row: Notification, *, now: datetime) -> Outgoing:
    """The message for this row, encrypted now.

    Raises NotAcceptedError if the address or the stored secret is unusable.
    """
    subscription = Subscription.from_secret(*open_channel(row.channel))
    url, vapid_key = subscription.endpoint, subscription.vapid_key
    # A later message about the same subject, such as a reminder, replaces the earlier one: `tag`
    # replaces it on the device; `Topic` replaces it while it is queued at the push service.
    # Hashed: the push service sees the topic and must not learn the id of the grant or payment.
    topic = b64u_encode(sha256(row.subject.bytes)[:_TOPIC_BYTES])
    content = {
        "text": sentence_of(row),
        "page": page_of(row),
        "tag": topic,
        "until": int(row.expires_at.timestamp()),
    }
    headers = {
        "Authorization": f"vapid t={_token(url, vapid_key, now)}, k={_encode_public(vapid_key)}",
        "Content-Encoding": "aes128gcm",
        "Content-Type": "application/octet-stream",
        # The push service drops the message once it has expired.
        "TTL": str(max(0, int((row.expires_at - now).total_seconds()))),
        "Topic": topic,
        "Urgency": "high" if row.what in _URGENT else "normal",
    }
    return Outgoing(url, headers, encrypt(json.dumps(content).encode(), subscription.keys))


def _token(url: str, vapid_key: ec.EllipticCurvePrivateKey, now: datetime) -> str:
    place = urlsplit(url)
    claims = {
        "aud": f"{place.scheme}://{place.netloc.lower()}",
        "exp": int((now + _TOKEN_LIFE).timestamp()),
        # The contact for the operator of the push service.
        "sub": settings.PUBLIC_URL,
    }
    return sign_compact(claims, LocalSigner(PrivateKey(vapid_key)), typ="JWT")


@lru_cache(maxsize=8)
def _derive_vapid_key(secret_key: str) -> ec.EllipticCurvePrivateKey:
    """Our VAPID key, from SECRET_KEY."""
    wide = HKDF(SHA256(), _WIDE_BYTES, salt=None, info=_LABEL).derive(secret_key.encode())
    scalar = int.from_bytes(wide, "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def _encode_public(key: ec.EllipticCurvePrivateKey) -> str:
    return b64u_encode(point_of(key.public_key()))


def _decoded(name: str, text: str) -> bytes:
    try:
        return b64u_decode(text)
    except EncodingError:
        raise InvalidRequestError(
            f"`{name}` of a subscription must be base64url without padding."
        ) from None
