"""Keep an agent's identity in the keyring of the user's system. Needs the extra `keyring`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

try:
    import keyring
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

    # None: both can be changed.
    why_key_is_fixed: Final = None
    why_manifest_is_fixed: Final = None

    def __init__(self, account: str | None = None, *, lock_folder: Path | None = None) -> None:
        """`lock_folder` is where processes lock; by default the folder of the default key file."""
        self._account = account
        # A keyring has no lock that processes could share.
        self._lock_path = (lock_folder or config_directory() / "agentauth") / "keyring"

    @property
    def name(self) -> str:
        """The keyring's name. Raises KeyFileError."""
        with _keyring_errors():
            return f"the keyring {keyring.get_keyring().name}"

    def load(self, registry: str) -> Identity | None:
        """The stored identity, None before `create`. Raises KeyFileError, as all methods."""
        account = self._account or registry
        with _keyring_errors():
            text = keyring.get_password(SERVICE, account)
        if text is None:
            return None
        where = f"The entry {account} in {self.name}"
        return parse_identity(text.encode(), where=where, registry=registry)

    def make(self, registry: str) -> Identity:
        """A new identity, not stored."""
        return Identity(registry, PrivateKey.generate())

    def create(self, identity: Identity) -> Identity:
        """Store a new identity; if another process was first, return that one's."""
        with locked(self._lock_path):
            stored = self.load(identity.registry)
            if stored is None:
                self._save(identity)
            return stored or identity

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` to the identity stored now: without the lock, then again under it.

        If `change` changes nothing, no lock is taken and nothing is written.
        """
        stored = self._load_existing(registry)
        if change(stored) == stored:
            return stored
        with locked(self._lock_path):
            changed = change(self._load_existing(registry))
            self._save(changed)
        return changed

    def _load_existing(self, registry: str) -> Identity:
        stored = self.load(registry)
        if stored is None:
            raise KeyFileError(
                f"The agent's entry in {self.name} vanished. Restore it, or register the agent "
                "again."
            )
        return stored

    def _save(self, identity: Identity) -> None:
        account, text = self._account or identity.registry, identity_text(identity)
        with _keyring_errors(f" to store {len(text):,} characters"):
            keyring.set_password(SERVICE, account, text)
            # Some backends store nothing and say so nowhere, such as keyring's own `null`.
            kept = keyring.get_password(SERVICE, account)
        if kept != text:
            raise KeyFileError(
                f"The agent's key was not stored in {self.name}. Choose another keyring (`keyring"
                " --list-backends` names them, PYTHON_KEYRING_BACKEND chooses one), or use a"
                " key_file."
            )


@contextmanager
def _keyring_errors(task: str = "") -> Iterator[None]:
    """Raise KeyFileError for whatever the keyring raises."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 — backends raise errors of their platform too
        # `from None`: the cause could quote the key in a traceback.
        raise KeyFileError(
            f"The system's keyring cannot be used{task} ({type(error).__name__}). Unlock it, or "
            "use a key_file."
        ) from None
