"""DPoP proofs (RFC 9449): make and verify them.

Which agent holds the key, and whether the proof was used before, is for the caller to check.
"""

import hmac
import re
import threading
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final

from .encoding import b64u_encode, sha256
from .errors import (
    AgentAuthError,
    InvalidProofError,
    InvalidRequestError,
    InvalidSignatureError,
    InvalidTokenError,
    ProofNonceRequiredError,
)
from .fast_dataclass import per_call
from .jose import proved_claims, read_header, sign_compact, split_compact
from .json_fields import quote_safely
from .keys import PrivateMemberError, PublicKey, Signer, parse_jwk
from .url_normalization import normalize_url, url_within

__all__ = [
    "SPEND_SECONDS",
    "TYP",
    "WINDOW_SECONDS",
    "LeakedKeyError",
    "VerifiedProof",
    "authorization_header",
    "check_binding",
    "check_nonce",
    "make_proof",
    "normalize_url",
    "single_header",
    "url_within",
    "verify_proof",
]

TYP: Final = "dpop+jwt"
WINDOW_SECONDS: Final = 60
# The replay cache must remember a proof for longer than any verifier accepts it (iat + 60 s). The
# extra 5 s cover the difference between the clocks of two verifiers.
SPEND_SECONDS: Final = WINDOW_SECONDS + 5
MAX_JTI_LENGTH: Final = 256
# Entries of about 0.8 kB each.
_KEPT_HEADERS: Final = 120_000
# Characters. Our headers have 158 (Ed25519) and 220 (P-256). Longer ones are parsed on each call,
# which bounds the memory of the cache.
_MAX_KEPT_HEADER: Final = 512
_KEPT_TOKENS: Final = 4_096
# Characters. A usual token has about 900.
_MAX_KEPT_TOKEN: Final = 2_048
# Two maps of keys that a verified token named: header segment to key, and thumbprint to header
# segment, oldest first. Each key keeps one header, so an agent that spells its header in many ways
# cannot evict the entries of others.
_BOUND_KEYS: Final[dict[str, PublicKey]] = {}
_BOUND_HEADERS: Final[dict[str, str]] = {}
_KEEPING: Final = threading.Lock()
# token68 (RFC 9110 section 11.2). A space, or a second credential joined with a comma, does not
# match.
_AUTHORIZATION: Final = re.compile(r"([A-Za-z]+) +([A-Za-z0-9._~+/-]+=*)")


class LeakedKeyError(InvalidProofError):
    """The proof's `jwk` held the private half of `key`: bar that key for ever (section 1)."""

    def __init__(self, key: PublicKey) -> None:
        super().__init__("The proof carries a private key.", reason="malformed")
        self.key = key


@per_call(frozen=True, slots=True)
class VerifiedProof:
    """A proof whose claims all match the request. Whether it is a replay is not checked yet.

    `spent_until` (Unix seconds) is how long (`jkt`, `jti`) must be remembered. `nonce` is the
    proof's claim, for `check_nonce` to judge; `body_hash` is its `bh` as sent; `header` is the
    first segment as sent.
    """

    key: PublicKey
    jkt: str
    jti: str
    iat: int
    spent_until: int
    nonce: str | None
    body_hash: str | None
    header: str


def verify_proof(
    compact: str,
    *,
    expected_method: str,
    expected_url: str,
    access_token: str | None,
    body: bytes | None,
    now: int,
    require_body_hash: bool = False,
) -> VerifiedProof:
    """Verify a DPoP proof for one request (RFC 9449 section 4.3; protocol.md sections 2 and 8).

    `now` is in Unix seconds. 1. It is a compact JWS in our form. 2. Its key is public and strict.
    3. Signature, `typ`, JSON claims. 4. `jti`, `htm`, `htu` and `iat` are present, in their types.
    5. Method, as exact text. 6. URL, in normal form. 7. Time. 8. `ath` is the hash of
    `access_token`, and is absent if there is none. 9. `bh` matches `body`; it is required if `body`
    is not empty (the native API) or if `require_body_hash`. Unknown members are ignored. The caller
    checks nonce and replay afterwards.

    Raises InvalidProofError with the reason of the first check that fails (LeakedKeyError in step
    2), and InvalidRequestError if `expected_url` itself cannot be normalised.
    """
    # 1. to 3.
    key, header, claims = _verify_signature(compact)
    # 4.
    jti = _text(claims, "jti")
    # RFC 9449 section 11.1: large values could exhaust a replay cache that stores them. Ours stores
    # a digest; the bound holds for any.
    if len(jti) > MAX_JTI_LENGTH:
        raise InvalidProofError(
            "The proof's jti is longer than 256 characters.", reason="malformed"
        )
    method, url, iat = _text(claims, "htm"), _text(claims, "htu"), _seconds(claims, "iat")
    nonce = _text(claims, "nonce") if "nonce" in claims else None
    # 5. A captured GET proof must not authorise a DELETE (RFC 9449 section 4.3, check 8). Methods
    # are case-sensitive (RFC 9110 section 9.1).
    if method != expected_method:
        raise InvalidProofError("The proof was made for another method.", reason="method")
    # 6.
    _check_url(url, expected_url)
    # 7.
    _check_time(claims, iat, now)
    # 8.
    _check_access_token(claims, access_token)
    # 9.
    body_hash = _check_body(claims, body, required=require_body_hash)
    return VerifiedProof(
        key, key.thumbprint, jti, iat, iat + SPEND_SECONDS, nonce, body_hash, header
    )


