"""The key file: an agent's private key, its manifest and its id, readable by its owner alone."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import LocalSigner, PrivateKey, Signer

from .errors import KeyFileError
from .private_files import MAX_BYTES, create_private, locked, read_private, replace_private

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent's identity.

    `manifest` is the compact JWS it registers with; None until capabilities are known.

    `agent_id` is None until the registry has answered: the manifest is stored first, so that a
    crash or a lost answer in between leads back to the same agent. `next_key` and `next_manifest`
    are stored before the registry is asked to accept them, and replace the present ones afterwards.
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
        """Signs with the present key."""
        if self.kms_signer is not None:
            return self.kms_signer
        assert self.private_key is not None
        return LocalSigner(self.private_key)


def config_directory() -> Path:
    """The user's configuration directory, by the convention of the platform."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification says to ignore a relative path.
    return Path(configured) if Path(configured).is_absolute() else home / ".config"


def default_path(registry_url: str) -> Path:
    """One file for each registry, e.g. `~/.config/agentauth/localhost-8000.json`."""
    parts = urlsplit(registry_url)
    port = f"-{parts.port}" if parts.port else ""
    return (
        config_directory() / "agentauth" / f"{(parts.hostname or '').replace(':', '_')}{port}.json"
    )


class KeyFile:
    """One agent's identity on disk. Writes are atomic; no other user can ever read the file.

    With a `signer`, whose key is elsewhere, the file has no key, only its thumbprint.
    """

    fixed_manifest: Final = None

    def __init__(self, path: Path, signer: Signer | None = None) -> None:
        # Resolved, so that replacing the file keeps a symbolic link to it.
        self.path = path.expanduser().resolve()
        self._signer = signer

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def fixed_key(self) -> str | None:
        """Why the key cannot be rotated: it is not ours to make."""
        if self._signer is None:
            return None
        return (
            "This agent's key is in a key management service, so the SDK cannot make the next one. "
            "Register a new agent with a new key there."
        )

    def load(self, registry: str) -> Identity | None:
        """The stored identity, or None if there is no file. Raises KeyFileError."""
        data = read_private(self.path)
        if data is None:
            return None
        return parse_identity(data, where=self.name, registry=registry, signer=self._signer)

    def make(self, registry: str) -> Identity:
        """A new identity, not stored."""
        if self._signer is not None:
            return Identity(registry, None, kms_signer=self._signer)
        return Identity(registry, PrivateKey.generate())

    def create(self, identity: Identity) -> Identity:
        """Store a new identity.

        If another process was first, returns its identity, and both use it. Raises KeyFileError.
        """
        if create_private(self.path, identity_text(identity)):
            return identity
        stored = self.load(identity.registry)
        if stored is None:
            raise KeyFileError(f"{self.path} vanished while it was read.")
        return stored

    def save(self, identity: Identity) -> None:
        """Replace the stored identity atomically. Raises KeyFileError."""
        replace_private(self.path, identity_text(identity))

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` to the identity stored now, not to one read earlier. Raises KeyFileError.

        Under a lock: if two processes change the file at once, neither loses the other's next key.
        """
        stored = self._load(registry)
        # A read-only file works as long as nothing changes.
        if change(stored) == stored:
            return stored
        with locked(self.path):
            changed = change(self._load(registry))
            self.save(changed)
        return changed

    def _load(self, registry: str) -> Identity:
        stored = self.load(registry)
        if stored is None:
            raise KeyFileError(f"{self.path} vanished.")
        return stored


def parse_identity(
    data: bytes, *, where: str, registry: str, signer: Signer | None = None
) -> Identity:
    """Read what `identity_text` wrote. Raises KeyFileError, which names `where`."""
    try:
        body = read_object(data, max_bytes=MAX_BYTES)
        version = body["version"]
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
    except (AgentAuthError, KeyError, ValueError):
        # The text holds the key, so it must not appear in the message.
        raise KeyFileError(f"{where} is not a key file of this library.") from None
    if version != VERSION:
        raise KeyFileError(f"{where} was written by another version of this library.")
    if kid != (None if signer is None else signer.kid):
        raise KeyFileError(
            f"{where} belongs to an agent with another key. Use another key_file for this one."
        )
    if identity.registry != registry:
        raise KeyFileError(
            f"{where} belongs to the registry {identity.registry}. Use another key_file for "
            f"{registry}."
        )
    return identity


def identity_text(identity: Identity) -> str:
    """The identity as JSON. It holds the private key."""
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
