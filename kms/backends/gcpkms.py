"""Keys in Google Cloud KMS: made and used there, never exported."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import google_crc32c
import grpc
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud.kms_v1 import (
    CryptoKey,
    CryptoKeyVersion,
    KeyManagementServiceClient,
    ProtectionLevel,
)
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceGrpcTransport,
)

from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import Algorithm, PublicKey
from audit.new_ids import new_id
from kms.backends import der
from kms.backends.backend_calls import CREATION_SECONDS
from kms.backends.errors import BackendError, BusyError, ThrottledError
from kms.backends.key_backend_setting import HARDWARE, RING

SCHEME: Final = "gcpkms"
TIMEOUT_SECONDS: Final = 2.0
# An HSM takes seconds to make a key.
ENABLED_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.5
# A failed search for credentials takes seconds, so it is not repeated for every caller (s).
_CREDENTIALS_SECONDS: Final = 30.0

_ADDRESS: Final = re.compile(
    rf"{SCHEME}:({RING}/cryptoKeys/[A-Za-z0-9_-]{{1,63}}/cryptoKeyVersions/[1-9][0-9]{{0,8}})"
)
_Kind = CryptoKeyVersion.CryptoKeyVersionAlgorithm
_State = CryptoKeyVersion.CryptoKeyVersionState
_KINDS: Final[dict[Algorithm, int]] = {
    "EdDSA": _Kind.EC_SIGN_ED25519,
    "ES256": _Kind.EC_SIGN_P256_SHA256,
}

# One client per process. A forked child cannot use its parent's connection, and must not close it.
_clients: dict[int, KeyManagementServiceClient] = {}
_without_credentials_until = 0.0


class GcpkmsBackend:
    """The `gcpkms:` backend. A URI names one version of a key; a place is a key ring."""

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a key, and wait up to ENABLED_SECONDS until its first version can sign."""
        ring, hardware = place.removesuffix(HARDWARE), place.endswith(HARDWARE)
        key = CryptoKey(
            purpose=CryptoKey.CryptoKeyPurpose.ASYMMETRIC_SIGN,
            version_template={
                "algorithm": _KINDS[algorithm],
                "protection_level": ProtectionLevel.HSM if hardware else ProtectionLevel.SOFTWARE,
            },
        )
        key_id = f"agentauth-{purpose}-{new_id()}"
        with _service() as service:
            service.create_crypto_key(
                parent=ring,
                crypto_key_id=key_id,
                crypto_key=key,
                retry=None,
                timeout=CREATION_SECONDS,
            )
        name = f"{ring}/cryptoKeys/{key_id}/cryptoKeyVersions/1"
        _wait_until_enabled(name)
        return f"{SCHEME}:{name}"

    def open(self, uri: str) -> "_KeyVersion":
        """The key at `uri`. If it does not exist, its first use fails."""
        found = _ADDRESS.fullmatch(uri)
        if found is None:
            raise BackendError("That is not the address of a key version in Google Cloud KMS.")
        return _KeyVersion(found[1])


class _KeyVersion:
    """One version of a key."""

    def __init__(self, name: str) -> None:
        self._name = name

    def public(self) -> PublicKey:
        with _service() as service:
            # The service refuses this for a version that is disabled or will be destroyed.
            found = service.get_public_key(name=self._name, retry=None, timeout=TIMEOUT_SECONDS)
            self._check_name(found.name)
            pem = found.pem.encode()
            _check_crc32c(pem, found.pem_crc32c)
            public = der.public_key(pem)
            if found.algorithm != _KINDS[public.alg]:
                raise BackendError(f"The key {self._name} has an unsupported algorithm.")
        return public

    def sign(self, message: bytes, alg: Algorithm) -> bytes:
        if alg == "EdDSA":
            sent = {"data": message, "data_crc32c": google_crc32c.value(message)}
        else:
            digest = hashlib.sha256(message).digest()
            sent = {"digest": {"sha256": digest}, "digest_crc32c": google_crc32c.value(digest)}
        with _service() as service:
            answer = service.asymmetric_sign(
                request={"name": self._name, **sent}, retry=None, timeout=TIMEOUT_SECONDS
            )
            self._check_name(answer.name)
            arrived = (
                answer.verified_data_crc32c if alg == "EdDSA" else answer.verified_digest_crc32c
            )
            # Without it, the service would sign a message that was damaged on the way.
            if not arrived:
                raise BusyError("The key service did not receive our checksum.")
            _check_crc32c(answer.signature, answer.signature_crc32c)
        return answer.signature if alg == "EdDSA" else der.raw_signature(answer.signature)

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise BackendError(f"The key service used another version than {self._name}.")