def check_nonce(proof: VerifiedProof, *, accepted: Collection[str], required: bool) -> None:
    """Check the proof's nonce against those this server accepts now (RFC 9449 sections 8 and 9).

    A nonce shows that the proof is recent: without one, an attacker who can use the key for a
    moment can sign proofs with a future `iat` and use them later (section 11.2). A proof without a
    nonce passes unless `required`. A nonce outside `accepted` never passes, even where none was
    asked for: it was made for another server or another time. The comparison takes constant time,
    so a nonce cannot be guessed byte by byte. Raises ProofNonceRequiredError.
    """
    if proof.nonce is None:
        if required:
            raise ProofNonceRequiredError("The proof needs the nonce that comes with this answer.")
    elif not any(_equal(proof.nonce, nonce) for nonce in accepted):
        raise ProofNonceRequiredError("The proof's nonce is not valid here, or no longer valid.")


def check_binding(proof: VerifiedProof, *, expected_jkt: str) -> None:
    """Check that the proof's key is the one in the token's `cnf.jkt` (RFC 9449 section 6.1).

    Until then the proof shows only that its sender holds some key: anyone who stole a token can
    sign a valid proof with a key of their own. Raises InvalidTokenError (`binding`).

    `expected_jkt` must come from a verified token. The key is then cached, so that the agent's next
    proof is verified faster. Keys without a token never enter this cache.
    """
    if proof.jkt != expected_jkt:
        raise InvalidTokenError("The token is bound to another key.", reason="binding")
    if proof.header not in _BOUND_KEYS and len(proof.header) <= _MAX_KEPT_HEADER:
        with _KEEPING:
            full = proof.jkt not in _BOUND_HEADERS and len(_BOUND_HEADERS) >= _KEPT_HEADERS
            gone = _BOUND_HEADERS.pop(next(iter(_BOUND_HEADERS)) if full else proof.jkt, None)
            if gone is not None:
                _BOUND_KEYS.pop(gone, None)
            _BOUND_KEYS[proof.header], _BOUND_HEADERS[proof.jkt] = proof.key, proof.header


def make_proof(
    signer: Signer,
    *,
    method: str,
    url: str,
    iat: int,
    jti: str,
    access_token: str | None = None,
    body: bytes | None = None,
    nonce: str | None = None,
) -> str:
    """Sign a proof for one request.

    `jti` must be new and have at least 96 random bits; `iat` is in Unix seconds. `url` is sent in
    its normal form, so query and fragment never leave in a header. Pass `access_token` at a service
    provider, `body` at the registry. Raises InvalidRequestError for a URL that `normalize_url`
    refuses.
    """
    claims: dict[str, object] = {"jti": jti, "htm": method, "htu": normalize_url(url), "iat": iat}
    if access_token is not None:
        claims["ath"] = _digest(access_token.encode("ascii"))
    if body:
        claims["bh"] = _digest(body)
    if nonce is not None:
        claims["nonce"] = nonce
    return sign_compact(claims, signer, typ=TYP, header={"jwk": signer.public.jwk})


def authorization_header(lines: Sequence[str]) -> str:
    """Return the access token of the Authorization header lines: exactly one, `DPoP <token>`,
    scheme in any case.

    Raises InvalidTokenError if there is none or the scheme is another: to accept a bound token
    under `Bearer` would let a thief use it without the key (RFC 9449 section 7.2). Raises
    InvalidRequestError for a second line, also when a server joined it with a comma, and for a
    scheme without a token: two readers could pick different tokens.
    """
    if not lines:
        raise InvalidTokenError("The request carries no access token.", reason="malformed")
    match = _AUTHORIZATION.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        raise InvalidRequestError("The Authorization header must be one line: DPoP and the token.")
    if match[1].lower() != "dpop":
        raise InvalidTokenError(
            "The token is bound to a key and must be sent as DPoP.", reason="malformed"
        )
    return match[2]


def single_header(lines: Sequence[str]) -> str:
    """Return the proof of the DPoP header lines: exactly one (RFC 9449 section 4.3, check 1).

    With two, the layer that checks and the layer that records might look at different proofs. Some
    frameworks join two lines with a comma, which no proof contains. Raises InvalidProofError
    (`malformed`).
    """
    if len(lines) != 1 or not lines[0] or "," in lines[0]:
        raise InvalidProofError(
            "The request must have exactly one DPoP header.", reason="malformed"
        )
    return lines[0]


