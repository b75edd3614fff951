"""Converts key services' DER and PEM: strict public keys, and signatures as r‖s."""

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agentauth.protocol.keys import PublicKey, ed25519_public_key, p256_public_key
from kms.backends.errors import BackendError

_COORDINATE_BYTES: Final = 32


def public_key(text: bytes) -> PublicKey:
    """The key of a SubjectPublicKeyInfo (RFC 5280), PEM or DER.

    Raises BackendError, InvalidKeyError.
    """
    load = (
        serialization.load_pem_public_key
        if text.startswith(b"-----BEGIN ")
        else serialization.load_der_public_key
    )
    try:
        key = load(text)
    except (ValueError, UnsupportedAlgorithm):
        raise BackendError("The key service sent an unreadable public key.") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ed25519_public_key(key.public_bytes_raw())
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        numbers = key.public_numbers()
        return p256_public_key(_bytes(numbers.x), _bytes(numbers.y))
    raise BackendError("The key must be Ed25519 or P-256.")


def raw_signature(der: bytes) -> bytes:
    """r‖s of a DER P-256 signature, 32 bytes each (RFC 7518 section 3.4). Raises BackendError."""
    try:
        r, s = decode_dss_signature(der)
        return _bytes(r) + _bytes(s)
    except (ValueError, OverflowError):
        raise BackendError("The key service sent an unreadable signature.") from None


def _bytes(number: int) -> bytes:
    return number.to_bytes(_COORDINATE_BYTES, "big")
