"""Backends that hold private keys, behind one small interface.

A key's URI scheme names its backend. A backend is one file here that wraps a library, one line in
`BACKENDS`, its location and its package in `key_backend_setting`, one page in docs/keys, and one
entry in the contract suite that all of them pass (kms/tests/test_backends.py). It converts every
error of its library to BackendError, and fails closed. The message of a BackendError is for the
operator's log, never for a caller: no secret, no credentials, no address that contains either.
"""

from functools import lru_cache
from typing import Final, Protocol

from django.conf import settings
from django.utils.module_loading import import_string

from agentauth.protocol.approval_receipt import MAX_RECEIPT_BYTES
from agentauth.protocol.errors import InvalidSignatureError
from agentauth.protocol.keys import Algorithm, PublicKey, Signer
from agentauth.protocol.token import MAX_SIGNING_INPUT
from kms.backends.backend_calls import call_backend, convert_errors
from kms.backends.errors import (
    BackendError,
    BusyError,
    CallRejectedError,
    OrphanedKeyError,
    ThrottledError,
    TooLongError,
)
from kms.backends.key_backend_setting import package_error, place_error

__all__ = [
    "Backend",
    "BackendError",
    "BusyError",
    "CallRejectedError",
    "HeldKey",
    "ThrottledError",
    "TooLongError",
    "create",
    "open_signer",
    "prove",
    "public_key",
]

# Signed to test a key. Nothing that we sign looks like it, so the signature is of no use to anyone.
TRIAL: Final = b"agentauth: does this key sign?"
# The longest message of each purpose (bytes). The log's notes and introductions are shorter than
# tokens.
_LONGEST: Final = {
    "audit": MAX_SIGNING_INPUT,
    "receipt": MAX_RECEIPT_BYTES,
    "token": MAX_SIGNING_INPUT,
}
# Scheme → class. A fixed table, so that no name from outside reaches an import.
BACKENDS: Final = {
    "awskms": "kms.backends.awskms.AwskmsBackend",
    "file": "kms.backends.file.FileBackend",
    "gcpkms": "kms.backends.gcpkms.GcpkmsBackend",
    "pkcs11": "kms.backends.pkcs11.Pkcs11Backend",
    "vault": "kms.backends.vault.VaultBackend",
}


class HeldKey(Protocol):
    """One key in its backend. Each call makes one request, with a timeout; the caller retries."""

    def public(self) -> PublicKey:
        """Its public key, from the backend. Raises BackendError for an unusable kind or state."""

    def sign(self, message: bytes, alg: Algorithm) -> bytes:
        """64 raw bytes (r‖s for P-256, never DER), not yet verified: the caller does.

        Raises BackendError. `alg` is the recorded algorithm, so that the backend is called only to
        sign.
        """


class Backend(Protocol):
    """A key backend. Neither creating it nor opening a key makes a request."""

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a non-exportable key, durably, and return its URI. Raises BackendError.

        `place` is the rest of KEY_BACKEND after its scheme (a mount, a region, a key ring): see
        `key_backend_setting`.
        """

    def open(self, uri: str) -> HeldKey:
        """The key of a URI. Raises BackendError if it is not a URI of this backend."""


def create(*, purpose: str) -> tuple[str, PublicKey]:
    """Make a key in the backend of the settings; return URI and public key. Raises BackendError."""
    if wrong := place_error(settings.KEY_BACKEND):
        raise BackendError(wrong)
    scheme, _, place = settings.KEY_BACKEND.partition(":")
    # The log's notes are signed with Ed25519 only.
    wanted = settings.KEY_ALGORITHM if purpose != "audit" else "EdDSA"
    algorithm: Algorithm = "ES256" if wanted == "ES256" else "EdDSA"
    # Not `call_backend`: an HSM takes longer than its deadline, and a retry makes a second key.
    uri = convert_errors(
        scheme, lambda: _home(scheme).create(place=place, purpose=purpose, algorithm=algorithm)
    )
    try:
        return uri, public_key(uri)
    except BackendError as error:
        raise OrphanedKeyError(uri, error) from error


def public_key(uri: str) -> PublicKey:
    """The key's public half, from its backend.

    Raises BackendError, also if the key could not sign.
    """
    return call_backend(_scheme(uri), _open_key(uri).public)


def open_signer(uri: str, public: PublicKey) -> Signer:
    """The key at `uri`, pinned to the recorded public key.

    No request; `sign` raises BackendError too.
    """
    return PinnedSigner(uri, _open_key(uri), public)


def prove(uri: str, public: PublicKey, *, purpose: str) -> None:
    """Test that the key signs, also a message as long as its purpose may need.

    Raises BackendError, and TooLongError if it signs only shorter ones.
    """
    signer = open_signer(uri, public)
    signer.sign(TRIAL)
    longest = _LONGEST[purpose]
    try:
        signer.sign(TRIAL.ljust(longest, b"?"))
    except (BusyError, CallRejectedError):
        raise
    except BackendError as error:
        raise TooLongError(
            f"The key signs, but not messages of {longest} bytes, which purpose {purpose} may "
            f"need: {error}"
        ) from error


class PinnedSigner:
    """Signs in the backend, and returns only signatures that the recorded public key verifies."""

    __slots__ = ("_held", "_uri", "kid", "public")

    def __init__(self, uri: str, held: HeldKey, public: PublicKey) -> None:
        self._uri, self._held, self.public = uri, held, public
        self.kid = public.thumbprint

    @property
    def alg(self) -> Algorithm:
        return self.public.alg

    def sign(self, message: bytes) -> bytes:
        signature = call_backend(_scheme(self._uri), lambda: self._held.sign(message, self.alg))
        try:
            self.public.verify(message, signature, alg=self.alg)
        except InvalidSignatureError:
            # A flipped bit, another version, or another key behind the same name: no verifier would
            # accept it.
            raise BackendError(
                f"The key at {self._uri} signed with a key other than {self.kid}."
            ) from None
        return signature

    def __repr__(self) -> str:
        return f"<PinnedSigner {self.kid}>"


def _scheme(uri: str) -> str:
    return uri.partition(":")[0]


def _open_key(uri: str) -> HeldKey:
    return _home(_scheme(uri)).open(uri)


@lru_cache(maxsize=len(BACKENDS))
def _home(scheme: str) -> Backend:
    if scheme not in BACKENDS:
        raise BackendError(f"There is no key backend named {scheme[:16]!r}.")
    try:
        home: Backend = import_string(BACKENDS[scheme])()
    except ImportError as error:
        # The start checks only the backend of new keys; older keys may be in any.
        wrong = package_error(scheme, needed_by=f"A key at {scheme}:")
        raise BackendError(wrong or f"{scheme}: cannot be used: {error}.") from error
    return home