def _verify_signature(compact: str) -> tuple[PublicKey, str, dict[str, object]]:
    try:
        # 1. and 2. The sender chooses the key, so this proves only possession of it. The caller
        # must compare it with the key of an agent or token.
        segment, payload, signing_input, signature = split_compact(compact)
        key = _BOUND_KEYS.get(segment)
        if key is None:
            header = read_header(segment)
            # `registered`: every caller compares the thumbprint with that of a token, an agent or a
            # manifest.
            key = parse_jwk(header.get("jwk"), registered=True)
        else:
            # This exact header passed all checks with this key before.
            header = {"alg": key.alg, "typ": TYP}
        # 3.
        return (
            key,
            segment,
            proved_claims(header, payload, signing_input, signature, key, expected_typ=TYP),
        )
    except InvalidSignatureError:
        raise InvalidProofError(
            "The proof's signature does not verify.", reason="signature"
        ) from None
    except PrivateMemberError as error:
        if error.derives is not None:
            raise LeakedKeyError(error.derives) from None
        raise InvalidProofError(error.description, reason="malformed") from None
    except AgentAuthError as error:
        raise InvalidProofError(error.description, reason="malformed") from None


def _text(claims: dict[str, object], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidProofError(
            f"The proof's {name} is missing or not a string.", reason="malformed"
        )
    return value


def _seconds(claims: dict[str, object], name: str) -> int:
    value = claims.get(name)
    # In Python a bool is an int. Fractions would make the last second depend on rounding.
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidProofError(
            f"The proof's {name} is missing or not an integer.", reason="malformed"
        )
    return value


def _check_url(url: str, expected_url: str) -> None:
    # Without this check, a service provider could forward an agent's proof to another one (RFC 9449
    # section 4.3, check 9).
    expected = normalize_url(expected_url)
    try:
        same = normalize_url(url) == expected
    except InvalidRequestError as error:
        raise InvalidProofError(error.description, reason="url") from None
    if not same:
        raise InvalidProofError(
            f"The proof was made for a URL other than {quote_safely(expected)}.", reason="url"
        )


def _check_time(claims: dict[str, object], iat: int, now: int) -> None:
    """Check `iat`, and `exp` and `nbf` if present (RFC 9449 section 4.3, check 11; RFC 7519 section
    4.1).

    An older proof could be replayed, since the replay cache has forgotten it. The window also
    limits how long a captured proof is of use (RFC 9449 section 11.1). A proof signed in advance,
    with the `iat` of its later use, passes then: only a nonce stops that (section 11.2,
    `check_nonce`). `nbf` has the same 60 s of leeway, since it comes from the same clock. `exp` has
    none: it is the signer's own wish that the proof ends.
    """
    if abs(now - iat) > WINDOW_SECONDS:
        raise InvalidProofError("The proof was made too long ago, or in the future.", reason="iat")
    if "exp" in claims and _seconds(claims, "exp") <= now:
        raise InvalidProofError("The proof has expired.", reason="iat")
    if "nbf" in claims and _seconds(claims, "nbf") > now + WINDOW_SECONDS:
        raise InvalidProofError("The proof is not valid yet.", reason="iat")


def _check_access_token(claims: dict[str, object], access_token: str | None) -> None:
    if access_token is None:
        # The native API takes no token. A proof with `ath` was made for a service provider, which
        # could forward it here.
        if "ath" in claims:
            raise InvalidProofError(
                "The proof names an access token, but none is used here.", reason="ath"
            )
        return
    # Without `ath`, a proof would work with any token of the same key, such as one for a wider
    # grant (RFC 9449 section 4.3, check 12).
    digest = _kept_token_digest if len(access_token) <= _MAX_KEPT_TOKEN else _token_digest
    if not _equal(claims.get("ath"), digest(access_token)):
        raise InvalidProofError("The proof was made for another access token.", reason="ath")


def _check_body(claims: dict[str, object], body: bytes | None, *, required: bool) -> str | None:
    """Check `bh`, and return it as sent.

    DPoP does not sign the body (RFC 9449 section 11.7). At the registry the body says what is asked
    for, so without `bh` an attacker in between could change it. Elsewhere `bh` is not compared.
    """
    present = "bh" in claims
    if (required or body) and not present:
        raise InvalidProofError("The proof does not cover the body: bh is missing.", reason="body")
    if not present:
        return None
    if body is not None and not _equal(claims["bh"], _digest(body)):
        raise InvalidProofError("The proof was made for another body.", reason="body")
    value = claims["bh"]
    return value if isinstance(value, str) else None


def _digest(data: bytes) -> str:
    return b64u_encode(sha256(data))


def _token_digest(access_token: str) -> str:
    return _digest(access_token.encode("utf-8", "surrogatepass"))


# An agent sends one token with many proofs.
_kept_token_digest = lru_cache(maxsize=_KEPT_TOKENS)(_token_digest)


def _equal(claimed: object, expected: str) -> bool:
    return isinstance(claimed, str) and claimed.isascii() and hmac.compare_digest(claimed, expected)
