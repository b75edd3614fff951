"""The agent's own manifest: made once for what it may ever ask for, renewed with the same content. No I/O."""

import secrets
from collections.abc import Sequence
from typing import Final

from agentauth.protocol.capability import Capability, narrows
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import ManifestError
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.keys import Signer
from agentauth.protocol.manifest import VerifiedManifest, sign_manifest, verify_manifest

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
        # A name people can tell apart; who wants a better one passes it.
        name=name or f"Agent {signer.public.thumbprint[:6]}",
        description=description,
        model_origin=model_origin,
        capabilities=capabilities,
    )


def read_manifest(compact: str, *, registry: str) -> VerifiedManifest:
    """What a stored manifest says, also when it has expired. Raises ManifestError."""
    # Judged at its own time of issue: whether it still lives is another question, asked of `expires_at`.
    issued_at = read_object(parse_compact(compact).payload).get("iat")
    return verify_manifest(
        compact, expected_audience=registry, now=issued_at if isinstance(issued_at, int) else 0
    )


def renewed(manifest: VerifiedManifest, signer: Signer, *, registry: str, now: int) -> str:
    """The same manifest with a new life."""
    return new_manifest(
        signer,
        registry=registry,
        name=manifest.name,
        description=manifest.description,
        model_origin=manifest.model_origin,
        capabilities=manifest.capabilities,
        now=now,
    )


def check_within(manifest: VerifiedManifest, *, name: str | None, capabilities: Sequence[Capability]) -> None:
    """Refuse what the manifest does not cover. Raises ManifestError: a key has one manifest, and humans knew it."""
    if name is not None and name != manifest.name:
        raise ManifestError(
            f"This key file holds the agent {manifest.name!r}. Use another key_file for {name!r}."
        )
    for capability in capabilities:
        if not narrows([capability], manifest.capabilities):
            raise ManifestError(
                f"{capability.label} is beyond the manifest this agent registered with. Use another key_file for an"
                " agent that may ask for more."
            )
