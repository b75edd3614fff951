"""The agent access token: an RFC 9068 JWT bound to the agent's key. Make and verify it.

Revocation and the state of the grant are checked by the verifier.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .capability import Capability, parse_capabilities
from .errors import (
    AgentAuthError,
    EncodingError,
    GrantTooLargeError,
    InvalidSignatureError,
    InvalidTokenError,
)
from .identifiers import is_id
from .jose import UnverifiedJws, parse_compact, sign_input, signing_input, verify_jws
from .keys import PublicKey, Signer

TYP: Final = "at+jwt"
AUTHORIZATION_TYPE: Final = "agentauth"
MAX_TOKEN_SECONDS: Final = 900
# Key management services sign at most 4,096 bytes (AWS KMS, MessageType RAW).
MAX_SIGNING_INPUT: Final = 4_096
# How far (s) the clock of a host may be behind the issuer's.
CLOCK_TOLERANCE_SECONDS: Final = 10
MAX_JTI_LENGTH: Final = 256
# The claims that introspection repeats (docs/protocol.md section 8).
INTROSPECTED_CLAIMS: Final = (
    "scope",
    "client_id",
    "sub",
    "aud",
    "iss",
    "exp",
    "iat",
    "jti",
    "cnf",
    "authorization_details",
    "verify",
)
_JKT: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """A key that one process holds, and what a token key of the registry lets it sign
    (`certificate.py`). Times are in Unix seconds.
    """

    key: PublicKey
    not_before: int
    not_after: int
    max_token_seconds: int

    def may_sign(self, *, issued_at: int, expires_at: int, now: int) -> bool:
        """Is the certificate in force at `now`, and does it cover a token of these times?"""
        # Checked for each token (section 4). An attacker who reads this key in its process's memory
        # gets no token dated more than 10 s before the certificate, valid for longer than it
        # allows, or expiring after it.
        return (
            self.not_before - CLOCK_TOLERANCE_SECONDS <= min(issued_at, now)
            and expires_at <= self.not_after
            and now < self.not_after
            and expires_at - issued_at <= self.max_token_seconds
        )


# Keys that verify a token: one of the registry, or one that it certified. `verify_certificate`
# takes only a PublicKey, so a certified key cannot certify another.
TokenKey = PublicKey | CertifiedKey


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token that `verify_access_token` accepted: signed by the issuer for this audience, valid
    now, and bound to a key.

    Times are in Unix seconds. `claims` are as signed; `read_claims` reads our own. `key`, named
    `kid`, verified it.
    """

    jti: str
    subject: str
    client_id: str
    jkt: str
    issued_at: int
    expires_at: int
    claims: Mapping[str, object]
    kid: str
    key: TokenKey


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """The registry's own claims of a verified token (`read_claims`).

    `online` means that the grant has an envelope, so only verify can decide.
    """

    jti: str
    subject: str
    agent_id: str
    jkt: str
    grant_id: str
    grant_version: int
    issued_at: int
    expires_at: int
    scope: str
    capabilities: tuple[Capability, ...]
    online: bool


def build_claims(
    *,
    issuer: str,
    audience: str,
    subject: str,
    agent_id: str,
    jti: str,
    issued_at: int,
    expires_at: int,
    jkt: str,
    grant_id: str,
    grant_version: int,
    capabilities: Sequence[Capability],
    has_envelope: bool,
) -> dict[str, object]:
    """Build the claims of a token (section 7).

    Times are in Unix seconds; `expires_at` is already capped by grant and manifest. Raises
    ValueError unless the life is 1 to 900 seconds: that is the caller's mistake, never a request's.
    """
    if not 0 < expires_at - issued_at <= MAX_TOKEN_SECONDS:
        raise ValueError(f"a token must be valid for 1 to {MAX_TOKEN_SECONDS} seconds")
    details = {
        "type": AUTHORIZATION_TYPE,
        "capabilities": [each.to_json() for each in capabilities],
    }
    claims: dict[str, object] = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "client_id": agent_id,
        "jti": jti,
        "iat": issued_at,
        "nbf": issued_at - CLOCK_TOLERANCE_SECONDS,
        "exp": expires_at,
        "cnf": {"jkt": jkt},
        "grant_id": grant_id,
        "grant_version": grant_version,
        "authorization_details": [details],
        "scope": scope_of(capabilities),
    }
    if has_envelope:
        claims["verify"] = "online"
    return claims


