"""Passkey public keys (COSE_Key, RFC 9052): a reader for the keys of WebAuthn, and signature
checks.

No WebAuthn or CBOR library is needed, so a receipt can be verified without one.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from .errors import InvalidKeyError, InvalidSignatureError
from .keys import PublicKey, ed25519_public_key, p256_public_key

# Room for the largest RSA key accepted below.
MAX_COSE_KEY_BYTES: Final = 2_048
_MIN_RSA_BITS, _MAX_RSA_BITS, _RSA_EXPONENT = 2_048, 8_192, 65_537
_COORDINATE_BYTES: Final = 32

# Labels of RFC 9052 section 7 and RFC 9053 section 7; -1 to -3 mean different things for different
# key types.
_KTY, _ALG, _CRV_OR_N, _X_OR_E, _Y = 1, 3, -1, -2, -3
_UNSIGNED, _NEGATIVE, _BYTES, _MAP = 0, 1, 2, 5
_INLINE: Final = 24

Label = int | bytes


@dataclass(frozen=True, slots=True)
class PasskeyKey:
    """A passkey's public key: ES256, EdDSA (Ed25519), or RS256 for Windows Hello (section 1)."""

    alg: str
    _key: PublicKey | rsa.RSAPublicKey

    def verify(self, message: bytes, signature: bytes) -> None:
        """Verify a WebAuthn assertion signature (ES256 in DER). Raises InvalidSignatureError."""
        if isinstance(self._key, PublicKey):
            raw = _raw_ecdsa(signature) if self.alg == "ES256" else signature
            self._key.verify(message, raw, alg=self.alg)
            return
        try:
            self._key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise InvalidSignatureError("The passkey's signature does not verify.") from None


def _raw_ecdsa(signature: bytes) -> bytes:
    """Convert DER to the fixed form that `PublicKey` verifies. Raises InvalidSignatureError."""
    # The library accepts strict DER only; `to_bytes` refuses a negative or too large number.
    try:
        r, s = decode_dss_signature(signature)
        return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
    except (ValueError, OverflowError):
        raise InvalidSignatureError("The passkey's signature is not in DER form.") from None


def read_passkey(cose: bytes) -> PasskeyKey:
    """Read a passkey's COSE_Key (WebAuthn L3 section 5.8.5, RFC 9053, RFC 8230).

    Exactly the labels of its type, and nothing after it. Raises InvalidKeyError.
    """
    labels = _read_map(cose)
    # Compare type, algorithm and curve together: a key of one type used under the algorithm of
    # another could accept forged signatures.
    kind = (labels.get(_KTY), labels.get(_ALG))
    if (
        kind == (2, -7)
        and set(labels) == {_KTY, _ALG, _CRV_OR_N, _X_OR_E, _Y}
        and labels[_CRV_OR_N] == 1
    ):
        return PasskeyKey("ES256", p256_public_key(_bytes(labels[_X_OR_E]), _bytes(labels[_Y])))
    if (
        kind == (1, -8)
        and set(labels) == {_KTY, _ALG, _CRV_OR_N, _X_OR_E}
        and labels[_CRV_OR_N] == 6  # noqa: PLR2004 — Ed25519
    ):
        return PasskeyKey("EdDSA", ed25519_public_key(_bytes(labels[_X_OR_E])))
    if kind == (3, -257) and set(labels) == {_KTY, _ALG, _CRV_OR_N, _X_OR_E}:
        return PasskeyKey("RS256", _rsa_key(_bytes(labels[_CRV_OR_N]), _bytes(labels[_X_OR_E])))
    raise InvalidKeyError("The passkey's key is not ES256, Ed25519 or RS256.")


def _rsa_key(modulus: bytes, exponent: bytes) -> rsa.RSAPublicKey:
    n, e = int.from_bytes(modulus, "big"), int.from_bytes(exponent, "big")
    # Fewer bits can be factored. The upper bound keeps one verification from taking seconds. Small
    # exponents have allowed forged PKCS #1 v1.5 signatures; real passkeys use 65537.
    if not _MIN_RSA_BITS <= n.bit_length() <= _MAX_RSA_BITS or n % 2 == 0 or e != _RSA_EXPONENT:
        raise InvalidKeyError(
            "The passkey's RSA key must have 2048 to 8192 bits and the exponent 65537."
        )
    try:
        return rsa.RSAPublicNumbers(e, n).public_key()
    except ValueError:
        raise InvalidKeyError("The passkey's RSA key is not valid.") from None


def _bytes(value: Label) -> bytes:
    if not isinstance(value, bytes):
        raise InvalidKeyError("The passkey's key has a member of the wrong type.")
    return value


def _read_map(data: bytes) -> dict[int, Label]:
    """Read a CBOR map of integers to integers or byte strings, in definite lengths and shortest
    form (RFC 8949 section 4.2.1).
    """
    if not isinstance(data, bytes) or not 0 < len(data) <= MAX_COSE_KEY_BYTES:
        raise InvalidKeyError("The passkey's key is empty or too long.")
    # The length above bounds the loop: a count that promises more items than there are bytes fails.
    major, count, at = _head(data, 0)
    if major != _MAP:
        raise InvalidKeyError("The passkey's key is not a CBOR map.")
    result: dict[int, Label] = {}
    for _ in range(count):
        label, at = _item(data, at)
        value, at = _item(data, at)
        # Readers differ in which of two equal labels wins.
        if not isinstance(label, int) or label in result:
            raise InvalidKeyError(
                "The passkey's key has a label that is repeated or has the wrong type."
            )
        result[label] = value
    # Otherwise two byte strings would be one key, and one passkey could be registered twice.
    if at != len(data):
        raise InvalidKeyError("The passkey's key has extra bytes after its end.")
    return result


def _item(data: bytes, at: int) -> tuple[Label, int]:
    major, value, at = _head(data, at)
    if major == _UNSIGNED:
        return value, at
    if major == _NEGATIVE:
        return -1 - value, at
    if major == _BYTES and at + value <= len(data):
        return data[at : at + value], at + value
    raise InvalidKeyError(
        "The passkey's key contains something other than integers and byte strings."
    )


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Return major type, argument and the position after them.

    Refuses forms longer than needed, which would be second spellings.
    """
    if at >= len(data):
        raise InvalidKeyError("The passkey's key ends too early.")
    major, value = data[at] >> 5, data[at] & 0x1F
    if value < _INLINE:
        return major, value, at + 1
    size = {24: 1, 25: 2}.get(value, 0)
    argument = data[at + 1 : at + 1 + size]
    number = int.from_bytes(argument, "big")
    # Two bytes are enough for a key of 2 kB. Indefinite lengths (31) end here as well.
    if not size or len(argument) != size or number < (_INLINE if size == 1 else 0x100):
        raise InvalidKeyError("The passkey's key is not in the shortest CBOR form.")
    return major, number, at + 1 + size
