"""The key file: an agent's private key, its manifest and its id, readable by its owner alone."""

import json
import os
import secrets
import stat
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

VERSION: Final = 1
_MAX_BYTES: Final = 1_048_576
_POSIX: Final = os.name == "posix"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the agent is. `manifest` is the compact JWS it registers with; None until capabilities are known.

    `agent_id` is None until the registry has answered: the manifest is stored first, so that a crash or a lost
    answer between the two leads back to the same agent.
    """

    registry: str
    private_key: PrivateKey = field(repr=False)
    manifest: str | None = None
    agent_id: str | None = None


def config_directory() -> Path:
    """Where programs of this user keep their settings, by the custom of the platform."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a relative path is invalid and is to be ignored.
    return Path(configured) if Path(configured).is_absolute() else home / ".config"


def default_path(registry_url: str) -> Path:
    """One file for each registry, e.g. `~/.config/agentauth/localhost-8000.json`."""
    parts = urlsplit(registry_url)
    port = f"-{parts.port}" if parts.port else ""
    return config_directory() / "agentauth" / f"{(parts.hostname or '').replace(':', '_')}{port}.json"


class KeyFile:
    """One agent's identity on disk. Every write is whole or not at all; none is readable by others, ever."""

    def __init__(self, path: Path) -> None:
        # Resolved, so that replacing the file keeps a link that leads to it.
        self.path = path.expanduser().resolve()

    def load(self, registry: str) -> Identity | None:
        """The stored identity, or None where there is no file. Raises KeyFileError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read: {error.strerror}.") from None
        with os.fdopen(descriptor, "rb") as file:
            # Asked of the open file, not of the name: nobody can swap it in between.
            self._check_owner(os.fstat(file.fileno()))
            identity = self._parse(file.read(_MAX_BYTES + 1))
        if identity.registry != registry:
            raise KeyFileError(
                f"{self.path} belongs to the registry {identity.registry}. Use another key_file for {registry}."
            )
        return identity

    def create(self, identity: Identity) -> Identity:
        """Store a new identity; if another process was first, its identity is the answer. Raises KeyFileError."""
        temporary = self._write_beside(identity)
        try:
            # A hard link fails where the name exists: of two processes with two new keys, one wins and both use it.
            os.link(temporary, self.path)
        except FileExistsError:
            stored = self.load(identity.registry)
            if stored is None:
                raise KeyFileError(f"{self.path} vanished while it was read.") from None
            return stored
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}.") from None
        finally:
            temporary.unlink(missing_ok=True)
        self._sync_directory()
        return identity

    def save(self, identity: Identity) -> None:
        """Replace the stored identity in one step: a crash leaves the old file or the new one. Raises KeyFileError."""
        temporary = self._write_beside(identity)
        try:
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}.") from None
        self._sync_directory()

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` to what is stored now, not to what was read a while ago. Raises KeyFileError."""
        stored = self.load(registry)
        if stored is None:
            raise KeyFileError(f"{self.path} vanished.")
        changed = change(stored)
        if changed != stored:
            self.save(changed)
        return changed

    def _check_owner(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{self.path} is not a file.")
        if _POSIX and status.st_mode & 0o077:
            raise KeyFileError(
                f"{self.path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}), so its key may be known."
                f" Make a new key, or if you are sure it was not read: chmod 600 '{self.path}'"
            )
        if _POSIX and status.st_uid != os.geteuid():
            raise KeyFileError(f"{self.path} belongs to another user.")

    def _parse(self, data: bytes) -> Identity:
        try:
            body = read_object(data, max_bytes=_MAX_BYTES)
            version = body["version"]
            identity = Identity(
                registry=str(body["registry"]),
                private_key=PrivateKey.from_pem(str(body["private_key"]).encode()),
                manifest=_text_or_none(body["manifest"]),
                agent_id=_text_or_none(body["agent_id"]),
            )
        except (AgentAuthError, KeyError, ValueError):
            # Nothing of the content goes into the message: it holds the key.
            raise KeyFileError(f"{self.path} is not a key file of this library.") from None
        if version != VERSION:
            raise KeyFileError(f"{self.path} was written by another version of this library.")
        return identity

    def _write_beside(self, identity: Identity) -> Path:
        body = {
            "version": VERSION,
            "registry": identity.registry,
            "private_key": identity.private_key.to_pem().decode("ascii"),
            "manifest": identity.manifest,
            "agent_id": identity.agent_id,
        }
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # 0600 from the first byte on: chmod afterwards would leave a moment in which others can open it.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(body, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}.") from None
        return temporary

    def _sync_directory(self) -> None:
        if not _POSIX:
            return
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _text_or_none(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError
    return value
