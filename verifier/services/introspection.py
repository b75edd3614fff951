"""Token introspection (RFC 7662), for the service provider that the token was issued for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.conf import settings

from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.token import INTROSPECTED_CLAIMS, TokenClaims, TokenKey, verify_token
from registry.models import ServiceProvider
from verifier.services.freshness import check_age
from verifier.verification import VerifierRuntime, check_key

INACTIVE: Final[Mapping[str, Any]] = {"active": False}


@dataclass(frozen=True, slots=True)
class _ReadToken:
    """A valid, unexpired token issued for the caller; `told` holds the claims to repeat."""

    claims: TokenClaims
    told: Mapping[str, Any]


async def introspect(
    runtime: VerifierRuntime,
    *,
    service_provider: ServiceProvider,
    untrusted_token: str,
    now: datetime,
) -> Mapping[str, Any]:
    """The answer of RFC 7662 section 2.2 for an authenticated service provider.

    1. Signature, issuer, audience, form and times of the token.
    2. Its row matches the signed claims.
    3. State of token, grant, agent, human and service provider.

    Every failure gives the same `{"active": false}`, so that a caller cannot tell a forged token
    from another provider's, an expired or an unknown one (RFC 7662 section 2.2). An active token is
    no permission: only verify judges proof, action and limits. This consumes nothing and is no
    decision.

    Raises TemporarilyUnavailableError if this host's clock is off, since it cannot tell what has
    expired.
    """
    began = await runtime.wait_for_fresh_state()
    keys = runtime.token_keys()
    token = _read_token(untrusted_token, keys=keys, service_provider=service_provider, now=now)  # 1
    known = None if token is None else await runtime.cached_token(token.claims.jti)
    check_age(began)
    if token is None or known is None:
        return INACTIVE
    check_key(runtime, keys, untrusted_token, service_provider.audience, now)
    if not known.is_of(token.claims, service_provider.pk) or known.refusal(now) is not None:  # 2, 3
        return INACTIVE
    return {"active": True, "token_type": "DPoP", **token.told}


def _read_token(
    untrusted_token: str,
    *,
    keys: Mapping[str, TokenKey],
    service_provider: ServiceProvider,
    now: datetime,
) -> _ReadToken | None:
    """Step 1; None if it fails."""
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
    return _ReadToken(
        claims, {name: token.claims[name] for name in INTROSPECTED_CLAIMS if name in token.claims}
    )