def scope_of(capabilities: Sequence[Capability]) -> str:
    """`scope` for plain OAuth clients: space-separated `type:resource` of the capabilities without
    limits.

    A reader of `scope` sees neither constraints nor amounts: a limited capability in it would look
    unlimited.
    """
    return " ".join(each.label for each in capabilities if each.is_limitless)


def check_token_size(claims: Mapping[str, object], *, alg: str, kid: str) -> None:
    """Raises GrantTooLargeError if the token's signing input would exceed 4,096 bytes.

    Called when a grant is requested, so that a grant whose token cannot be signed fails before a
    person is asked, and again when it is approved.
    """
    _signing_input(claims, alg=alg, kid=kid)


def sign_token(claims: Mapping[str, object], signer: Signer) -> str:
    """Sign the claims as a compact `at+jwt`. Raises GrantTooLargeError, and the signer's errors."""
    return sign_input(_signing_input(claims, alg=signer.alg, kid=signer.kid), signer)


def _signing_input(claims: Mapping[str, object], *, alg: str, kid: str) -> bytes:
    message = signing_input(claims, typ=TYP, alg=alg, header={"kid": kid})
    if len(message) > MAX_SIGNING_INPUT:
        raise GrantTooLargeError("The capabilities do not fit into an access token; ask for fewer.")
    return message


def verify_token(
    compact: str,
    *,
    keys: Mapping[str, TokenKey],
    expected_issuer: str,
    expected_audience: str,
    now: int,
) -> tuple[VerifiedToken, TokenClaims]:
    """Verify a token, then read its claims; return both results. Raises InvalidTokenError."""
    token = verify_access_token(
        compact,
        keys=keys,
        expected_issuer=expected_issuer,
        expected_audience=expected_audience,
        now=now,
    )
    return token, read_claims(token)


def verify_access_token(
    compact: str,
    *,
    keys: Mapping[str, TokenKey],
    expected_issuer: str,
    expected_audience: str,
    now: int,
) -> VerifiedToken:
    """Verify the token's signature and registered claims (RFC 9068 section 4), and its `cnf`.

    `read_claims` then reads the registry's own claims. `keys` maps `kid` to the issuer's published
    token keys (`key_set.read_key_set`); `now` is in Unix seconds.

    1. Compact JWS of ours with a `kid` (`malformed`). 2. The key is known (`unknown`). 3. Signature
    (`unknown`). 4. `typ` and JSON claims (`malformed`). 5. Issuer and audience (`unknown`). 6.
    Every claim we rely on, in its type (`malformed`). 7. Life at most 900 s (`malformed`), and
    within the certificate of a certified key (`unknown`). 8. `exp` (`expired`), `nbf` and `iat`
    (`not_yet_valid`).

    A forged token, another issuer's and another service provider's all get `unknown`, before expiry
    is checked: a caller cannot learn whether a token that is not theirs exists. Raises
    InvalidTokenError with a reason of section 8.
    """
    # 1. to 4.
    kid, key, claims = _verify_signature(compact, keys)
    # 5. Without these checks, a service provider could use an agent's token at another one. One
    # audience only, as a text or alone in a list (RFC 7519 sections 4.1.1 and 4.1.3).
    if claims.get("iss") != expected_issuer or claims.get("aud") not in (
        expected_audience,
        [expected_audience],
    ):
        raise InvalidTokenError("The token is not known here.", reason="unknown")
    # 6.
    jti = _text(claims, "jti")
    if len(jti) > MAX_JTI_LENGTH:
        raise _malformed_error("jti")
    issued_at, expires_at = _seconds(claims, "iat"), _seconds(claims, "exp")
    not_before = _seconds(claims, "nbf") if "nbf" in claims else issued_at - CLOCK_TOLERANCE_SECONDS
    verified = VerifiedToken(
        jti,
        _text(claims, "sub"),
        _text(claims, "client_id"),
        _key_thumbprint(claims),
        issued_at,
        expires_at,
        claims,
        kid,
        key,
    )
    # 7. We never sign a longer life: such a token shows a fault or a stolen key.
    if expires_at - issued_at > MAX_TOKEN_SECONDS:
        raise InvalidTokenError("The token's lifetime is longer than allowed.", reason="malformed")
    if isinstance(key, CertifiedKey) and not key.may_sign(
        issued_at=issued_at, expires_at=expires_at, now=now
    ):
        # Outside its certificate the key has no authority, so the token counts as forged.
        raise InvalidTokenError("The token is not known here.", reason="unknown")
    # 8. `exp` has no leeway. A host whose clock is up to 10 s behind the issuer's accepts a new
    # token: `nbf` is 10 s before `iat`, and `iat` may be 10 s ahead.
    if expires_at <= now:
        raise InvalidTokenError("The token has expired.", reason="expired")
    if not_before > now or issued_at > now + CLOCK_TOLERANCE_SECONDS:
        raise InvalidTokenError("The token is not valid yet.", reason="not_yet_valid")
    return verified


