"""DPoP proofs (RFC 9449): making them and proving them. Who the key belongs to, and whether it was spent, is the caller's."""

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
from .jose import proved_claims, read_header, sign_compact, split_compact
from .keys import PrivateMemberError, PublicKey, Signer, parse_jwk
from .reading import shown
from .urls import normalize_url, url_within
from .values import per_call

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
# The replay memory outlives the window because it is computed from it: a proof is good until iat + 60 s, and the
# clocks of two verifiers may differ by a few seconds.
SPEND_SECONDS: Final = WINDOW_SECONDS + 5
MAX_JTI_LENGTH: Final = 256
# Some 0.8 kB each.
_KEPT_HEADERS: Final = 120_000
# Ours have 158 letters (Ed25519) and 220 (P-256). Longer ones are read each time, so that what is kept stays small.
_MAX_KEPT_HEADER: Final = 512
_KEPT_TOKENS: Final = 4_096
# Usual ones have 900 letters.
_MAX_KEPT_TOKEN: Final = 2_048
# The keys of verified tokens by the header that named them in a proof; and that header by the key's thumbprint, oldest
# first. Of each key one header: an agent that spells its own in many ways takes no other's place.
_BOUND_KEYS: Final[dict[str, PublicKey]] = {}
_BOUND_HEADERS: Final[dict[str, str]] = {}
_KEEPING: Final = threading.Lock()
# RFC 9110 section 11.2 (token68): a second credential joined on by a comma, or any space, does not match.
_AUTHORIZATION: Final = re.compile(r"([A-Za-z]+) +([A-Za-z0-9._~+/-]+=*)")


class LeakedKeyError(InvalidProofError):
    """The proof's `jwk` carried the true private key: `key` is to be barred for ever (section 1)."""

    def __init__(self, key: PublicKey) -> None:
        super().__init__("The proof carries a private key.", reason="malformed")
        self.key = key


