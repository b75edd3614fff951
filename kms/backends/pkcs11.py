"""Keys in an HSM or any other PKCS #11 token: made and used there, never exported."""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pkcs11
from django.conf import settings
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as failures

from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import Algorithm, PublicKey, ed25519_public_key, p256_public_key
from audit.new_ids import new_id
from kms.backends.errors import BackendError, BusyError
from kms.backends.key_backend_setting import LABEL

SCHEME: Final = "pkcs11"
# How long a caller waits for its turn (s). The library's own calls cannot be interrupted.
TIMEOUT_SECONDS: Final = 2.0

_ADDRESS: Final = re.compile(rf"{SCHEME}:({LABEL})/((?:[0-9a-f]{{2}}){{1,32}})")

# Key type, and curve in DER: by object identifier, or for Ed25519 by a name, as in early PKCS #11.
_ED25519: Final = bytes.fromhex("06032b6570")
_P256: Final = bytes.fromhex("06082a8648ce3d030107")
_ED25519_AS_WORD: Final = b"\x13\x0cedwards25519"
_KINDS: Final[dict[Algorithm, tuple[KeyType, bytes]]] = {
    "EdDSA": (KeyType.EC_EDWARDS, _ED25519),
    "ES256": (KeyType.EC, _P256),
}
# Points are in an OCTET STRING: tag and length; for P-256 then 4, for "both coordinates".
_ED25519_POINT: Final = b"\x04\x20"
_P256_POINT: Final = b"\x04\x41\x04"
_COORDINATE_BYTES: Final = 32

# Errors after which the same call may succeed once the library is restarted.
_PASSING: Final = (
    failures.DeviceError,
    failures.DeviceMemory,
    failures.DeviceRemoved,
    failures.FunctionCancelled,
    failures.FunctionFailed,
    failures.GeneralError,
    failures.HostMemory,
    failures.KeyHandleInvalid,
    failures.ObjectHandleInvalid,
    failures.OperationActive,
    failures.OperationNotInitialized,
    failures.SessionClosed,
    failures.SessionCount,
    failures.SessionHandleInvalid,
    failures.TokenNotPresent,
    failures.UserNotLoggedIn,
)
_PIN_REFUSED: Final = (
    failures.PinExpired,
    failures.PinIncorrect,
    failures.PinInvalid,
    failures.PinLenRange,
    failures.PinLocked,
)


