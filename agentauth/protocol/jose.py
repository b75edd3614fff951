"""The only place that parses or writes a JWS: compact form, strict, two algorithms. Claims get their meaning elsewhere."""

from collections.abc import Mapping
from typing import Final

from .encoding import b64u_decode, b64u_encode, canonical_json, read_object
from .errors import EncodingError
from .keys import ALGORITHM_NAMES, PublicKey, Signer
from .values import per_call

MAX_BYTES: Final = 8_192
ALLOWED_ALGS: Final = ALGORITHM_NAMES
_SEGMENTS: Final = 3
# Each changes how the rest of the object is read. A reader that does not know them must refuse (RFC 7515 section
# 4.1.11, RFC 7797 section 6); we know none of them, so all three are refused by name.
_REFUSED_HEADERS: Final = frozenset({"crit", "b64", "zip"})


@per_call(frozen=True, slots=True)
class UnverifiedJws:
    """A JWS of good shape, whose every word may be an attacker's: nothing in it is proved yet."""

    header: Mapping[str, object]
    payload: bytes
    signing_input: bytes
    signature: bytes


@per_call(frozen=True, slots=True)
class VerifiedJws:
    """A JWS whose signature and `typ` are proved; `claims` still need their own rules."""

    header: Mapping[str, object]
    claims: dict[str, object]


def parse_compact(text: str, *, max_bytes: int = MAX_BYTES) -> UnverifiedJws:
    """Read a compact JWS (RFC 7515 section 3.1) into its parts, without trusting any. `max_bytes` bounds the whole text.

    1. ASCII text within the bound. 2. Exactly three segments, none empty. 3. Each is base64url in its one form.
    4. The header is a JSON object without duplicate members. 5. No `crit`, `b64` or `zip`. 6. `alg` is one of ours.
    `jwk`, `jku`, `x5u`, `x5c` and unknown members are left alone: nothing is fetched, and only DPoP and manifests
    read `jwk`. Raises EncodingError.
    """
    # 1. to 3.
    segment, payload, signing_input, signature = split_compact(text, max_bytes=max_bytes)
    # 4. to 6.
    return UnverifiedJws(read_header(segment), payload, signing_input, signature)


def split_compact(text: str, *, max_bytes: int = MAX_BYTES) -> tuple[str, bytes, bytes, bytes]:
    """Steps 1 to 3 of `parse_compact`: the header's segment as it stands, payload, signing input, signature.

    For readers that see the same header again and again; what `read_header` makes of a segment depends on it alone.
    Raises EncodingError.
    """
    # 1. The bound comes before any work in proportion to the length.
    if not isinstance(text, str) or not text or len(text) > max_bytes or not text.isascii():
        raise EncodingError("The signed object is empty, too long or not ASCII.")
    # 2. Unsecured objects have an empty third segment, detached ones an empty second, encrypted ones five.
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
    """The rest of step 3 and steps 4 to 6 of `parse_compact` for one header. Raises EncodingError."""
    # 4.
    header = read_object(b64u_decode(segment), max_bytes=len(segment))
    # 5.
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise EncodingError("The header asks for an extension that is not supported.")
    # 6. Membership of a set needs a text: a list here would raise TypeError, which no caller expects.
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in ALLOWED_ALGS:
        raise EncodingError("The header names no algorithm that is accepted here.")
    return header


def verify_jws(jws: UnverifiedJws, key: PublicKey, *, expected_typ: str) -> VerifiedJws:
    """Prove a parsed JWS under `key` and read its claims.

    1. Signature. 2. `typ` equals `expected_typ`, as exact text: without it a proof, a token and a receipt by one
    key could stand for each other (RFC 8725 section 3.11). 3. The payload is a JSON object, read only now that it
    is known who wrote it. Raises InvalidSignatureError for 1, EncodingError for 2 and 3.
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
    """`verify_jws` of a JWS in its parts, as `split_compact` and `read_header` give them."""
    # 1.
    key.verify(signing_input, signature, alg=str(header["alg"]))
    # 2. The prefix `application/` and capitals, which RFC 7515 section 4.1.9 would allow, are other texts.
    if header.get("typ") != expected_typ:
        raise EncodingError(f"The signed object is not of the kind {expected_typ}.")
    # 3.
    return read_object(payload, max_bytes=len(payload))


def signing_input(
    claims: Mapping[str, object],
    *,
    typ: str,
    alg: str,
    header: Mapping[str, object] | None = None,
) -> bytes:
    """The bytes a signer signs: base64url header, a dot, base64url claims. `header` adds members such as `kid` or `jwk`.

    Both parts are canonical JSON, so the same claims always give the same bytes, and a float can never be signed.
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
    """Sign `claims` as a compact JWS of kind `typ`. Raises what the signer raises, and EncodingError.

    `header` is added beside `typ` and `alg`; `kid` is the caller's to add, since objects that carry their own
    `jwk` have none.
    """
    return signed(signing_input(claims, typ=typ, alg=signer.alg, header=header), signer)


def signed(message: bytes, signer: Signer) -> str:
    """The compact JWS of a `signing_input`. Raises what the signer raises."""
    return f"{message.decode('ascii')}.{b64u_encode(signer.sign(message))}"
