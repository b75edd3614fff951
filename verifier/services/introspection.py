"""What a token says and whether it is good right now (RFC 7662), for the service provider it was issued for."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.conf import settings

from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.token import read_claims, verify_access_token
from kms.services import verification_keys
from registry.models import ServiceProvider
from registry.services.state import token_state

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


def introspect(
    *, service_provider: ServiceProvider, untrusted_token: str, now: datetime
) -> Mapping[str, Any]:
    """The answer of RFC 7662 section 2.2 for an authenticated service provider.

    1. Signature, issuer, audience, form and times of the token. 2. Its row is the one that was signed. 3. State of
    token, grant, agent, human and service provider.

    Whatever fails, the answer is the same `{"active": false}`: a forged token, another's, one that ended and one
    that never was are not told apart (section 2.2 there). Active is no permission: proof, action and limits are
    judged by verify alone, and this consumes nothing and is no decision.
    """
    try:
        token = verify_access_token(  # 1
            untrusted_token,
            keys=verification_keys(purpose="token", now=now),
            expected_issuer=settings.ISSUER,
            expected_audience=service_provider.audience,
            now=int(now.timestamp()),
        )
        claims = read_claims(token)
        state = token_state(claims.jti)
    except InvalidTokenError:
        return {"active": False}
    same = (  # 2
        str(state.grant.pk) == claims.grant_id
        and state.token.grant_version == claims.grant_version
        and state.service_provider.pk == service_provider.pk
    )
    if not same or state.refusal(now) is not None:  # 3
        return {"active": False}
    told = {name: token.claims[name] for name in _CLAIMS if name in token.claims}
    return {"active": True, "token_type": "DPoP", **told}
