"""Where private keys live, each behind the same two calls; a key is named by a URI whose scheme names its home.

A backend wraps its library in one file, converts whatever that raises to BackendError, and fails closed. The
message of a BackendError is for the operator's log, never for a caller. Another home is another module here
and one line in `_backend`.
"""

from typing import Protocol

from django.conf import settings

from agentauth.protocol.keys import PublicKey, Signer


class BackendError(Exception):
    """The backend cannot make, find or use a key. Says what an operator should look at; holds no secret."""


class Backend(Protocol):
    def create(self, *, purpose: str) -> tuple[str, PublicKey]:
        """Make a new key and keep it durably before returning its URI and public half. Raises BackendError."""

    def open(self, uri: str) -> Signer:
        """The key a URI of this backend names, ready to sign. Raises BackendError, also from its `sign`."""


def create(*, purpose: str) -> tuple[str, PublicKey]:
    """Make a key in the backend that settings name. Raises BackendError."""
    return _backend(settings.KEY_BACKEND).create(purpose=purpose)


def open_signer(uri: str) -> Signer:
    """Open the key at `uri`, in whichever backend holds it. Raises BackendError."""
    return _backend(uri.partition(":")[0]).open(uri)


def _backend(scheme: str) -> Backend:
    from kms.backends.file import FileBackend
    from kms.backends.vault import VaultBackend

    if scheme == "file":
        return FileBackend(settings.KEY_DIRECTORY)
    if scheme == "vault":
        return VaultBackend()
    raise BackendError(f"There is no key backend named {scheme!r}.")
