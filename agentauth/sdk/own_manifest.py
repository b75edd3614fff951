"""The agent's own manifest: made for all it may ever ask for, and renewed. No I/O."""

import functools
import secrets
from collections.abc import Sequence
from typing import Final

from agentauth.protocol.agent_manifest import VerifiedManifest, sign_manifest, verify_manifest
from agentauth.protocol.capability import Capability
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import ManifestError
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.keys import Signer

LIFE_SECONDS: Final = 365 * 86_400
_JTI_BYTES: Final = 16


def new_manifest(
    signer: Signer,
    *,
    registry: str,
    name: str | None,
    description: str,
    model_origin: str,
    capabilities: Sequence[Capability],
    now: int,
) -> str:
    """Sign a manifest of exactly these capabilities. Raises ManifestError, InvalidRequestError."""
    if not capabilities:
        raise ManifestError("Name at least one capability: it is all this agent may ever ask for.")
    return sign_manifest(
        signer,
        audience=registry,
        issued_at=now,
        expires_at=now + LIFE_SECONDS,
        jti=secrets.token_urlsafe(_JTI_BYTES),
        # A default that people can tell apart.
        name=name or f"Agent {signer.public.thumbprint[:6]}",
        description=description,
        model_origin=model_origin,
        capabilities=capabilities,
    )


# Cached: every call reads it, and its signature needs one check.
@functools.lru_cache(maxsize=8)
def read_manifest(compact: str, *, registry: str) -> VerifiedManifest:
    """Read a stored manifest, even an expired one. Raises ManifestError."""
    # Verified as of its own time of issue; callers check `expires_at` where it matters.
    issued_at = read_object(parse_compact(compact).payload).get("iat")
    return verify_manifest(
        compact, expected_audience=registry, now=issued_at if isinstance(issued_at, int) else 0
    )


def next_manifest(
    manifest: VerifiedManifest,
    signer: Signer,
    *,
    registry: str,
    now: int,
    capabilities: Sequence[Capability] | None = None,
    description: str | None = None,
    model_origin: str | None = None,
) -> str:
    """Renew the manifest, signed by `signer`; None keeps a member. Raises ManifestError."""
    return new_manifest(
        signer,
        registry=registry,
        name=manifest.name,
        description=manifest.description if description is None else description,
        model_origin=model_origin or manifest.model_origin,
        capabilities=manifest.capabilities if capabilities is None else capabilities,
        # The registry accepts only a later `iat`.
        now=max(now, manifest.issued_at + 1),
    )


def is_due(manifest: VerifiedManifest, *, now: float) -> bool:
    """Is half its life over?

    Half, because no grant may outlive the manifest, and half a year exceeds the longest grant (90
    days).
    """
    return manifest.expires_at - now < (manifest.expires_at - manifest.issued_at) / 2


def check_within(
    manifest: VerifiedManifest, *, name: str | None, capabilities: Sequence[Capability]
) -> None:
    """Raises ManifestError for what the manifest does not cover: humans approved exactly this
    manifest.
    """
    if name is not None and name != manifest.name:
        raise ManifestError(
            f"The stored key belongs to the agent {manifest.name!r}. Use another key file or "
            f"another keyring account for {name!r}."
        )
    for capability in capabilities:
        if not narrows([capability], manifest.capabilities):
            raise ManifestError(
                f"The agent's manifest does not cover {capability.label}. Renew it with all"
                " capabilities that this agent may ask for from now on (renew_manifest, or"
                " `agentauth register --renew`), then ask again."
            )
