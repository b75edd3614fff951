"""The agent manifest: what an agent says about itself and may ever ask for, signed by its own key.

Whether the origin is trusted, and what a second manifest of the same key means, is for the registry
to decide.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .capability import Capability, parse_capabilities
from .errors import (
    EncodingError,
    InvalidKeyError,
    InvalidRequestError,
    InvalidSignatureError,
    ManifestError,
)
from .jose import parse_compact, sign_compact, verify_jws
from .json_fields import integer, members, text
from .keys import PrivateMemberError, PublicKey, Signer, parse_jwk
from .untrusted_text import check_description, check_display_name, check_host

__all__ = [
    "MANIFEST_TYP",
    "MAX_MANIFEST_SECONDS",
    "VerifiedManifest",
    "check_display_name",
    "sign_manifest",
    "verify_manifest",
]

MANIFEST_TYP: Final = "agent-manifest+jwt"
MAX_MANIFEST_SECONDS: Final = 366 * 86_400
# How far an agent's clock may run ahead of ours, as for proofs.
MAX_AHEAD_SECONDS: Final = 60
# Characters. The registry stores the id, so it needs a bound.
MAX_JTI: Final = 256


@dataclass(frozen=True, slots=True)
class VerifiedManifest:
    """A verified manifest. Only `verify_manifest` makes it.

    Times are in Unix seconds; `sha256` is the lower-case hex digest of the compact form as
    received.
    """

    compact: str
    key: PublicKey
    name: str
    description: str
    model_origin: str
    capabilities: tuple[Capability, ...]
    issued_at: int
    expires_at: int
    jti: str
    sha256: str

    @property
    def jkt(self) -> str:
        """The thumbprint of the agent's key (RFC 7638)."""
        return self.key.thumbprint

    def content(self) -> tuple[str, str, str, tuple[Capability, ...]]:
        """What must be equal for a second registration to find the same agent: not times, not
        `jti`.
        """
        return self.name, self.description, self.model_origin, self.capabilities


def sign_manifest(
    signer: Signer,
    *,
    audience: str,
    issued_at: int,
    expires_at: int,
    jti: str,
    name: str,
    description: str,
    model_origin: str,
    capabilities: Sequence[Capability],
) -> str:
    """Sign a manifest as a compact JWS (docs/protocol.md section 5); `audience` is the registry's
    issuer.

    Checks the claims as the registry will. Raises ManifestError.
    """
    claims: dict[str, object] = {
        "aud": audience,
        "iat": issued_at,
        "exp": expires_at,
        "jti": jti,
        "name": name,
        "description": description,
        "model_origin": model_origin,
        "capabilities": [capability.to_json() for capability in capabilities],
    }
    # Report mistakes here, before any registry knows the key.
    _read_claims(claims, expected_audience=audience, now=issued_at)
    return sign_compact(claims, signer, typ=MANIFEST_TYP, header={"jwk": signer.public.jwk})


def verify_manifest(compact: str, *, expected_audience: str, now: int) -> VerifiedManifest:
    """Verify a manifest (docs/protocol.md section 5); `now` is in Unix seconds.

    1. Read the compact form. 2. Take the key from the header: a manifest introduces its own key. 3.
    Signature and `typ`. 4. Claims.

    Raises ManifestError, and PrivateMemberError if the header leaks the private key: the caller
    must then bar that key for ever.
    """
    try:
        # 1. Nothing is verified yet.
        jws = parse_compact(compact)
        # 2. The manifest claims only possession of this key, so the message itself may name it.
        key = parse_jwk(jws.header.get("jwk"))
        # 3. `typ` excludes a proof or token of the same key.
        verified = verify_jws(jws, key, expected_typ=MANIFEST_TYP)
    except PrivateMemberError:
        raise
    except (EncodingError, InvalidKeyError, InvalidSignatureError) as error:
        raise ManifestError(f"The manifest is not valid: {error.description}") from None
    # 4.
    name, description, origin, capabilities, jti = _read_claims(
        verified.claims, expected_audience=expected_audience, now=now
    )
    return VerifiedManifest(
        compact=compact,
        key=key,
        name=name,
        description=description,
        model_origin=origin,
        capabilities=capabilities,
        issued_at=integer(verified.claims["iat"], "iat", minimum=0),
        expires_at=integer(verified.claims["exp"], "exp", minimum=0),
        jti=jti,
        sha256=hashlib.sha256(compact.encode("ascii")).hexdigest(),
    )


def _read_claims(
    claims: dict[str, object], *, expected_audience: str, now: int
) -> tuple[str, str, str, tuple[Capability, ...], str]:
    """Return name, description, origin, capabilities and jti.

    Raises ManifestError naming the claim.
    """
    required = ("aud", "iat", "exp", "jti", "name", "model_origin", "capabilities")
    try:
        # An unknown claim might be a restriction its author relies on.
        members(claims, "manifest", required=required, optional=("description",))
        _check_times(claims, now)
        # Otherwise a manifest made for another registry could be replayed here (RFC 7519 section
        # 4.1.3).
        if claims["aud"] != expected_audience:
            raise ManifestError("aud: the manifest is for another registry.")
        return (
            check_display_name(claims["name"]),
            check_description(claims.get("description", "")),
            check_host(claims["model_origin"]),
            parse_capabilities(claims["capabilities"]),
            text(claims["jti"], "jti", maximum=MAX_JTI),
        )
    except InvalidRequestError as error:
        raise ManifestError(error.description) from None


def _check_times(claims: dict[str, object], now: int) -> None:
    issued_at = integer(claims["iat"], "iat", minimum=0)
    expires_at = integer(claims["exp"], "exp", minimum=0)
    if issued_at > now + MAX_AHEAD_SECONDS:
        raise ManifestError("iat: must not be in the future.")
    # No leeway at the end: `exp` limits rights, and the registry's clock is authoritative.
    if expires_at <= now:
        raise ManifestError("exp: the manifest has expired.")
    # A longer life would outlast the attention of the people who approved it.
    if not 0 < expires_at - issued_at <= MAX_MANIFEST_SECONDS:
        raise ManifestError("exp: must be at most 366 days after iat.")
