"""How long the token of a grant will be, found out when the grant is asked for."""

from collections.abc import Sequence

from django.conf import settings

from agentauth.protocol.capability import Capability
from agentauth.protocol.envelope import EMPTY, Envelope
from agentauth.protocol.token import build_claims, check_token_size
from registry.models import ServiceProvider

# As long as the real ones can be: 256-bit thumbprints and subjects, UUIDs, ten-digit seconds.
_LONGEST = "x" * 43
_UUID = "00000000-0000-0000-0000-000000000000"
_LATEST = 9_999_999_999


def check_token_fits(
    service_provider: ServiceProvider, capabilities: Sequence[Capability], envelope: Envelope
) -> None:
    """A token for exactly this fits its limit, every variable part at its longest. Raises GrantTooLargeError.

    Found out when it is asked for, not when the first token is (docs/protocol.md section 3).
    """
    claims = build_claims(
        issuer=settings.ISSUER,
        audience=service_provider.audience,
        subject=_LONGEST,
        agent_id=_UUID,
        jti=_UUID,
        issued_at=_LATEST - 1,
        expires_at=_LATEST,
        jkt=_LONGEST,
        grant_id=_UUID,
        grant_version=_LATEST,
        capabilities=capabilities,
        has_envelope=envelope != EMPTY,
    )
    check_token_size(claims, alg="EdDSA", kid=_LONGEST)
