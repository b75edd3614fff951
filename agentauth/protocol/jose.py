"""Parse and write compact JWS: strictly, with two algorithms. No other module does.

What the claims mean is decided elsewhere.
"""

from collections.abc import Mapping
from typing import Final

from .encoding import b64u_decode, b64u_encode, canonical_json, read_object
from .errors import EncodingError
from .fast_dataclass import per_call
from .keys import ALGORITHM_NAMES, PublicKey, Signer

MAX_BYTES: Final = 8_192
ALLOWED_ALGS: Final = ALGORITHM_NAMES
_SEGMENTS: Final = 3
# Each changes how the rest of the object is read, and a reader that does not understand one must
# refuse it (RFC 7515 section 4.1.11, RFC 7797 section 6). Otherwise we and another reader could
# verify different bytes under one signature.
_REFUSED_HEADERS: Final = frozenset({"crit", "b64", "zip"})


@per_call(frozen=True, slots=True)
class UnverifiedJws:
    """A well-formed JWS. Nothing in it is verified: an attacker may have written all of it."""

    header: Mapping[str, object]
    payload: bytes
    signing_input: bytes
    signature: bytes


@per_call(frozen=True, slots=True)
class VerifiedJws:
    """A JWS whose signature and `typ` are verified; `claims` still need checks of their own."""

    header: Mapping[str, object]
    claims: dict[str, object]


def parse_compact(text: str, *, max_bytes: int = MAX_BYTES) -> UnverifiedJws:
    """Split a compact JWS (RFC 7515 section 3.1) into its parts, trusting none.

    1. ASCII text of at most `max_bytes`. 2. Exactly three segments, none empty. 3. Each is
    canonical base64url. 4. The header is a JSON object without duplicate members. 5. No `crit`,
    `b64` or `zip`. 6. `alg` is one of ours. `jku`, `x5u`, `x5c` and unknown members are ignored, so
    no sender can make us fetch a URL (RFC 8725 section 3.10). `jwk` is read only by callers whose
    object introduces its own key. Raises EncodingError.
    """
    # 1. to 3.
    segment, payload, signing_input, signature = split_compact(text, max_bytes=max_bytes)
    # 4. to 6.
    return UnverifiedJws(read_header(segment), payload, signing_input, signature)


def split_compact(text: str, *, max_bytes: int = MAX_BYTES) -> tuple[str, bytes, bytes, bytes]:
    """Steps 1 to 3 of `parse_compact`. Returns header segment, payload, signing input, signature.

    For callers that see the same header repeatedly: `read_header` depends on its segment alone, so
    its result can be cached. Raises EncodingError.
    """
    # 1. Checked before any work that grows with the length.
    if not isinstance(text, str) or not text or len(text) > max_bytes or not text.isascii():
        raise EncodingError("The signed object is empty, too long or not ASCII.")
    # 2. An unsecured JWS (`alg` none) has an empty third segment, a detached one an empty second; a
    # JWE has five.
    segments = text.split(".")
    if len(segments) != _SEGMENTS or not all(segments):
        raise EncodingError("A signed object has three parts separated by dots.")
    # 3.
    return (
        segments[0],
        b64u_decode(segments[1]),
        text[: text.rindex(".")].encode("ascii"),
        b64u_decode(segments[2]),
    )


def read_header(segment: str) -> dict[str, object]:
    """Step 3 for the header, and steps 4 to 6 of `parse_compact`. Raises EncodingError."""
    # 4.
    header = read_object(b64u_decode(segment), max_bytes=len(segment))
    # 5.
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise EncodingError("The header asks for an extension that is not supported.")
    # 6. An algorithm outside this list, `none` above all, would let anyone forge a signature (RFC
    # 8725 section 3.1). The type comes first: a list would raise TypeError here.
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in ALLOWED_ALGS:
        raise EncodingError("The header does not name an accepted algorithm.")
    return header


def verify_jws(jws: UnverifiedJws, key: PublicKey, *, expected_typ: str) -> VerifiedJws:
    """Verify a parsed JWS under `key` and read its claims.

    1. Signature. 2. `typ` equals `expected_typ`, as exact text: without it, a proof, token or
    receipt of one key could stand for another kind (RFC 8725 section 3.11). 3. The payload is a
    JSON object, parsed only now that its author is known. Raises InvalidSignatureError for 1,
    EncodingError for 2 and 3.
    """
    claims = proved_claims(
        jws.header, jws.payload, jws.signing_input, jws.signature, key, expected_typ=expected_typ
    )
    return VerifiedJws(jws.header, claims)


def proved_claims(
    header: Mapping[str, object],
    payload: bytes,
    signing_input: bytes,
    signature: bytes,
    key: PublicKey,
    *,
    expected_typ: str,
) -> dict[str, object]:
    """`verify_jws` for a JWS in parts, as `split_compact` and `read_header` return them."""
    # 1.
    key.verify(signing_input, signature, alg=str(header["alg"]))
    # 2. RFC 7515 section 4.1.9 also allows capitals and the prefix `application/`. Refused here:
    # one kind has one spelling.
    if header.get("typ") != expected_typ:
        raise EncodingError(f"The signed object must be of the type {expected_typ}.")
    # 3.
    return read_object(payload, max_bytes=len(payload))


def signing_input(
    claims: Mapping[str, object],
    *,
    typ: str,
    alg: str,
    header: Mapping[str, object] | None = None,
) -> bytes:
    """The bytes to sign: base64url header, a dot, base64url claims.

    `header` adds members such as `kid` or `jwk`. Both parts are canonical JSON: the same claims
    always give the same bytes, and a float cannot be signed. Raises EncodingError.
    """
    parts = canonical_json({**(header or {}), "typ": typ, "alg": alg}), canonical_json(dict(claims))
    return ".".join(map(b64u_encode, parts)).encode("ascii")


def sign_compact(
    claims: Mapping[str, object],
    signer: Signer,
    *,
    typ: str,
    header: Mapping[str, object] | None = None,
) -> str:
    """Sign `claims` as a compact JWS of kind `typ`.

    Raises EncodingError, and what the signer raises. `header` is added beside `typ` and `alg`. The
    caller adds `kid`, since objects that carry their own `jwk` have none.
    """
    return sign_input(signing_input(claims, typ=typ, alg=signer.alg, header=header), signer)


def sign_input(message: bytes, signer: Signer) -> str:
    """Sign a `signing_input` and return the compact JWS. Raises what the signer raises."""
    return f"{message.decode('ascii')}.{b64u_encode(signer.sign(message))}"
