"""Encrypts one message for one browser: RFC 8291, in the aes128gcm coding of RFC 8188.

No I/O. Draws a new salt and key for each message. Only the browser has the private key of its
subscription, so the push service in between cannot read a message, nor change it undetected.
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
# Salt, record size (4 bytes), length of the sender's key (1 byte), key (RFC 8188 section 2.1).
_HEADER_BYTES: Final = _SALT_BYTES + 4 + 1 + POINT_BYTES
# Delimiter of the last record (RFC 8188 section 2). We add no padding after it.
_LAST_DELIMITER: Final = b"\x02"
# Of AES-GCM.
_TAG_BYTES: Final = 16
# Every push service accepts a record of this size (RFC 8291 section 4). A message is one record,
# including header, delimiter and tag.
RECORD_BYTES: Final = 4096
MAX_TEXT_BYTES: Final = RECORD_BYTES - _HEADER_BYTES - len(_LAST_DELIMITER) - _TAG_BYTES


@dataclass(frozen=True, slots=True)
class BrowserKeys:
    """A subscription's keys: the browser's public key and a shared secret."""

    p256dh: bytes
    auth: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.auth) != AUTH_BYTES:
            raise InvalidRequestError(f"`auth` of a subscription must be {AUTH_BYTES} bytes.")
        _parse_point(self.p256dh)


def encrypt(
    text: bytes,
    keys: BrowserKeys,
    *,
    salt: bytes | None = None,
    ephemeral_key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """The body of the request to the push service. Only tests pass `salt` and `ephemeral_key`.

    Both are new for each message. Reusing a salt with the same ephemeral key repeats the AES key
    and the nonce.
    """
    if len(text) > MAX_TEXT_BYTES:
        # Our own bug, not the caller's.
        raise ValueError(f"A push message has at most {MAX_TEXT_BYTES} bytes.")
    salt = salt or secrets.token_bytes(_SALT_BYTES)
    ephemeral_key = ephemeral_key or ec.generate_private_key(ec.SECP256R1())
    ours = point_of(ephemeral_key.public_key())
    shared = ephemeral_key.exchange(ec.ECDH(), _parse_point(keys.p256dh))
    context = b"WebPush: info\0" + keys.p256dh + ours
    key = _derive(shared, salt=keys.auth, info=context, length=32)
    content_key = _derive(key, salt=salt, info=b"Content-Encoding: aes128gcm\0", length=16)
    nonce = _derive(key, salt=salt, info=b"Content-Encoding: nonce\0", length=12)
    header = salt + RECORD_BYTES.to_bytes(4, "big") + bytes([len(ours)]) + ours
    return header + AESGCM(content_key).encrypt(nonce, text + _LAST_DELIMITER, None)


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as browsers write it: 65 bytes, uncompressed."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _parse_point(raw: bytes) -> ec.EllipticCurvePublicKey:
    """Parse an uncompressed point.

    A point off the curve enables an invalid-curve attack (RFC 8291 section 7).
    """
    error = InvalidRequestError(
        f"`p256dh` of a subscription must be an uncompressed point of P-256, {POINT_BYTES} bytes."
    )
    if len(raw) != POINT_BYTES or raw[:1] != _UNCOMPRESSED:
        raise error
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw)
    except ValueError:
        raise error from None


def _derive(key: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=salt, info=info).derive(key)
