"""Keep an agent's identity in the keyring of the user's system. Needs the extra `keyring`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

try:
    import keyring
    from keyring.errors import KeyringError
except ImportError as missing:
    raise ImportError(
        "agentauth.sdk.keyring_store needs the package keyring: "
        "pip install 'agentauth-sdk[keyring]'"
    ) from missing

from agentauth.protocol.keys import PrivateKey

from .errors import KeyFileError
from .identity import Identity, identity_text, parse_identity
from .key_file import config_directory
from .private_files import locked

SERVICE: Final = "agentauth"


class KeyringStore:
    """The identity of one agent in the system's keyring, under `agentauth` and `account`.

    `account` tells several agents of one user apart; by default it is the registry's address.
    """

    fixed_key: Final = None
    fixed_manifest: Final = None

    def __init__(self, account: str | None = None, *, lock_folder: Path | None = None) -> None:
        self._account = account
        # A keyring has no lock that processes could share.
        self._lock = (lock_folder or config_directory() / "agentauth") / "keyring"

    @property
    def name(self) -> str:
        """The keyring's name."""
        return f"the keyring {keyring.get_keyring().name}"

    def load(self, registry: str) -> Identity | None:
        """The stored identity, None before `create`. Raises KeyFileError."""
        try:
            text = keyring.get_password(SERVICE, self._account or registry)
        except KeyringError as error:
            raise _unusable(error) from None
        if text is None:
            return None
        return parse_identity(text.encode(), where=self.name, registry=registry)

    def make(self, registry: str) -> Identity:
        """A new identity, not stored."""
        return Identity(registry, PrivateKey.generate())

    def create(self, identity: Identity) -> Identity:
        """Store a new identity; if another process was first, return that one's."""
        with self._locked():
            stored = self.load(identity.registry)
            if stored is None:
                self._save(identity)
            return stored or identity

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` to the identity as stored now."""
        stored = self._load(registry)
        if change(stored) == stored:
            return stored
        with self._locked():
            changed = change(self._load(registry))
            self._save(changed)
        return changed

    def _load(self, registry: str) -> Identity:
        stored = self.load(registry)
        if stored is None:
            raise KeyFileError(f"The agent's entry in {self.name} vanished.")
        return stored

    def _save(self, identity: Identity) -> None:
        account, text = self._account or identity.registry, identity_text(identity)
        try:
            keyring.set_password(SERVICE, account, text)
            # Some backends store nothing and say so nowhere, such as keyring's own `null`.
            kept = keyring.get_password(SERVICE, account)
        except KeyringError as error:
            raise _unusable(error) from None
        if kept != text:
            raise KeyFileError(
                f"{self.name} did not store the agent's key. Choose another keyring (`keyring"
                " --list-backends` names them, PYTHON_KEYRING_BACKEND chooses one), or use a"
                " key_file."
            )

    def _locked(self) -> AbstractContextManager[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return locked(self._lock)


def _unusable(error: KeyringError) -> KeyFileError:
    return KeyFileError(
        f"The system's keyring cannot be used ({type(error).__name__}). Unlock it, or use a "
        "key_file."
    )
