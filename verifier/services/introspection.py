"""What a token says and whether it is good right now (RFC 7662), for the service provider it was issued for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.conf import settings

from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.token import TokenClaims, TokenKey, verify_token
from kms.certificates import token_keys
from registry.models import ServiceProvider
from registry.services.state import TokenState, token_state
from verifier.services.clocks import CLOCK
from verifier.stores.state import is_of

# What of the token's claims the answer repeats (docs/protocol.md section 8).
_CLAIMS = (
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
INACTIVE: Final[Mapping[str, Any]] = {"active": False}


@dataclass(frozen=True, slots=True)
class ReadToken:
    """A token that is ours, the caller's and in its time; `told` is what an answer repeats of it."""

    claims: TokenClaims
    told: Mapping[str, Any]


def introspect(
    *, service_provider: ServiceProvider, untrusted_token: str, now: datetime
) -> Mapping[str, Any]:
    """The answer of RFC 7662 section 2.2 for an authenticated service provider.

    1. Signature, issuer, audience, form and times of the token. 2. Its row is the one that was signed. 3. State of
    token, grant, agent, human and service provider.

    Whatever fails, the answer is the same `{"active": false}`: a forged token, another's, one that ended and one
    that never was are not told apart (section 2.2 there). Active is no permission: proof, action and limits are
    judged by verify alone, and this consumes nothing and is no decision.

    Raises TemporarilyUnavailableError where this host's clock is off: it cannot tell what is over.
    """
    CLOCK.check()
    keys = token_keys(now=now)
    token = read_token(untrusted_token, keys=keys, service_provider=service_provider, now=now)  # 1
    if token is None:
        return INACTIVE
    try:
        state = token_state(token.claims.jti)
    except InvalidTokenError:
        return INACTIVE
    return answer_for(token, state, service_provider=service_provider, now=now)


def read_token(
    untrusted_token: str, *, keys: Mapping[str, TokenKey], service_provider: ServiceProvider, now: datetime
) -> ReadToken | None:
    """Step 1; None where it fails."""
    try:
        token, claims = verify_token(
            untrusted_token,
            keys=keys,
            expected_issuer=settings.ISSUER,
            expected_audience=service_provider.audience,
            now=int(now.timestamp()),
        )
    except InvalidTokenError:
        return None
    return ReadToken(claims, {name: token.claims[name] for name in _CLAIMS if name in token.claims})


def answer_for(
    token: ReadToken, state: TokenState, *, service_provider: ServiceProvider, now: datetime
) -> Mapping[str, Any]:
    """Steps 2 and 3, and the answer."""
    if not is_of(state, token.claims, service_provider.pk) or state.refusal(now) is not None:
        return INACTIVE
    return {"active": True, "token_type": "DPoP", **token.told}
