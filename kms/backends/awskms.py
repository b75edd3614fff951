"""Keys in AWS KMS: made and used there, never exported.

Credentials, proxies and endpoints are those that the AWS libraries find. Error messages are written
here, because texts of the library or the server may contain parts of a signed request.
"""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import Algorithm, PublicKey
from kms.backends import der
from kms.backends.backend_calls import CREATION_SECONDS
from kms.backends.errors import BackendError, BusyError, OrphanedKeyError, ThrottledError
from kms.backends.key_backend_setting import REGION

SCHEME: Final = "awskms"
# Together below DEADLINE_SECONDS, after which `backend_calls` gives up.
CONNECT_SECONDS: Final = 0.5
READ_SECONDS: Final = 1.0
CONNECTIONS: Final = 64
# For Ed25519 the service takes the message itself, and at most this many bytes.
MAX_MESSAGE_BYTES: Final = 4_096
# KMS is eventually consistent: wait at most this long (s) until a new key can be used.
SEEN_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.2
# A client whose credentials were refused or not found is replaced only once it is this old (s):
# looking for credentials may take seconds, and must not happen for every call.
_CREDENTIALS_SECONDS: Final = 30.0

# No alias: it could be pointed at another key. `mrk-`: a multi-Region key, same id in each region.
_ADDRESS: Final = re.compile(
    rf"{SCHEME}:(arn:aws:kms:({REGION}):[0-9]{{12}}:key/"
    r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32}))"
)
_LOOPBACK: Final = {"127.0.0.1", "::1", "localhost"}
_SPECS: Final[dict[Algorithm, str]] = {"EdDSA": "ECC_NIST_EDWARDS25519", "ES256": "ECC_NIST_P256"}
_SIGNING: Final[dict[Algorithm, str]] = {"EdDSA": "ED25519_SHA_512", "ES256": "ECDSA_SHA_256"}

_BUSY: Final = {
    "KMSInternalException",
    "DependencyTimeoutException",
    "KeyUnavailableException",
    "RequestTimeout",
}
_REFUSED: Final = {
    "AccessDeniedException": "the credentials do not allow it",
    "DisabledException": "the key is disabled",
    "NotFoundException": "there is no such key",
    "InvalidKeyUsageException": "the key is not for signing",
    "UnsupportedOperationException": "the key has an unsupported type",
}
_BAD_CREDENTIALS: Final = {
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "UnrecognizedClientException",
}

