"""The rows behind a token whose signature was proved."""

from agentauth.protocol.errors import InvalidTokenError
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
    # The signature already binds these. A mismatch would mean that rows were exchanged: then nothing is known.
    same = (
        str(state.grant.pk) == claims.grant_id
        and state.token.grant_version == claims.grant_version
        and state.service_provider.pk == call.service_provider_id
    )
    return state if same else None
