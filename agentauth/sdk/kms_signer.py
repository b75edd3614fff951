"""Sign with an agent's key that stays in a key management service."""

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agentauth.protocol.errors import InvalidKeyError, InvalidSignatureError
from agentauth.protocol.keys import SIGNATURE_BYTES, PublicKey, ed25519_public_key, p256_public_key

from .errors import KeyFileError

_COORDINATE_BYTES: Final = 32


class KmsSigner:
    """A Signer whose private key stays in a key management service.

    `public_key` is its public key in PEM: Ed25519, or P-256 with SHA-256. `sign` asks the service
    to sign a message, and returns 64 raw bytes or, for P-256, the DER that most services return. It
    is called once for each proof and blocks the caller's thread. Every signature is verified here,
    so that a service that uses another key is detected before the registry refuses the proof.
    """

    def __init__(self, public_key: str | bytes, sign: Callable[[bytes], bytes]) -> None:
        self.public: Final = _read_public(public_key)
        self._sign = sign

    @property
    def kid(self) -> str:
        """The thumbprint."""
        return self.public.thumbprint

    @property
    def alg(self) -> str:
        """`EdDSA` or `ES256`."""
        return self.public.alg

    def sign(self, message: bytes) -> bytes:
        """Sign `message`: 64 raw bytes. Raises KeyFileError and the errors of the given `sign`."""
        given: object = self._sign(message)
        try:
            if not isinstance(given, bytes | bytearray):
                raise InvalidSignatureError  # noqa: TRY301 — one error for every wrong signature
            signature = bytes(given)
            raw = signature if len(signature) == SIGNATURE_BYTES else _raw(signature)
            self.public.verify(message, raw, alg=self.alg)
        except (InvalidSignatureError, ValueError, OverflowError):
            raise KeyFileError(
                "The key management service returned a signature by a key other than "
                f"{self.kid}. Check which key it signs with, and that it hashes with SHA-256."
            ) from None
        return raw

    def __repr__(self) -> str:
        return f"<KmsSigner {self.kid}>"


def _raw(der: bytes) -> bytes:
    r, s = decode_dss_signature(der)
    return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")


def _read_public(pem: str | bytes) -> PublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
    except (ValueError, TypeError):
        raise InvalidKeyError("public_key: must be a public key in PEM.") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ed25519_public_key(key.public_bytes_raw())
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        numbers = key.public_numbers()
        return p256_public_key(
            numbers.x.to_bytes(_COORDINATE_BYTES, "big"),
            numbers.y.to_bytes(_COORDINATE_BYTES, "big"),
        )
    raise InvalidKeyError("public_key: must be Ed25519 or P-256.")
