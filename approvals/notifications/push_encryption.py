"""Encrypts one message for one browser: RFC 8291, in the aes128gcm coding of RFC 8188.

Pure: keys and bytes in, bytes out. Only the browser has the private key of its subscription, so the
push service in between cannot read a message, nor change it undetected.
"""

import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentauth.protocol.errors import InvalidRequestError

# A point of P-256, uncompressed: 4, x, y.
POINT_BYTES: Final = 65
_UNCOMPRESSED: Final = b"\x04"
AUTH_BYTES: Final = 16
_SALT_BYTES: Final = 16
# Every push service accepts a record of this size (RFC 8291 section 4). A message is one record,
# including header, delimiter and tag.
RECORD_BYTES: Final = 4096
MAX_TEXT_BYTES: Final = RECORD_BYTES - (_SALT_BYTES + 4 + 1 + POINT_BYTES) - 1 - 16
# Ends the text of the last record; padding would follow.
_LAST: Final = b"\x02"


@dataclass(frozen=True, slots=True)
class BrowserKeys:
    """What a browser gives with its subscription: a public key, and a secret that we share."""

    p256dh: bytes
    auth: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.auth) != AUTH_BYTES:
            raise InvalidRequestError(f"`auth` of a subscription must be {AUTH_BYTES} bytes.")
        _point(self.p256dh)


def encrypt(
    text: bytes,
    keys: BrowserKeys,
    *,
    salt: bytes | None = None,
    sender: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """The body of the request to the push service. Only tests pass `salt` and `sender`.

    Both are new for each message: if a pair is reused, two messages share key and nonce.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"A push message has at most {MAX_TEXT_BYTES} bytes.")
    salt = salt or secrets.token_bytes(_SALT_BYTES)
    sender = sender or ec.generate_private_key(ec.SECP256R1())
    ours = point_of(sender.public_key())
    shared = sender.exchange(ec.ECDH(), _point(keys.p256dh))
    context = b"WebPush: info\0" + keys.p256dh + ours
    key = _derive(shared, salt=keys.auth, info=context, length=32)
    content_key = _derive(key, salt=salt, info=b"Content-Encoding: aes128gcm\0", length=16)
    nonce = _derive(key, salt=salt, info=b"Content-Encoding: nonce\0", length=12)
    header = salt + RECORD_BYTES.to_bytes(4, "big") + bytes([len(ours)]) + ours
    return header + AESGCM(content_key).encrypt(nonce, text + _LAST, None)


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as browsers write it: 65 bytes, uncompressed."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _point(raw: bytes) -> ec.EllipticCurvePublicKey:
    """Parse an uncompressed point. One off the curve would leak the sender's key (RFC 8291, 7)."""
    if len(raw) == POINT_BYTES and raw[:1] == _UNCOMPRESSED:
        try:
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw)
        except ValueError:
            pass
    raise InvalidRequestError(
        f"`p256dh` of a subscription must be an uncompressed point of P-256, {POINT_BYTES} bytes."
    )


def _derive(key: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=salt, info=info).derive(key)
