"""Where private keys live, each behind the same few calls; a key is named by a URI whose scheme names its home.

A home is one file here that wraps its library, one line in `HOMES`, one page in docs/keys, and one entry in the
contract suite that all of them pass (kms/tests/test_backends.py). It converts whatever its library raises to
BackendError, and fails closed. The message of a BackendError is for the operator's log, never for a caller: no
secret, no credentials, no address with either.
"""

from functools import lru_cache
from typing import Final, Protocol

from django.conf import settings
from django.utils.module_loading import import_string

from agentauth.protocol.errors import InvalidSignatureError
from agentauth.protocol.keys import Algorithm, PublicKey, Signer
from agentauth.protocol.receipt import MAX_RECEIPT_BYTES
from agentauth.protocol.token import MAX_SIGNING_INPUT
from kms.backends.calling import converted, guarded
from kms.backends.errors import (
    BackendError,
    BusyError,
    MadeInVainError,
    NotAskedError,
    ThrottledError,
    TooLongError,
)
from kms.backends.places import place_error

__all__ = [
    "Backend",
    "BackendError",
    "BusyError",
    "HeldKey",
    "NotAskedError",
    "ThrottledError",
    "TooLongError",
    "create",
    "open_signer",
    "prove",
    "public_key",
]

# Signed where it is asked whether a key signs. No part of anything we sign is like it, so nobody can use the signature.
TRIAL: Final = b"agentauth: does this key sign?"
# The longest that a purpose signs, in bytes. Notes of the log and introductions are shorter than a token may be.
_LONGEST: Final = {"audit": MAX_SIGNING_INPUT, "receipt": MAX_RECEIPT_BYTES, "token": MAX_SIGNING_INPUT}
# Scheme → class. Looked up here alone: no name from outside reaches an import.
HOMES: Final = {
    "awskms": "kms.backends.awskms.AwskmsBackend",
    "file": "kms.backends.file.FileBackend",
    "gcpkms": "kms.backends.gcpkms.GcpkmsBackend",
    "pkcs11": "kms.backends.pkcs11.Pkcs11Backend",
    "vault": "kms.backends.vault.VaultBackend",
}


class HeldKey(Protocol):
    """One key where it lives. Each call asks once, with a timeout, and tries nothing twice: the caller does that."""

    def public(self) -> PublicKey:
        """Its public half, from its home. Raises BackendError for a key of a kind or in a state we do not use."""

    def sign(self, message: bytes, alg: Algorithm) -> bytes:
        """64 raw bytes (for P-256 r‖s, never DER), unchecked: the caller verifies them. Raises BackendError.

        `alg` is the key's own, from the record, so that its home is asked for the signature alone.
        """


class Backend(Protocol):
    """A home of keys. Nothing is asked of it when it is made or when a key is opened."""

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a key that cannot leave, durably, before returning its URI. Raises BackendError.

        `place` is what KEY_BACKEND says after its scheme (a mount, a region, a key ring), as `places` has it.
        """

    def open(self, uri: str) -> HeldKey:
        """The key a URI names. Raises BackendError for what is no URI of this backend."""


def create(*, purpose: str) -> tuple[str, PublicKey]:
    """Make a key in the home that settings name; its URI and public half. Raises BackendError."""
    if wrong := place_error(settings.KEY_BACKEND):
        raise BackendError(wrong)
    scheme, _, place = settings.KEY_BACKEND.partition(":")
    # The notes of the log are signed with Ed25519 alone.
    wanted = settings.KEY_ALGORITHM if purpose != "audit" else "EdDSA"
    algorithm: Algorithm = "ES256" if wanted == "ES256" else "EdDSA"
    # Not guarded: an HSM takes longer, and a second try would make a second key.
    uri = converted(scheme, lambda: _home(scheme).create(place=place, purpose=purpose, algorithm=algorithm))
    try:
        return uri, public_key(uri)
    except BackendError as error:
        raise MadeInVainError(uri, error) from error


def public_key(uri: str) -> PublicKey:
    """What the home says of the key, asked now. Raises BackendError, also where it could not sign."""
    return guarded(_scheme(uri), _held(uri).public)


def open_signer(uri: str, public: PublicKey) -> Signer:
    """The key at `uri`, pinned to the public half on record. Asks nothing. Raises BackendError, also from `sign`."""
    return PinnedSigner(uri, _held(uri), public)


def prove(uri: str, public: PublicKey, *, purpose: str) -> None:
    """See the key sign, also a message as long as those of its purpose may be.

    Raises BackendError, and TooLongError where it signs, but nothing so long.
    """
    signer = open_signer(uri, public)
    signer.sign(TRIAL)
    longest = _LONGEST[purpose]
    try:
        signer.sign(TRIAL.ljust(longest, b"?"))
    except (BusyError, NotAskedError):
        raise
    except BackendError as error:
        raise TooLongError(
            f"The key signs, but no message of {longest} bytes, as a {purpose} may have: {error}"
        ) from error


class PinnedSigner:
    """Signs in the key's home and hands out only what the public half on record verifies."""

    __slots__ = ("_held", "_uri", "kid", "public")

    def __init__(self, uri: str, held: HeldKey, public: PublicKey) -> None:
        self._uri, self._held, self.public = uri, held, public
        self.kid = public.thumbprint

    @property
    def alg(self) -> Algorithm:
        return self.public.alg

    def sign(self, message: bytes) -> bytes:
        signature = guarded(_scheme(self._uri), lambda: self._held.sign(message, self.alg))
        try:
            self.public.verify(message, signature, alg=self.alg)
        except InvalidSignatureError:
            # A bit flipped, another version, another key behind the same name: nobody could have used it.
            raise BackendError(
                f"The key at {self._uri} signed with something else than {self.kid}."
            ) from None
        return signature

    def __repr__(self) -> str:
        return f"<PinnedSigner {self.kid}>"


def _scheme(uri: str) -> str:
    return uri.partition(":")[0]


def _held(uri: str) -> HeldKey:
    return _home(_scheme(uri)).open(uri)


@lru_cache(maxsize=len(HOMES))
def _home(scheme: str) -> Backend:
    if scheme not in HOMES:
        raise BackendError(f"There is no key backend named {scheme[:16]!r}.")
    try:
        home: Backend = import_string(HOMES[scheme])()
    except ImportError as error:
        raise BackendError(f"What {scheme}: needs is not installed: {error.name} (docs/keys.md).") from error
    return home