class Pkcs11Backend:
    """The `pkcs11:` backend.

    A URI is `pkcs11:<token label>/<key id in hex>`; a place is a label.
    """

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a key that stays on the token and cannot be read or wrapped."""
        made = new_id()
        kind, curve = _KINDS[algorithm]
        with _token(place) as token:
            session = token.open_for_writing()
            curve_parameters = session.create_domain_parameters(
                kind, {Attribute.EC_PARAMS: curve}, local=True
            )
            curve_parameters.generate_keypair(
                id=made.bytes,
                label=f"agentauth-{purpose}-{made}",
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                private_template={
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                },
            )
            session.close()
        return f"{SCHEME}:{place}/{made.hex}"

    def open(self, uri: str) -> "_TokenKey":
        """The key at `uri`. If it does not exist, its first use fails."""
        found = _ADDRESS.fullmatch(uri)
        if found is None:
            raise BackendError("That is not the address of a key on a token.")
        return _TokenKey(found[1], bytes.fromhex(found[2]))


class _TokenKey:
    """One key pair of a token."""

    def __init__(self, label: str, key_id: bytes) -> None:
        self._label, self._id = label, key_id

    def public(self) -> PublicKey:
        with _token(self._label) as token:
            private = token.only(ObjectClass.PRIVATE_KEY, self._id)
            if private[Attribute.EXTRACTABLE] or not private[Attribute.SENSITIVE]:
                raise BackendError(f"The key {self._id.hex()} can be extracted from its token.")
            public = token.only(ObjectClass.PUBLIC_KEY, self._id)
            curve, point = public[Attribute.EC_PARAMS], public[Attribute.EC_POINT]
        if curve in {_ED25519, _ED25519_AS_WORD}:
            return _public_key("EdDSA", point)
        if curve == _P256:
            return _public_key("ES256", point)
        raise BackendError(f"The key {self._id.hex()} must be Ed25519 or P-256.")

    def sign(self, message: bytes, alg: Algorithm) -> bytes:
        with _token(self._label) as token:
            private = token.private_key(self._id)
            if alg == "ES256":
                # Already r‖s, with leading zeros.
                return bytes(
                    private.sign(hashlib.sha256(message).digest(), mechanism=Mechanism.ECDSA)
                )
            return bytes(private.sign(message, mechanism=Mechanism.EDDSA))


def _public_key(alg: Algorithm, point: bytes) -> PublicKey:
    head = _ED25519_POINT if alg == "EdDSA" else _P256_POINT
    coordinates = point.removeprefix(head)
    try:
        if coordinates == point:
            raise BackendError("The token sent an unreadable public key.")
        if alg == "EdDSA":
            return ed25519_public_key(coordinates)
        return p256_public_key(coordinates[:_COORDINATE_BYTES], coordinates[_COORDINATE_BYTES:])
    except InvalidKeyError as error:
        raise BackendError(
            f"The token sent an unsupported public key: {error.description}"
        ) from None


class _Token:
    """A session with one token, logged in, and the private keys found there so far."""

    def __init__(self, token: pkcs11.Token, pin: str) -> None:
        self._token = token
        self._session = token.open(user_pin=pin)
        self._private: dict[bytes, Any] = {}

    def open_for_writing(self) -> Any:
        """A second session. A login applies to all sessions of the process."""
        return self._token.open(rw=True)

    def private_key(self, key_id: bytes) -> Any:
        """The only private key with that id. Raises BackendError."""
        if key_id not in self._private:
            self._private[key_id] = self.only(ObjectClass.PRIVATE_KEY, key_id)
        return self._private[key_id]

    def only(self, kind: ObjectClass, key_id: bytes) -> Any:
        """The only object of that class and id. Raises BackendError."""
        wanted = {Attribute.CLASS: kind, Attribute.ID: key_id, Attribute.TOKEN: True}
        found = list(self._session.get_objects(wanted))
        if len(found) != 1:
            raise BackendError(f"The token has {len(found)} keys with the id {key_id.hex()}.")
        return found[0]


class _Module:
    """The library in this process. It is started without locks, so only one call runs at a time."""

    def __init__(self, inherited: Any = None) -> None:
        self.turn = threading.Lock()
        self.library = inherited
        self._foreign = inherited is not None
        self._tokens: dict[str, _Token] = {}
        self._refused: set[tuple[str, str]] = set()

    def token(self, label: str) -> _Token:
        """The open token of that label."""
        if label not in self._tokens:
            self._start()
            pin = _pin()
            if (label, pin) in self._refused:
                raise BackendError(
                    "The PIN was refused; it is not tried again, because tokens lock after wrong "
                    "PINs."
                )
            try:
                self._tokens[label] = _Token(self.library.get_token(token_label=label), pin)
            except _PIN_REFUSED:
                self._refused.add((label, pin))
                raise
        return self._tokens[label]

    def stop(self) -> None:
        """Close everything; the next call restarts the library."""
        self._tokens.clear()
        if self.library is not None:
            with suppress(failures.PKCS11Error):
                self.library.finalize()

    def _start(self) -> None:
        if self._foreign:
            # A forked child must restart the library that its parent started.
            self.stop()
            self._foreign = False
        path = settings.PKCS11.get("MODULE", "")
        try:
            self.library = pkcs11.lib(path)
        except failures.PKCS11Error as error:
            raise BackendError(
                "PKCS11_MODULE names no library that can be loaded and started."
            ) from error


_module = _Module()


def _reload_after_fork() -> None:
    global _module  # noqa: PLW0603 — one library, one process
    _module = _Module(inherited=_module.library)


os.register_at_fork(after_in_child=_reload_after_fork)


@contextmanager
def _token(label: str) -> Iterator[_Token]:
    """The token, for one caller at a time. Converts errors to BackendError, without the PIN."""
    module = _module
    if not module.turn.acquire(timeout=TIMEOUT_SECONDS):
        raise BusyError("The token is busy with another call.")
    try:
        yield module.token(label)
    except failures.PKCS11Error as error:
        module.stop()
        kind = BusyError if isinstance(error, _PASSING) else BackendError
        raise kind(f"The token failed: {type(error).__name__}.") from error
    finally:
        module.turn.release()


def _pin() -> str:
    if pin := settings.PKCS11.get("PIN"):
        return str(pin)
    try:
        return Path(settings.PKCS11.get("PIN_FILE", "")).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise BackendError(
            "There is no PIN: set PKCS11_PIN, or PKCS11_PIN_FILE to a file that holds it."
        ) from None
