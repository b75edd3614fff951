"""The rows behind a token whose signature was proved."""

import uuid

from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.token import TokenClaims
from audit.identifiers import id_text
from registry.services.state import TokenState, token_state
from verifier.stores import EarlyRefusal, StoreCall


def state_of(call: StoreCall | EarlyRefusal) -> TokenState | None:
    """The token's row and all it hangs on; None where our signature stands under something we have no record of."""
    claims = call.claims
    if claims is None:
        return None
    try:
        state = token_state(claims.jti)
    except InvalidTokenError:
        return None
    return state if is_of(state, claims, call.service_provider_id) else None


def is_of(state: TokenState, claims: TokenClaims, service_provider_id: uuid.UUID) -> bool:
    """Whether these are the rows of a token with these claims at this service provider.

    The signature already binds them. A mismatch would mean that rows were exchanged: then nothing is known.
    """
    return (
        id_text(state.grant.id) == claims.grant_id
        and state.token.grant_version == claims.grant_version
        and state.service_provider.id == service_provider_id
    )