def _check_crc32c(value: bytes, crc32c: int | None) -> None:
    if crc32c != google_crc32c.value(value):
        raise BusyError("The key service's answer did not arrive as it was sent.")


def _wait_until_enabled(name: str) -> None:
    deadline = time.monotonic() + ENABLED_SECONDS
    while True:
        try:
            with _service() as service:
                version = service.get_crypto_key_version(
                    name=name, retry=None, timeout=TIMEOUT_SECONDS
                )
            if version.state == _State.ENABLED:
                return
            found, may_come = _State(version.state).name, version.state == _State.PENDING_GENERATION
        except BackendError as error:
            found, may_come = f"not readable ({error})", isinstance(error, BusyError)
        if not may_come or time.monotonic() > deadline:
            raise BackendError(f"The key {name} was created but is {found}; destroy it.")
        time.sleep(_POLL_SECONDS)


@contextmanager
def _service() -> Iterator[KeyManagementServiceClient]:
    """The service.

    Converts errors to BackendError, without the service's text, which may name hosts.
    """
    try:
        yield _client()
    except exceptions.DeadlineExceeded as error:
        # A dead connection would stay so for minutes. The next call opens another one.
        _clients.pop(os.getpid(), None)
        raise BusyError("Google Cloud KMS did not answer in time.") from error
    except exceptions.TooManyRequests as error:
        raise ThrottledError("Google Cloud KMS limits the rate of our calls.") from error
    except (
        exceptions.ServiceUnavailable,
        exceptions.InternalServerError,
        exceptions.Unknown,
        exceptions.BadGateway,
        exceptions.GatewayTimeout,
        exceptions.Aborted,
        exceptions.Cancelled,
    ) as error:
        raise BusyError(f"Google Cloud KMS is not available ({type(error).__name__}).") from error
    except (exceptions.PermissionDenied, exceptions.Unauthenticated) as error:
        raise BackendError(
            f"Google Cloud KMS refused the credentials ({type(error).__name__}): check them "
            "and their roles (docs/keys/gcpkms.md)."
        ) from error
    except (exceptions.GoogleAPIError, GoogleAuthError) as error:
        raise BackendError(
            f"Google Cloud KMS refused the call ({type(error).__name__}): see docs/keys/gcpkms.md."
        ) from error
    except (InvalidKeyError, AttributeError, TypeError, ValueError) as error:
        raise BackendError(
            f"Google Cloud KMS sent an answer that we do not understand ({type(error).__name__})."
        ) from error


def _client() -> KeyManagementServiceClient:
    client = _clients.get(os.getpid())
    # No lock, which a fork could leave held. Concurrent threads each make a client, and one is
    # kept.
    return client or _clients.setdefault(os.getpid(), _connect())


def _connect() -> KeyManagementServiceClient:
    """A client with Google's standard settings. It looks for credentials, but makes no call yet."""
    global _without_credentials_until  # noqa: PLW0603 — one process has one set of credentials
    if time.monotonic() < _without_credentials_until:
        raise BackendError("There are no credentials for Google Cloud KMS.")
    try:
        return KeyManagementServiceClient(
            transport=partial(KeyManagementServiceGrpcTransport, channel=_channel)
        )
    except GoogleAuthError as error:
        _without_credentials_until = time.monotonic() + _CREDENTIALS_SECONDS
        raise BackendError("There are no credentials for Google Cloud KMS.") from error


def _channel(host: str, *, options: list[tuple[str, Any]], **rest: Any) -> grpc.Channel:
    more = [
        # After an outage, reconnect within seconds, not minutes.
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A new client gets its own connection, not the dead one.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return KeyManagementServiceGrpcTransport.create_channel(host, options=[*options, *more], **rest)
