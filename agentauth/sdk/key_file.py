"""The key file: an agent's private key, its manifest and its id, readable by its owner alone."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from agentauth.protocol.keys import PrivateKey, Signer

from .errors import KeyFileError
from .identity import Identity, identity_text, parse_identity
from .private_files import create_private, locked, read_private, replace_private


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

    why_manifest_is_fixed: Final = None

    def __init__(self, path: Path, signer: Signer | None = None) -> None:
        # Resolved, so that replacing the file keeps a symbolic link to it.
        self.path = path.expanduser().resolve()
        self._signer = signer

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def why_key_is_fixed(self) -> str | None:
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
        """Return a new identity without storing it."""
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

        Under a lock, where `change` runs again: if two processes change the file at once, neither
        loses the other's next key.
        """
        stored = self._load_existing(registry)
        # A read-only file works as long as nothing changes.
        if change(stored) == stored:
            return stored
        with locked(self.path):
            changed = change(self._load_existing(registry))
            self.save(changed)
        return changed

    def _load_existing(self, registry: str) -> Identity:
        stored = self.load(registry)
        if stored is None:
            raise KeyFileError(f"{self.path} vanished. Restore it, or register the agent again.")
        return stored