def read_claims(token: VerifiedToken) -> TokenClaims:
    """Read the registry's own claims of a verified token. Raises InvalidTokenError (`malformed`).

    Ids must be ids and capabilities must parse: a signed token that fails here comes from another
    version or from a fault, and to guess its meaning could grant too much.
    """
    claims = token.claims
    grant_id = claims.get("grant_id")
    version = claims.get("grant_version")
    scope = claims.get("scope")
    if not is_id(token.client_id) or not isinstance(grant_id, str) or not is_id(grant_id):
        raise _malformed_error("client_id or grant_id")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _malformed_error("grant_version")
    if not isinstance(scope, str):
        raise _malformed_error("scope")
    # Only one value is defined. Another would be a condition we do not know, so it is refused.
    if claims.get("verify", "online") != "online":
        raise _malformed_error("verify")
    return TokenClaims(
        token.jti,
        token.subject,
        token.client_id,
        token.jkt,
        grant_id,
        version,
        token.issued_at,
        token.expires_at,
        scope,
        _capabilities(claims.get("authorization_details")),
        "verify" in claims,
    )


def _verify_signature(
    compact: str, keys: Mapping[str, TokenKey]
) -> tuple[str, TokenKey, dict[str, object]]:
    try:
        jws = parse_compact(compact)
    except EncodingError as error:
        raise InvalidTokenError(error.description, reason="malformed") from None
    kid = _key_id(jws)
    key = keys.get(kid)
    if key is None:
        raise InvalidTokenError("The token is not known here.", reason="unknown")
    try:
        # Report a wrong `typ` only under a valid signature; before that, every token is `unknown`.
        return kid, key, verify_jws(jws, public_key_of(key), expected_typ=TYP).claims
    except InvalidSignatureError:
        raise InvalidTokenError("The token is not known here.", reason="unknown") from None
    except EncodingError as error:
        raise InvalidTokenError(error.description, reason="malformed") from None


def public_key_of(key: TokenKey) -> PublicKey:
    """The key itself, to verify a signature. Does not say whether the key was allowed to sign."""
    return key.key if isinstance(key, CertifiedKey) else key


def _key_id(jws: UnverifiedJws) -> str:
    """Return the `kid` of the header. Raises InvalidTokenError (`malformed`).

    Use it only as a key of a fixed map: as a path, query or URL it would let an attacker inject a
    key (RFC 8725 section 3.10).
    """
    kid = jws.header.get("kid")
    if not isinstance(kid, str):
        raise InvalidTokenError(
            "The token's header must have a `kid` (a string).", reason="malformed"
        )
    return kid


def _text(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise _malformed_error(name)
    return value


def _seconds(claims: Mapping[str, object], name: str) -> int:
    value = claims.get(name)
    # In Python a bool is an int.
    if not isinstance(value, int) or isinstance(value, bool):
        raise _malformed_error(name)
    return value


def _key_thumbprint(claims: Mapping[str, object]) -> str:
    """Return the thumbprint in `cnf`. Raises InvalidTokenError (`malformed`).

    `cnf` must be exactly `{"jkt": …}`: a second confirmation method would be one that we do not
    check.
    """
    cnf = claims.get("cnf")
    if not isinstance(cnf, dict) or cnf.keys() != {"jkt"}:
        raise _malformed_error("cnf")
    jkt = cnf["jkt"]
    if not isinstance(jkt, str) or not _JKT.fullmatch(jkt):
        raise _malformed_error("cnf")
    return jkt


def _capabilities(details: object) -> tuple[Capability, ...]:
    """Return the capabilities in `authorization_details`. Raises InvalidTokenError (`malformed`).

    It must have one entry, of our type: an entry of another type would grant something we cannot
    read.
    """
    if not isinstance(details, list) or len(details) != 1 or not isinstance(details[0], dict):
        raise _malformed_error("authorization_details")
    entry = details[0]
    if entry.keys() != {"type", "capabilities"} or entry["type"] != AUTHORIZATION_TYPE:
        raise _malformed_error("authorization_details")
    try:
        return parse_capabilities(entry["capabilities"])
    except AgentAuthError:
        raise _malformed_error("authorization_details") from None


def _malformed_error(name: str) -> InvalidTokenError:
    return InvalidTokenError(f"The token's {name} is missing or malformed.", reason="malformed")
