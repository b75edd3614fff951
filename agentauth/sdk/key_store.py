"""Where an agent keeps its identity: the interface `KeyStore` and `EnvironmentStore`.

All stores:

| store | key | what it guarantees |
|---|---|---|
| `key_file.KeyFile` | in a file of mode 0600 | written atomically; processes of one host share it under a lock; a crash while the key is rotated loses neither key |
| `keyring_store.KeyringStore` | in the keyring of the user's system | as `KeyFile`, if the keyring replaces an entry atomically; the lock is a file in the default key file's folder. On Windows an entry has at most 1,280 characters, too few for an identity while its manifest is renewed |
| `EnvironmentStore` | in `AGENTAUTH_KEY` | never written: the key cannot be rotated and changes of the manifest are refused; its renewals and the agent's id are kept in memory |
| `KeyFile` with a `signer`, such as `kms_signer.KmsSigner` | in a key management service | the private key never enters this process; the file has the manifest and the agent's id; the key cannot be rotated |
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
        """What error messages call this store, such as a path. It must not contain a secret."""

    @property
    def why_key_is_fixed(self) -> str | None:
        """None if the key can be rotated, else the error message that says why not."""

    @property
    def why_manifest_is_fixed(self) -> str | None:
        """None if a changed manifest can be stored, else the error message that says why not."""

    def load(self, registry: str) -> Identity | None:
        """The stored identity, None before `create`."""

    def make(self, registry: str) -> Identity:
        """Return a new identity without storing it."""

    def create(self, identity: Identity) -> Identity:
        """Store a new identity and return it. If another process was first, return its identity."""

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` to the identity as stored now, and return the result.

        `change` may run twice and must have no side effects. Atomic: a crash leaves the old
        identity or the new one. If two processes change it at once, neither change is lost.
        """


class EnvironmentStore:
    r"""An identity from environment variables. They are read once; changes stay in memory.

    `AGENTAUTH_KEY` is the private key, PKCS #8 in PEM; newlines may be written as `\n`.
    `AGENTAUTH_MANIFEST` (the compact JWS) and `AGENTAUTH_AGENT_ID` are optional: without them the
    agent registers with the first capabilities that it requests. After a restart, it must register
    with the same name, description, model origin and capabilities, in the same order: otherwise the
    registry answers 409 `manifest_conflict`. Set `AGENTAUTH_MANIFEST` to avoid this.
    """

    why_key_is_fixed: Final = (
        f"The key comes from {KEY_VARIABLE}, which this process cannot change. To rotate it, use a "
        "key file or the keyring, or register a new agent with another key."
    )
    why_manifest_is_fixed: Final = (
        f"The identity comes from {KEY_VARIABLE}, so a changed manifest would be lost with this "
        "process. Use a key file or the keyring to change it."
    )

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables
        self._lock = threading.Lock()
        self._identity: Identity | None = None

    @property
    def name(self) -> str:
        """`$AGENTAUTH_KEY`, for messages."""
        return f"${KEY_VARIABLE}"

    def load(self, registry: str) -> Identity:
        """The identity.

        Raises KeyFileError if the variable is missing or is not a key, or if this store was first
        used for another registry.
        """
        with self._lock:
            if self._identity is None:
                self._identity = self.make(registry)
            if self._identity.registry != registry:
                raise KeyFileError(
                    f"This EnvironmentStore is for {self._identity.registry}. Create another one "
                    f"for {registry}."
                )
            return self._identity

    def make(self, registry: str) -> Identity:
        """Read the identity from the variables. Raises KeyFileError."""
        pem = self._variables.get(KEY_VARIABLE, "")
        if not pem:
            raise KeyFileError(f"{KEY_VARIABLE} is not set. Set it to the private key, in PEM.")
        try:
            key = PrivateKey.from_pem(pem.replace("\\n", "\n").encode())
        except (InvalidKeyError, UnicodeError):
            # `from None`: the cause could quote the key in a traceback.
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
        """Return the identity from the variables; `identity` is ignored: it cannot be stored."""
        return self.load(identity.registry)

    def update(self, registry: str, change: Callable[[Identity], Identity]) -> Identity:
        """Apply `change` in memory."""
        self.load(registry)
        with self._lock:
            # Read again under the lock: another thread may have changed it.
            assert self._identity is not None
            self._identity = changed = change(self._identity)
        return changed
