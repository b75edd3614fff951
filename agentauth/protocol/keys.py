"""Keys: strict public keys, JWK, thumbprints, private keys at rest, and the Signer interface.

This module knows neither JWS nor storage.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import BadSignatureError

from .encoding import b64u_decode, b64u_encode, sha256
from .errors import EncodingError, InvalidKeyError, InvalidSignatureError

Algorithm = Literal["EdDSA", "ES256"]

SIGNATURE_BYTES: Final = 64
_COORDINATE_BYTES: Final = 32
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ED25519_FIELD: Final = 2**255 - 19
_ED25519_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_ECDSA: Final = ec.ECDSA(hashes.SHA256())

# The y coordinates of the eight points of small order: 0, 1, −1, and the two of order eight; each
# stands for both signs of x. A key among them verifies one signature over many messages; an R among
# them lets one signature verify under many keys.
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _ED25519_FIELD - 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
            "little",
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
            "little",
        ),
    }
)

# EdDSA (RFC 8037) is the older name, Ed25519 (RFC 9864) the fully specified one, of the same
# algorithm.
_NAMES: Final[dict[Algorithm, frozenset[str]]] = {
    "EdDSA": frozenset({"EdDSA", "Ed25519"}),
    "ES256": frozenset({"ES256"}),
}
ALGORITHM_NAMES: Final = frozenset().union(*_NAMES.values())

# Members with secret material (RFC 7518 sections 6.2.2, 6.3.2, 6.4; RFC 8037 section 2).
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class PrivateMemberError(InvalidKeyError):
    """A JWK has a private member.

    `derives` is the public key if the private member really belongs to it.
    """

    def __init__(self, derives: "PublicKey | None") -> None:
        super().__init__("This must be a public key, but it has a private member.")
        self.derives = derives


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that passed every check of section 1. Equal keys have equal thumbprints."""

    alg: Algorithm
    thumbprint: str
    x: str
    y: str | None = field(default=None)
    # Ed25519: the 32 raw bytes, as libsodium takes them. P-256: OpenSSL's key object.
    _key: bytes | ec.EllipticCurvePublicKey = field(kw_only=True, repr=False, compare=False)

    @property
    def kty(self) -> str:
        """`OKP` or `EC`."""
        return "EC" if self.alg == "ES256" else "OKP"

    @property
    def jwk(self) -> dict[str, str]:
        """The required public members and no others, in a new dict on each call."""
        if self.y is None:
            return {"kty": "OKP", "crv": "Ed25519", "x": self.x}
        return {"kty": "EC", "crv": "P-256", "x": self.x, "y": self.y}

    def verify(self, message: bytes, signature: bytes, *, alg: str) -> None:
        """Verify `signature` (64 raw bytes) over `message`; `alg` is the name in the JWS header.

        The key determines the algorithm, never the message: otherwise an attacker picks an
        algorithm under which the key's bytes mean something else (RFC 8725 section 3.1). Raises
        InvalidSignatureError.
        """
        if alg not in _NAMES[self.alg]:
            raise InvalidSignatureError("The algorithm does not match the key.")
        if len(signature) != SIGNATURE_BYTES:
            raise InvalidSignatureError("A signature has the wrong length.")
        try:
            if isinstance(self._key, bytes):
                _check_ed25519_signature(signature)
                crypto_sign_open(signature + message, self._key)
            else:
                self._key.verify(_der_signature(signature), message, _ECDSA)
        except (InvalidSignature, BadSignatureError):
            raise InvalidSignatureError("The signature does not verify.") from None


def parse_jwk(value: object, *, registered: bool = False) -> PublicKey:
    """Read a public JWK (RFC 7517) of one of the two key types of section 1.

    `use`, `key_ops` and `alg` are optional; if present they must allow verification with this key
    type. Other members are ignored and no URL in them is fetched. Raises InvalidKeyError, and
    PrivateMemberError for any private member: its sender leaked the key (RFC 9449 section 4.3,
    check 7). `registered` is for proofs alone, see `ed25519_public_key`.
    """
    if not isinstance(value, dict):
        raise InvalidKeyError("A key must be a JSON object.")
    if not _PRIVATE_MEMBERS.isdisjoint(value):
        raise PrivateMemberError(_disclosed_key(value))
    return _parse_public(value, registered=registered)


