"""An agent's identity at one registry: its key, manifest and id, and their JSON form."""

import json
from dataclasses import dataclass, field
from typing import Final

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import LocalSigner, PrivateKey, Signer

from .errors import KeyFileError
from .private_files import MAX_BYTES

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent's identity.

    `manifest` is the compact JWS it registers with; None until capabilities are known.

    `agent_id` is None until the registry has answered. The manifest is stored before that: after a
    crash or a lost response, registering again finds the same agent. `next_key` and `next_manifest`
    are stored before the registry is asked to accept them, and replace the current ones afterwards.
    `private_key` is None if the key is in a key management service; then `kms_signer` signs.
    """

    registry: str
    private_key: PrivateKey | None = field(repr=False)
    manifest: str | None = None
    agent_id: str | None = None
    next_key: PrivateKey | None = field(default=None, repr=False)
    next_manifest: str | None = None
    kms_signer: Signer | None = field(default=None, repr=False)

    @property
    def signer(self) -> Signer:
        """Signs with the current key."""
        if self.kms_signer is not None:
            return self.kms_signer
        assert self.private_key is not None
        return LocalSigner(self.private_key)


def parse_identity(
    data: bytes, *, where: str, registry: str, signer: Signer | None = None
) -> Identity:
    """Read what `identity_text` wrote.

    Raises KeyFileError, naming `where`, if the data is not an identity, has another version, or
    belongs to another registry or key.
    """
    try:
        body = read_object(data, max_bytes=MAX_BYTES)
        # First: another version may have other members.
        if body["version"] != VERSION:
            raise KeyFileError(  # noqa: TRY301 — the handlers below keep its message
                f"{where} was written by another version of this library. Use that version, or "
                "another key file."
            )
        pem, kid = _text_or_none(body["private_key"]), _text_or_none(body.get("kms_key"))
        if pem is None and kid is None:
            raise KeyError("private_key")  # noqa: TRY301 — as if it were missing
        identity = Identity(
            registry=str(body["registry"]),
            private_key=None if pem is None else PrivateKey.from_pem(pem.encode()),
            manifest=_text_or_none(body["manifest"]),
            agent_id=_text_or_none(body["agent_id"]),
            next_key=_key_or_none(body.get("next_private_key")),
            next_manifest=_text_or_none(body.get("next_manifest")),
            kms_signer=None if kid is None else signer,
        )
    except KeyFileError:
        raise
    except (AgentAuthError, KeyError, ValueError):
        # `from None`: the original error may quote the data, which contains the private key.
        raise KeyFileError(f"{where} does not hold an agent's identity.") from None
    if kid is not None and signer is None:
        raise KeyFileError(
            f"{where} has no private key: the agent's key is in a key management service. Open it "
            "with KeyFile(path, signer=…)."
        )
    if kid != (None if signer is None else signer.kid):
        raise KeyFileError(
            f"{where} belongs to an agent with another key. Use another key file for this key."
        )
    if identity.registry != registry:
        raise KeyFileError(
            f"{where} belongs to the registry {identity.registry}. Use another key file or another "
            f"keyring account for {registry}."
        )
    return identity


def identity_text(identity: Identity) -> str:
    """The identity as JSON. It contains the private key, unless a `kms_signer` signs."""
    key = identity.private_key
    body: dict[str, object] = {
        "version": VERSION,
        "registry": identity.registry,
        "private_key": None if key is None else key.to_pem().decode("ascii"),
        "manifest": identity.manifest,
        "agent_id": identity.agent_id,
    }
    if identity.kms_signer is not None:
        body["kms_key"] = identity.kms_signer.kid
    if identity.next_key is not None:
        body["next_private_key"] = identity.next_key.to_pem().decode("ascii")
    if identity.next_manifest is not None:
        body["next_manifest"] = identity.next_manifest
    return json.dumps(body, indent=2)


def _text_or_none(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError
    return value


def _key_or_none(value: object) -> PrivateKey | None:
    text = _text_or_none(value)
    return None if text is None else PrivateKey.from_pem(text.encode())
