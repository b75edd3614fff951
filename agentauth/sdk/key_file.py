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
from agentauth.protocol.keys import PrivateKey

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
    """

    registry: str
    private_key: PrivateKey = field(repr=False)
    manifest: str | None = None
    agent_id: str | None = None
    next_key: PrivateKey | None = field(default=None, repr=False)
    next_manifest: str | None = None


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
    """One agent's identity on disk. Writes are atomic; no other user can ever read the file."""

    def __init__(self, path: Path) -> None:
        # Resolved, so that replacing the file keeps a symbolic link to it.
        self.path = path.expanduser().resolve()

    def load(self, registry: str) -> Identity | None:
        """The stored identity, or None if there is no file. Raises KeyFileError."""
        data = read_private(self.path)
        if data is None:
            return None
        identity = self._parse(data)
        if identity.registry != registry:
            raise KeyFileError(
                f"{self.path} belongs to the registry {identity.registry}. Use another "
                f"key_file for {registry}."
            )
        return identity

    def create(self, identity: Identity) -> Identity:
        """Store a new identity.

        If another process was first, returns its identity, and both use it. Raises KeyFileError.
        """
        if create_private(self.path, _text(identity)):
            return identity
        stored = self.load(identity.registry)
        if stored is None:
            raise KeyFileError(f"{self.path} vanished while it was read.")
        return stored

    def save(self, identity: Identity) -> None:
        """Replace the stored identity atomically. Raises KeyFileError."""
        replace_private(self.path, _text(identity))

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

    def _parse(self, data: bytes) -> Identity:
        try:
            body = read_object(data, max_bytes=MAX_BYTES)
            version = body["version"]
            identity = Identity(
                registry=str(body["registry"]),
                private_key=PrivateKey.from_pem(str(body["private_key"]).encode()),
                manifest=_text_or_none(body["manifest"]),
                agent_id=_text_or_none(body["agent_id"]),
                next_key=_key_or_none(body.get("next_private_key")),
                next_manifest=_text_or_none(body.get("next_manifest")),
            )
        except (AgentAuthError, KeyError, ValueError):
            # The file holds the key, so its content must not appear in the message.
            raise KeyFileError(f"{self.path} is not a key file of this library.") from None
        if version != VERSION:
            raise KeyFileError(f"{self.path} was written by another version of this library.")
        return identity


def _text(identity: Identity) -> str:
    body: dict[str, object] = {
        "version": VERSION,
        "registry": identity.registry,
        "private_key": identity.private_key.to_pem().decode("ascii"),
        "manifest": identity.manifest,
        "agent_id": identity.agent_id,
    }
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