def ed25519_public_key(raw: bytes, *, registered: bool = False) -> PublicKey:
    """Read an Ed25519 key of 32 raw bytes (RFC 8032 section 5.1.5), strictly.

    It must be canonical and in the prime-order group. A mixed-order point (with a small-order
    component) is refused: RFC 8032 section 5.1.7 allows verification with and without the cofactor,
    so for such a key two correct verifiers can disagree, and its holder could choose signatures on
    which they do. Raises InvalidKeyError.

    `registered` skips the group check, which costs about as much as a signature check. Use it only
    if the caller then compares the thumbprint with that of a registered key, as for each proof: an
    equal key passed this check at registration. Bytes that encode no point fail at the first
    signature.
    """
    if len(raw) != _COORDINATE_BYTES:
        raise InvalidKeyError("An Ed25519 key must be 32 bytes.")
    if not _is_strict_point(raw):
        raise InvalidKeyError("The Ed25519 key is not in canonical form, or is a weak point.")
    # libsodium before 1.0.20 of 2025-12-30 accepted half of the mixed-order points
    # (CVE-2025-69277). PyNaCl 1.6.2 or later has the fix.
    if not registered and not crypto_core_ed25519_is_valid_point(raw):
        raise InvalidKeyError("The Ed25519 key is not in the prime-order subgroup.")
    x = b64u_encode(raw)
    # A copy as immutable bytes: the caller cannot change it, and its length needs no second check.
    return PublicKey(
        "EdDSA", _thumbprint(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'), x, _key=bytes(raw)
    )


def p256_public_key(x: bytes, y: bytes) -> PublicKey:
    """Read a P-256 key of two 32-byte coordinates (RFC 7518 section 6.2.1).

    Raises InvalidKeyError for a point off the curve: arithmetic with it would be in another, weaker
    group.
    """
    if len(x) != _COORDINATE_BYTES or len(y) != _COORDINATE_BYTES:
        raise InvalidKeyError("P-256 coordinates must be 32 bytes each.")
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
    )
    try:
        key = numbers.public_key()
    except ValueError:
        raise InvalidKeyError("The P-256 key is not a point of the curve.") from None
    x_text, y_text = b64u_encode(x), b64u_encode(y)
    canonical = f'{{"crv":"P-256","kty":"EC","x":"{x_text}","y":"{y_text}"}}'
    return PublicKey("ES256", _thumbprint(canonical), x_text, y_text, _key=key)


class PrivateKey:
    """A private key in this process. Its repr never shows the secret."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public: Final = _public_of(key)

    @classmethod
    def generate(cls, alg: Algorithm = "EdDSA") -> "PrivateKey":
        """A new key from the operating system's random source."""
        return cls(
            ed25519.Ed25519PrivateKey.generate()
            if alg == "EdDSA"
            else ec.generate_private_key(ec.SECP256R1())
        )

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> "PrivateKey":
        """Read a PKCS #8 PEM of Ed25519 or P-256, encrypted if and only if a passphrase is given.

        Raises InvalidKeyError.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=passphrase)
        except (ValueError, TypeError):
            # The library's message could quote the file, so it is dropped with the cause.
            raise InvalidKeyError("The file does not contain a readable private key.") from None
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return cls(key)
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(key)
        raise InvalidKeyError("Only Ed25519 and P-256 keys are supported.")

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS #8 PEM, encrypted if there is a passphrase.

        The caller sets the file's permissions (0600). The library's key derivation is fast, so the
        passphrase itself must be beyond guessing.
        """
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase)
            if passphrase
            else serialization.NoEncryption(),
        )

    def sign(self, message: bytes) -> bytes:
        """64 raw bytes: Ed25519 (RFC 8032), or r ‖ s for ES256 (RFC 7518 section 3.4)."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")

    def __repr__(self) -> str:
        return f"<PrivateKey {self.public.alg} {self.public.thumbprint}>"

    def __reduce__(self) -> str:
        # Pickling would copy the secret into caches and task queues.
        raise TypeError("A private key cannot be pickled.")


class Signer(Protocol):
    """Signs messages, with a key in this process, in a file or in a key management service."""

    @property
    def kid(self) -> str:
        """The key's name in JWS headers."""

    @property
    def alg(self) -> str:
        """The `alg` to write into JWS headers."""

    @property
    def public(self) -> PublicKey:
        """The public half, to publish and to check signatures that the backend returned."""

    def sign(self, message: bytes) -> bytes:
        """64 raw signature bytes over `message`."""


