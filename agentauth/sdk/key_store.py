"""Where an agent's identity is kept: one small interface, and the stores that are not files.

| store | key | what it guarantees |
|---|---|---|
| `KeyFile` | in a file of mode 0600 | written atomically; processes of one host share it under a lock; a crash while the key is rotated loses neither key |
| `KeyringStore` | in the keyring of the user's system | as the file, if the keyring replaces an entry atomically; the lock is a file beside the default key file |
| `EnvironmentStore` | in `AGENTAUTH_KEY` | never written: no rotation, and no change of the manifest; what the registry answers is kept in memory |
| `KeyFile` with a `signer` | in a key management service | the private key never enters this process; the file has the manifest and the agent's id, as above; no rotation |
"""  # noqa: E501 — a table

import os
import threading
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import PrivateKey

from .errors import KeyFileError
from .identity import Identity

KEY_VARIABLE: Final = "AGENTAUTH_KEY"
MANIFEST_VARIABLE: Final = "AGENTAUTH_MANIFEST"
AGENT_ID_VARIABLE: Final = "AGENTAUTH_AGENT_ID"


class KeyStore(Protocol):
    """Keeps the identity of one agent at one registry. Methods raise KeyFileError."""

    @property
    def name(self) -> str:
        """The store, for people: a path, for example. Never a secret."""

    @property
    def fixed_key(self) -> str | None:
        """None if the key can be rotated, else the sentence that says why not."""

    @property
    def fixed_manifest(self) -> str | None:
        """None if a changed manifest can be kept, else the sentence that says why not."""

    def load(self, registry: str) -> Identity | None:
        """The stored identity, None before `create`."""

    def make(self, registry: str) -> Identity:
        """A new identity, not stored."""

    def create(self, identity: Identity) -> Identity:
        """Store a new identity; if another process was first, return that one's."""

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` to the identity as stored now, and return the result.

        Atomic: a crash leaves the old identity or the new one. If two processes change it at once,
        neither change is lost.
        """


class EnvironmentStore:
    r"""The identity that environment variables give. Read once; changes stay in memory.

    `AGENTAUTH_KEY` is the private key, PKCS #8 in PEM; line feeds may be written as `\n`.
    `AGENTAUTH_MANIFEST` (the compact JWS) and `AGENTAUTH_AGENT_ID` are optional: without them the
    agent registers with the capabilities that it asks for first, and the registry finds it again
    if these are the same as before.
    """

    fixed_key: Final = (
        f"The key comes from {KEY_VARIABLE}, which this process cannot change. To rotate it, use a "
        "key file or the keyring, or register a new agent with another key."
    )
    fixed_manifest: Final = (
        f"The identity comes from {KEY_VARIABLE}, so a changed manifest would be lost with this "
        "process. Use a key file or the keyring to change it."
    )

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables
        self._lock = threading.Lock()
        self._identity: Identity | None = None

    @property
    def name(self) -> str:
        """The variable."""
        return f"${KEY_VARIABLE}"

    def load(self, registry: str) -> Identity:
        """The identity. Raises KeyFileError if the variable is missing or is not a key."""
        with self._lock:
            if self._identity is None:
                self._identity = self.make(registry)
            if self._identity.registry != registry:
                raise KeyFileError("One EnvironmentStore is for one registry: make another.")
            return self._identity

    def make(self, registry: str) -> Identity:
        """The identity as the variables say."""
        pem = self._variables.get(KEY_VARIABLE, "")
        if not pem:
            raise KeyFileError(f"{KEY_VARIABLE} is not set. Set it to the private key, in PEM.")
        try:
            key = PrivateKey.from_pem(pem.replace("\\n", "\n").encode())
        except (InvalidKeyError, UnicodeError):
            # Without the cause, which could quote the key.
            raise KeyFileError(
                f"{KEY_VARIABLE} must be a private key in PEM (PKCS #8), Ed25519 or P-256."
            ) from None
        return Identity(
            registry,
            key,
            manifest=self._variables.get(MANIFEST_VARIABLE) or None,
            agent_id=self._variables.get(AGENT_ID_VARIABLE) or None,
        )

    def create(self, identity: Identity) -> Identity:
        """The identity that the variables give."""
        return self.load(identity.registry)

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` in memory."""
        stored = self.load(registry)
        with self._lock:
            self._identity = changed = change(self._identity or stored)
        return changed
