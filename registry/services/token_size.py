"""Check how long the token of a grant will be, before the grant exists."""

from collections.abc import Sequence

from django.conf import settings

from agentauth.protocol.behavioural_envelope import EMPTY, Envelope
from agentauth.protocol.capability import Capability
from agentauth.protocol.token import build_claims, check_token_size
from registry.models import ServiceProvider

# The longest that real values can be: 256-bit thumbprints and subjects, UUIDs, ten-digit seconds.
_LONGEST = "x" * 43
_UUID = "00000000-0000-0000-0000-000000000000"
_LATEST = 9_999_999_999


def check_token_fits(
    service_provider: ServiceProvider, capabilities: Sequence[Capability], envelope: Envelope
) -> None:
    """Check that a token for these terms fits its limit, with every variable part at its longest.

    Checked when the grant is requested and approved, not when its token is issued
    (docs/protocol.md section 7). Raises GrantTooLargeError.
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
