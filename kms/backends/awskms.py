"""Keys in AWS KMS: made there, used there, and never let out.

Credentials, proxies and endpoints come from where the AWS libraries look for them. What an error says is made here:
texts of the library or of the server may hold parts of a signed request.
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
from kms.backends.calling import CREATION_SECONDS
from kms.backends.errors import BackendError, BusyError, MadeInVainError, ThrottledError
from kms.backends.places import REGION

SCHEME: Final = "awskms"
CONNECT_SECONDS: Final = 0.5
READ_SECONDS: Final = 1.0
CONNECTIONS: Final = 64
# With Ed25519 the service wants the message itself, and takes no longer one.
MAX_MESSAGE_BYTES: Final = 4_096
# A key that was just made may be unknown for a moment where the next request arrives.
SEEN_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.2
# Credentials that were refused or not found are not looked for again for every caller.
_CREDENTIALS_SECONDS: Final = 30.0

# No alias: it may be pointed at another key. `mrk-` is a key that has the same id in several regions.
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
    "UnsupportedOperationException": "the key is of another kind than we use",
}
_UNKNOWN_CALLER: Final = {
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "UnrecognizedClientException",
}

# At DEBUG these write down whole requests with their signatures and session tokens.
for _name in ("botocore", "urllib3"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class AwskmsBackend:
    """The `awskms:` backend; a URI is `awskms:` and the key's ARN, a place is a region."""

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a key, and wait until it is known: at most SEEN_SECONDS. A receipt's is P-256, whatever is asked."""
        if purpose == "receipt":
            # A receipt holds the text a person read, so it can be longer than what Ed25519 signs here.
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
            raise MadeInVainError(uri, error) from error
        return uri

    def open(self, uri: str) -> "_KmsKey":
        """The key at `uri`. Whether it is there shows at its first use."""
        found = _ADDRESS.fullmatch(uri)
        if found is None:
            raise BackendError("That is not the address of a key in AWS KMS.")
        return _KmsKey(arn=found[1], region=found[2], name=found[3])


class _KmsKey:
    """One key."""

    def __init__(self, *, arn: str, region: str, name: str) -> None:
        self._arn, self._region, self._name = arn, region, name

    def public(self) -> PublicKey:
        # The service refuses this, too, for a key that is disabled or will be deleted.
        with _service(self._region, self._name) as service:
            found = service.get_public_key(KeyId=self._arn)
            public = der.public_key(found["PublicKey"])
            if (
                found["KeyId"] != self._arn
                or found["KeyUsage"] != "SIGN_VERIFY"
                or found["KeySpec"] != _SPECS[public.alg]
                or _SIGNING[public.alg] not in found["SigningAlgorithms"]
            ):
                raise BackendError(f"AWS KMS, {self._name}: the key is of another kind than we use.")
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
        """Come back once the service knows the key. Raises BackendError."""
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
    """The service in `region`; whatever goes wrong inside becomes BackendError, without what the service said."""
    try:
        yield _client(region, read_seconds)
    except ClientError as error:
        raise _refusal(error, region, what) from None
    except (NoConnectionError, HTTPClientError) as error:
        raise BusyError(
            f"AWS KMS, {what}: the service cannot be reached ({type(error).__name__}): check the network and the region."
        ) from None
    except ResponseParserError:
        raise BackendError(f"AWS KMS, {what}: the service answered oddly.") from None
    except BotoCoreError as error:
        # What is left are credentials and settings: not there, not whole, not to be had.
        _forget(region)
        raise BackendError(
            f"AWS KMS, {what}: no credentials, or wrong settings: {type(error).__name__}."
        ) from None
    except (InvalidKeyError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise BackendError(f"AWS KMS, {what}: the service answered oddly: {type(error).__name__}.") from None


def _refusal(error: ClientError, region: str, what: str) -> BackendError:
    answer: dict[str, Any] = error.response
    code = re.sub(r"[^A-Za-z0-9]", "", str(answer.get("Error", {}).get("Code", "")))[:64]
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "ThrottlingException" or status == 429:  # noqa: PLR2004 — a code of HTTP
        return ThrottledError(f"AWS KMS, {what}: {code}.")
    if code in _BUSY or status >= 500:  # noqa: PLR2004 — codes of HTTP
        return BusyError(f"AWS KMS, {what}: {code}.")
    if code in _UNKNOWN_CALLER:
        _forget(region)
        return BackendError(f"AWS KMS, {what}: the credentials are not taken, or have ended: {code}.")
    if code == "KMSInvalidStateException":
        # The service names the state in its text alone, and asking for it would need one more right.
        deleted = "pending deletion" in str(answer["Error"].get("Message", ""))
        state = "will be deleted" if deleted else "is in a state in which it cannot be used"
        return BackendError(f"AWS KMS, {what}: the key {state}.")
    kind = _UnknownKeyError if code == "NotFoundException" else BackendError
    return kind(f"AWS KMS, {what}: {_REFUSED.get(code, code or 'refused')}.")


class _Made(NamedTuple):
    """A client, which threads may share, and when it was made."""

    client: Any
    at: float


# By process, region and time to read: a connection that a forked child has of its parent's is of no use to it.
_clients: dict[tuple[int, str, float], _Made] = {}
_making: Final = threading.Lock()


def _client(region: str, read_seconds: float) -> Any:
    place = os.getpid(), region, read_seconds
    if (made := _clients.get(place)) is not None:
        return made.client
    # Looking for credentials may take seconds; who waits longer than for a connection is told so.
    if not _making.acquire(timeout=CONNECT_SECONDS):
        raise BusyError("AWS KMS: credentials are just being looked for.")
    try:
        if (made := _clients.get(place)) is None:
            made = _clients[place] = _Made(_new_client(region, read_seconds), time.monotonic())
        return made.client
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
    # Also for the client with which the library asks STS for credentials.
    session.set_default_client_config(limits)
    client = session.create_client("kms", region_name=region)
    parts = urlsplit(client.meta.endpoint_url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise BackendError("AWS_ENDPOINT_URL_KMS must be https, or on this host.")
    return client


def _forget(region: str) -> None:
    """Look for credentials again, when they were not looked for just now: an operator may have put others in place."""
    for place, made in list(_clients.items()):
        if place[:2] == (os.getpid(), region) and time.monotonic() - made.at > _CREDENTIALS_SECONDS:
            _clients.pop(place, None)