class LocalSigner:
    """A Signer over a key in this process; `kid` defaults to the thumbprint."""

    __slots__ = ("_key", "kid")

    def __init__(self, private_key: PrivateKey, kid: str | None = None) -> None:
        self._key = private_key
        self.kid = private_key.public.thumbprint if kid is None else kid

    @property
    def alg(self) -> str:
        """`EdDSA` or `ES256`."""
        return self._key.public.alg

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return self._key.public

    def sign(self, message: bytes) -> bytes:
        """64 raw signature bytes over `message`."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"<LocalSigner {self.kid}>"


def _parse_public(jwk: dict[str, object], *, registered: bool) -> PublicKey:
    kind = (jwk.get("kty"), jwk.get("crv"))
    if kind == ("OKP", "Ed25519"):
        _check_use(jwk, "EdDSA")
        return ed25519_public_key(_coordinate(jwk, "x"), registered=registered)
    if kind == ("EC", "P-256"):
        _check_use(jwk, "ES256")
        return p256_public_key(_coordinate(jwk, "x"), _coordinate(jwk, "y"))
    raise InvalidKeyError("Only Ed25519 and P-256 keys are supported.")


def _check_use(jwk: dict[str, object], alg: Algorithm) -> None:
    """Refuse a key that its owner published for another use (RFC 7517 sections 4.2 to 4.4)."""
    if "alg" in jwk and not (isinstance(name := jwk["alg"], str) and name in _NAMES[alg]):
        raise InvalidKeyError("The key's alg does not match its type.")
    if "use" in jwk and jwk["use"] != "sig":
        raise InvalidKeyError("The key is not meant for signatures.")
    if "key_ops" in jwk:
        operations = jwk["key_ops"]
        if not isinstance(operations, list) or "verify" not in operations:
            raise InvalidKeyError("The key is not meant for verifying signatures.")


def _coordinate(jwk: dict[str, object], name: str) -> bytes:
    text = jwk.get(name)
    if not isinstance(text, str):
        raise InvalidKeyError(f"The key's {name} is missing.")
    try:
        return b64u_decode(text)
    except EncodingError:
        raise InvalidKeyError(f"The key's {name} is not base64url.") from None


def _disclosed_key(jwk: dict[str, object]) -> PublicKey | None:
    """The public key derived from `d`, if the JWK names that same key; else None.

    Anyone can write an invented `d` beside another agent's public key. Only a matching one shows
    that the secret leaked. If any `d` barred the key, an attacker could bar the keys of others.
    Leading zeros in a P-256 `d` violate RFC 7518, but the secret has leaked all the same.
    """
    try:
        named = ("kty", "crv", "x", "y")
        public = _parse_public({name: jwk[name] for name in named if name in jwk}, registered=False)
        secret = _coordinate(jwk, "d")
        if public.alg == "EdDSA":
            made = _public_of(ed25519.Ed25519PrivateKey.from_private_bytes(secret))
        else:
            made = _public_of(ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1()))
    except (InvalidKeyError, ValueError):
        return None
    return made if made == public else None


def _public_of(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> PublicKey:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return ed25519_public_key(key.public_key().public_bytes_raw())
    numbers = key.public_key().public_numbers()
    return p256_public_key(
        numbers.x.to_bytes(_COORDINATE_BYTES, "big"), numbers.y.to_bytes(_COORDINATE_BYTES, "big")
    )


def _thumbprint(canonical: str) -> str:
    """RFC 7638 section 3: SHA-256 over the required members in lexicographic order, no spaces.

    Optional members stay out, so that a key cannot change its name by adding one.
    """
    return b64u_encode(sha256(canonical.encode("ascii")))


def _is_strict_point(raw: bytes) -> bool:
    """Is this a canonical encoding (y below the field prime) of a point that is not of small order?

    The library silently reduces y, so one key would have two encodings and two thumbprints: a
    barred key could return under its second name. The other non-canonical form, x = 0 with the sign
    bit set (RFC 8032 section 5.1.3), exists only for points of small order.
    """
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    return y < _ED25519_FIELD and y not in _SMALL_ORDER_Y


def _check_ed25519_signature(signature: bytes) -> None:
    """Check the encoding of a signature (RFC 8032 section 5.1.7).

    R must be canonical and not of small order, S below the group order: a larger S would make a
    second valid signature from the first without the key (section 8.4). The library refuses all of
    these itself; the checks stand here so that the rule holds for any backend.
    """
    if (
        not _is_strict_point(signature[:32])
        or int.from_bytes(signature[32:], "little") >= _ED25519_ORDER
    ):
        raise InvalidSignatureError("The signature is not in canonical form.")


def _der_signature(signature: bytes) -> bytes:
    """Convert r ‖ s to the DER that the library takes. Refuses zero and values not below the order.

    Zero has made ECDSA verifiers accept any message (CVE-2022-21449).
    """
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER):
        raise InvalidSignatureError("The signature is out of range.")
    return encode_dss_signature(r, s)