@per_call(frozen=True, slots=True)
class VerifiedProof:
    """A proof whose every claim was checked against the request. It is not yet known to be fresh in replay memory.

    `spent_until` (unix seconds) is how long (`jkt`, `jti`) must be remembered; `nonce` is what the proof carries,
    to be judged by `check_nonce`; `body_hash` is its `bh` as sent. `header` is the first segment, as sent.
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
    """Prove one DPoP proof (RFC 9449 section 4.3; docs/protocol.md sections 2 and 8) for one request at `now` (unix seconds).

    1. Compact JWS of ours. 2. Its key is public and strict. 3. Signature, `typ`, JSON claims. 4. `jti`, `htm`,
    `htu`, `iat` stand there in their types. 5. Method, exact text. 6. URL, by normal form. 7. Time. 8. `ath`: the
    token's hash when `access_token` is given, absent when not. 9. `bh`: when `body` is given (the native API) and
    not empty, or when `require_body_hash`. Unknown members are ignored. Nonce and replay come after, with the caller.

    Raises InvalidProofError with the reason of the first check that fails (LeakedKeyError in step 2), and
    InvalidRequestError when `expected_url` itself is not a URL we compare.
    """
    # 1. to 3.
    key, header, claims = _prove_signature(compact)
    # 4.
    jti = _text(claims, "jti")
    if len(jti) > MAX_JTI_LENGTH:
        raise InvalidProofError("The proof's jti is longer than 256 characters.", reason="malformed")
    method, url, iat = _text(claims, "htm"), _text(claims, "htu"), _seconds(claims, "iat")
    nonce = _text(claims, "nonce") if "nonce" in claims else None
    # 5. Methods are case-sensitive (RFC 9110 section 9.1).
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
    return VerifiedProof(key, key.thumbprint, jti, iat, iat + SPEND_SECONDS, nonce, body_hash, header)


def check_nonce(proof: VerifiedProof, *, accepted: Collection[str], required: bool) -> None:
    """Judge the proof's nonce (RFC 9449 section 9) against those this server would take now.

    A proof without one passes unless `required`. A nonce that is not among `accepted` never passes, not even where
    none was asked for: it was made for another server or another time. Compared in constant time, so that none can
    be found out letter by letter. Raises ProofNonceRequiredError.
    """
    if proof.nonce is None:
        if required:
            raise ProofNonceRequiredError("The proof needs the nonce that comes with this answer.")
    elif not any(_equal(proof.nonce, nonce) for nonce in accepted):
        raise ProofNonceRequiredError("The proof's nonce is not, or no longer, valid here.")


def check_binding(proof: VerifiedProof, *, expected_jkt: str) -> None:
    """Check that the proof's key is the one the token names in `cnf.jkt` (RFC 9449 section 6.1).

    Until this passed, the proof shows only that somebody holds some key. Raises InvalidTokenError (`binding`): the
    proof is good, but the token is not this key's. `expected_jkt` comes from a verified token, so the key is kept and
    the agent's next proof is read faster. Keys of strangers, whose signatures hold too, never take its place.
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
    """Sign a proof for one request. `jti` must be new and hard to guess (≥ 96 random bits), `iat` is unix seconds.

    `url` is sent in its normal form, so query and fragment never leave in a header. Pass `access_token` at a service
    provider, `body` at the registry. Raises InvalidRequestError for a URL we would refuse.
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
    """The access token of the request's Authorization header lines: exactly one, `DPoP <token>`, scheme in any case.

    Raises InvalidTokenError when there is none or it is another scheme: a bound token under `Bearer` is a downgrade
    (RFC 9449 section 7.2). Raises InvalidRequestError for a second line, also when a server joined it on with a
    comma, and for a scheme without a token.
    """
    if not lines:
        raise InvalidTokenError("The request carries no access token.", reason="malformed")
    match = _AUTHORIZATION.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        raise InvalidRequestError("The Authorization header must be one line: DPoP and the token.")
    if match[1].lower() != "dpop":
        raise InvalidTokenError("The token is bound to a key and must be sent as DPoP.", reason="malformed")
    return match[2]


def single_header(lines: Sequence[str]) -> str:
    """The proof of the request's DPoP header lines: exactly one (RFC 9449 section 4.3, check 1).

    Two lines reach some frameworks joined by a comma; no proof holds one. Raises InvalidProofError (`malformed`).
    """
    if len(lines) != 1 or not lines[0] or "," in lines[0]:
        raise InvalidProofError("Exactly one DPoP header is needed.", reason="malformed")
    return lines[0]


def _prove_signature(compact: str) -> tuple[PublicKey, str, dict[str, object]]:
    try:
        # 1. and 2. The key is the attacker's to choose: this proves only who holds it, the caller proves who that is.
        segment, payload, signing_input, signature = split_compact(compact)
        key = _BOUND_KEYS.get(segment)
        if key is None:
            header = read_header(segment)
            # Every caller compares the key's thumbprint with a token's, an agent's or a manifest's.
            key = parse_jwk(header.get("jwk"), registered=True)
        else:
            # Its text passed these checks with this key.
            header = {"alg": key.alg, "typ": TYP}
        # 3.
        return key, segment, proved_claims(header, payload, signing_input, signature, key, expected_typ=TYP)
    except InvalidSignatureError:
        raise InvalidProofError("The proof's signature does not verify.", reason="signature") from None
    except PrivateMemberError as error:
        if error.derives is not None:
            raise LeakedKeyError(error.derives) from None
        raise InvalidProofError(error.description, reason="malformed") from None
    except AgentAuthError as error:
        raise InvalidProofError(error.description, reason="malformed") from None


def _text(claims: dict[str, object], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidProofError(f"The proof's {name} is missing or no text.", reason="malformed")
    return value


def _seconds(claims: dict[str, object], name: str) -> int:
    value = claims.get(name)
    # bool is an int to Python; fractions would make "the last second" depend on rounding.
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidProofError(f"The proof's {name} is missing or no whole number.", reason="malformed")
    return value


def _check_url(url: str, expected_url: str) -> None:
    expected = normalize_url(expected_url)
    try:
        same = normalize_url(url) == expected
    except InvalidRequestError as error:
        raise InvalidProofError(error.description, reason="url") from None
    if not same:
        raise InvalidProofError(f"The proof was made for another URL than {shown(expected)}.", reason="url")


def _check_time(claims: dict[str, object], iat: int, now: int) -> None:
    """`iat` within the window; `exp` and `nbf`, which RFC 9449 does not ask for, bind when present (RFC 7519 section 4.1).

    `nbf` gets the window's leeway, since a clock that may be 60 s ahead writes it as well. `exp` gets none: it is
    the maker's own wish that the proof ends.
    """
    if abs(now - iat) > WINDOW_SECONDS:
        raise InvalidProofError("The proof was made too long ago, or in the future.", reason="iat")
    if "exp" in claims and _seconds(claims, "exp") <= now:
        raise InvalidProofError("The proof has expired.", reason="iat")
    if "nbf" in claims and _seconds(claims, "nbf") > now + WINDOW_SECONDS:
        raise InvalidProofError("The proof is not valid yet.", reason="iat")


def _check_access_token(claims: dict[str, object], access_token: str | None) -> None:
    if access_token is None:
        # The native API takes no token; a proof that names one was made for a service provider.
        if "ath" in claims:
            raise InvalidProofError("The proof names an access token, but none is used here.", reason="ath")
        return
    digest = _kept_token_digest if len(access_token) <= _MAX_KEPT_TOKEN else _token_digest
    if not _equal(claims.get("ath"), digest(access_token)):
        raise InvalidProofError("The proof was made for another access token.", reason="ath")


def _check_body(claims: dict[str, object], body: bytes | None, *, required: bool) -> str | None:
    """At the registry the body is what is asked for, so the signature must cover it (section 2); elsewhere `bh` is a stranger's claim."""
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


# One token comes with many proofs.
_kept_token_digest = lru_cache(maxsize=_KEPT_TOKENS)(_token_digest)


def _equal(claimed: object, expected: str) -> bool:
    return isinstance(claimed, str) and claimed.isascii() and hmac.compare_digest(claimed, expected)