# At DEBUG these log whole requests, with signatures and session tokens.
for _name in ("botocore", "urllib3"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class AwskmsBackend:
    """The `awskms:` backend. A key's URI is `awskms:` and its ARN; `place` is an AWS region."""

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a key, and wait up to SEEN_SECONDS until KMS knows it.

        A receipt key is always P-256.
        """
        if purpose == "receipt":
            # A receipt holds the text that the human read, which may exceed MAX_MESSAGE_BYTES.
            algorithm = "ES256"
        with _service(place, "no key was made", read_seconds=CREATION_SECONDS) as service:
            made = service.create_key(
                KeySpec=_SPECS[algorithm],
                KeyUsage="SIGN_VERIFY",
                Description=f"agentauth: signs for the purpose {purpose}",
                Tags=[{"TagKey": "agentauth", "TagValue": purpose}],
            )
            uri = f"{SCHEME}:{made['KeyMetadata']['Arn']}"
        try:
            self.open(uri).wait_until_seen()
        except BackendError as error:
            raise OrphanedKeyError(uri, error) from error
        return uri

    def open(self, uri: str) -> "_KmsKey":
        """The key at `uri`. If it does not exist, its first use fails."""
        found = _ADDRESS.fullmatch(uri)
        if found is None:
            raise BackendError("That is not the address of a key in AWS KMS.")
        return _KmsKey(arn=found[1], region=found[2], name=found[3])


class _KmsKey:
    """One key."""

    def __init__(self, *, arn: str, region: str, name: str) -> None:
        self._arn, self._region, self._name = arn, region, name

    def public(self) -> PublicKey:
        # The service also refuses this for a key that is disabled or will be deleted.
        with _service(self._region, self._name) as service:
            found = service.get_public_key(KeyId=self._arn)
            public = der.public_key(found["PublicKey"])
            # `KeyId`: an answer about another key would put its public half on record as ours.
            if (
                found["KeyId"] != self._arn
                or found["KeyUsage"] != "SIGN_VERIFY"
                or found["KeySpec"] != _SPECS[public.alg]
                or _SIGNING[public.alg] not in found["SigningAlgorithms"]
            ):
                raise BackendError(
                    f"AWS KMS, {self._name}: the answer is for another key, or the key has an "
                    "unsupported type."
                )
        return public

    def sign(self, message: bytes, alg: Algorithm) -> bytes:
        if alg == "ES256":
            asked = {"Message": hashlib.sha256(message).digest(), "MessageType": "DIGEST"}
        elif len(message) <= MAX_MESSAGE_BYTES:
            asked = {"Message": message, "MessageType": "RAW"}
        else:
            raise BackendError(f"AWS KMS signs at most {MAX_MESSAGE_BYTES} bytes with Ed25519.")
        with _service(self._region, self._name) as service:
            answer = service.sign(KeyId=self._arn, SigningAlgorithm=_SIGNING[alg], **asked)
            signature = bytes(answer["Signature"])
        return signature if alg == "EdDSA" else der.raw_signature(signature)

    def wait_until_seen(self) -> None:
        """Wait until the service knows the key. Raises BackendError."""
        deadline = time.monotonic() + SEEN_SECONDS
        while True:
            try:
                self.public()
            except (_UnknownKeyError, BusyError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return


class _UnknownKeyError(BackendError):
    """The service knows no such key."""


@contextmanager
def _service(region: str, what: str, *, read_seconds: float = READ_SECONDS) -> Iterator[Any]:
    """The service in `region`. Converts errors to BackendError, without the service's own text."""
    try:
        yield _client(region, read_seconds)
    except ClientError as error:
        raise _convert_client_error(error, region, what) from None
    except (NoConnectionError, HTTPClientError) as error:
        raise BusyError(
            f"AWS KMS, {what}: the service cannot be reached ({type(error).__name__}): check "
            "the network and the region."
        ) from None
    except ResponseParserError:
        raise BackendError(f"AWS KMS, {what}: the service sent an unexpected answer.") from None
    except BotoCoreError as error:
        # The remaining errors are about credentials and settings: missing, incomplete, unavailable.
        _drop_old_clients(region)
        raise BackendError(
            f"AWS KMS, {what}: no credentials, or wrong settings ({type(error).__name__}): check "
            "the AWS variables, profile or role of this process."
        ) from None
    except (InvalidKeyError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise BackendError(
            f"AWS KMS, {what}: the service sent an unexpected answer: {type(error).__name__}."
        ) from None


def _convert_client_error(error: ClientError, region: str, what: str) -> BackendError:
    answer: dict[str, Any] = error.response
    code = re.sub(r"[^A-Za-z0-9]", "", str(answer.get("Error", {}).get("Code", "")))[:64]
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "ThrottlingException" or status == 429:  # noqa: PLR2004 — a code of HTTP
        return ThrottledError(f"AWS KMS, {what}: {code}.")
    if code in _BUSY or status >= 500:  # noqa: PLR2004 — codes of HTTP
        return BusyError(f"AWS KMS, {what}: {code}.")
    if code in _BAD_CREDENTIALS:
        _drop_old_clients(region)
        return BackendError(
            f"AWS KMS, {what}: the credentials were refused or have expired: {code}."
        )
    if code == "KMSInvalidStateException":
        # Only the text names the state; asking for it would need another permission.
        deleted = "pending deletion" in str(answer["Error"].get("Message", ""))
        state = "will be deleted" if deleted else "is in a state in which it cannot be used"
        return BackendError(f"AWS KMS, {what}: the key {state}.")
    kind = _UnknownKeyError if code == "NotFoundException" else BackendError
    return kind(f"AWS KMS, {what}: {_REFUSED.get(code, code or 'refused')}.")


class _CachedClient(NamedTuple):
    """A client, shared by threads, and when it was made (monotonic seconds)."""

    client: Any
    made_at: float


# By process, region and read timeout. A forked child cannot use its parent's connections.
_clients: dict[tuple[int, str, float], _CachedClient] = {}
_making: Final = threading.Lock()


def _client(region: str, read_seconds: float) -> Any:
    key = os.getpid(), region, read_seconds
    if (cached := _clients.get(key)) is not None:
        return cached.client
    # Looking for credentials may take seconds. Other callers wait CONNECT_SECONDS at most.
    if not _making.acquire(timeout=CONNECT_SECONDS):
        raise BusyError("AWS KMS: still looking for credentials.")
    try:
        if (cached := _clients.get(key)) is None:
            new = _CachedClient(_new_client(region, read_seconds), time.monotonic())
            cached = _clients[key] = new
        return cached.client
    finally:
        _making.release()


def _new_client(region: str, read_seconds: float) -> Any:
    limits = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=read_seconds,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
    )
    session = botocore.session.get_session()
    # botocore makes its own client for STS to get credentials: it gets the same limits.
    session.set_default_client_config(limits)
    client = session.create_client("kms", region_name=region)
    parts = urlsplit(client.meta.endpoint_url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise BackendError(
            "AWS_ENDPOINT_URL_KMS must be an https URL; http is allowed only for this host."
        )
    return client


def _drop_old_clients(region: str) -> None:
    """Drop clients older than _CREDENTIALS_SECONDS: the credentials may have been replaced."""
    now = time.monotonic()
    for key, cached in list(_clients.items()):
        if key[:2] == (os.getpid(), region) and now - cached.made_at > _CREDENTIALS_SECONDS:
            _clients.pop(key, None)
