"""Keys in the Transit engine of a Vault or OpenBao server: made and used there, never exported."""

import base64
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import hvac
import requests
from django.conf import settings
from hvac.exceptions import (
    BadGateway,
    Forbidden,
    InternalServerError,
    InvalidRequest,
    RateLimitExceeded,
    VaultDown,
    VaultError,
)

from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import Algorithm, PublicKey, ed25519_public_key
from audit.new_ids import new_id
from kms.backends import der
from kms.backends.errors import BackendError, BusyError, ThrottledError
from kms.backends.key_backend_setting import MOUNT

T = TypeVar("T")

SCHEME: Final = "vault"
DEFAULT_MOUNT: Final = "transit"
# To connect, and between parts of a response (s).
TIMEOUT_SECONDS: Final = (0.5, 1.5)
CONNECTIONS: Final = 64
# Where a pod finds its token, which Kubernetes renews in time.
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
# A login is used for this share of its lifetime. A refusal replaces it only after this many
# seconds, because a caller without permission for a key is refused with every token.
_USED: Final = 0.8
_SECOND_LOGIN_SECONDS: Final = 5.0

_ADDRESS = re.compile(rf"vault:({MOUNT})/(agentauth-[a-z]{{1,16}}-[0-9a-f-]{{36}})")
# Each of our keys is a Transit key of its own, so Transit's rotation is never used.
_VERSION: Final = 1
_PREFIX: Final = f"vault:v{_VERSION}:"
_TYPES: Final[dict[Algorithm, str]] = {"EdDSA": "ed25519", "ES256": "ecdsa-p256"}


class VaultBackend:
    """The `vault:` backend. A URI is `vault:<mount>/<key name>`; a place is a mount."""

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a key that cannot be exported or backed up in plaintext."""
        uri = f"{SCHEME}:{place or DEFAULT_MOUNT}/agentauth-{purpose}-{new_id()}"
        mount, name = _place(uri)
        _ask(
            lambda transit: transit.create_key(
                name=name,
                key_type=_TYPES[algorithm],
                exportable=False,
                allow_plaintext_backup=False,
                mount_point=mount,
            )
        )
        return uri

    def open(self, uri: str) -> "_TransitKey":
        """The key at `uri`. If it does not exist, its first use fails."""
        return _TransitKey(*_place(uri))


class _TransitKey:
    """One key of Transit."""

    def __init__(self, mount: str, name: str) -> None:
        self._mount, self._name = mount, name

    def public(self) -> PublicKey:
        return _ask(self._read)

    def sign(self, message: bytes, alg: Algorithm) -> bytes:
        return _ask(lambda transit: self._request_signature(transit, message, alg))

    def _read(self, transit: Any) -> PublicKey:
        found = transit.read_key(name=self._name, mount_point=self._mount)["data"]
        if found["exportable"] or found["allow_plaintext_backup"]:
            raise BackendError(f"The key {self._name} can be exported, or backed up in plaintext.")
        if found["type"] not in _TYPES.values():
            raise BackendError(f"The key {self._name} must be Ed25519 or P-256.")
        text = found["keys"][str(_VERSION)]["public_key"]
        if found["type"] == _TYPES["EdDSA"]:
            return ed25519_public_key(base64.b64decode(text, validate=True))
        return der.public_key(text.encode())

    def _request_signature(self, transit: Any, message: bytes, alg: Algorithm) -> bytes:
        if alg == "EdDSA":
            asked: dict[str, Any] = {"hash_input": message}
        else:
            # Signature as r‖s in base64url. Only the digest is sent, however long the message is.
            asked = {
                "hash_input": hashlib.sha256(message).digest(),
                "prehashed": True,
                "hash_algorithm": "sha2-256",
                "marshaling_algorithm": "jws",
            }
        asked["hash_input"] = base64.b64encode(asked["hash_input"]).decode()
        answer = transit.sign_data(
            name=self._name, key_version=_VERSION, mount_point=self._mount, **asked
        )
        text = answer["data"]["signature"]
        if not text.startswith(_PREFIX):
            raise BackendError(f"The key service signed with another version of {self._name}.")
        text = text.removeprefix(_PREFIX)
        return base64.b64decode(text, validate=True) if alg == "EdDSA" else b64u_decode(text)


def _place(uri: str) -> tuple[str, str]:
    found = _ADDRESS.fullmatch(uri)
    if found is None:
        raise BackendError("That is not the address of one of our keys in Transit.")
    return found[1], found[2]


def _ask(call: Callable[[Any], T]) -> T:
    """Call the Transit engine. Converts errors to BackendError, without the server's own text."""
    try:
        server = _server()
        login = server.login()
        try:
            return call(login.client.secrets.transit)
        except Forbidden:
            # The token may have been revoked.
            if not server.forget(login):
                raise
            return call(server.login().client.secrets.transit)
    except (VaultError, requests.RequestException) as error:
        raise _trouble(error) from None
    except (AgentAuthError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise BackendError(
            "Vault or OpenBao sent an answer that we do not understand "
            f"({type(error).__name__}): check VAULT_ADDR."
        ) from None


def _trouble(error: Exception) -> BackendError:
    """One line for the operator: what the server's answer means, and what to do."""
    name = type(error).__name__
    if isinstance(error, VaultDown):
        return BusyError(
            "Vault or OpenBao is sealed: unseal it (`bao operator unseal`, step 5 of "
            "docs/install.md)."
            if "sealed" in str(error)
            else f"Vault or OpenBao has no active node ({name}): check its status (`bao status`)."
        )
    if isinstance(error, RateLimitExceeded):
        return ThrottledError("Vault or OpenBao limits the rate of our calls: raise its quota.")
    if isinstance(error, InternalServerError | BadGateway):
        return BusyError(f"Vault or OpenBao failed ({name}): look at its log.")
    if isinstance(error, requests.exceptions.SSLError):
        return BusyError(
            f"The certificate of Vault or OpenBao is not trusted ({name}): name its authority "
            "in VAULT_CACERT."
        )
    if isinstance(error, requests.RequestException):
        return BusyError(
            f"Vault or OpenBao does not answer ({name}): check that it runs, and that "
            "VAULT_ADDR is correct."
        )
    if isinstance(error, Forbidden):
        return BackendError(
            f"Vault or OpenBao refused the token ({name}): check VAULT_TOKEN or the login, "
            "and the policy (docs/keys/vault.md)."
        )
    return BackendError(
        f"Vault or OpenBao refused the call ({name}): check that Transit is mounted and that "
        "the key exists."
    )


class _Login(NamedTuple):
    """A client with a token; when it was issued, and until when it is used (`time.monotonic`)."""

    client: Any
    at: float
    until: float

    def __repr__(self) -> str:
        return "<a login>"


class _Server:
    """The server of the settings: its kept connections, and a login that all threads share."""

    def __init__(self, named: dict[str, str]) -> None:
        self._named = named
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._session.verify = named.get("CACERT") or True
        self._lock = threading.Lock()
        self._login: _Login | None = None

    def login(self) -> _Login:
        """The current login, made if there is none."""
        found = self._login
        if found is not None and time.monotonic() < found.until:
            return found
        if not self._lock.acquire(timeout=sum(TIMEOUT_SECONDS)):
            raise BusyError("Another thread is logging in to Vault or OpenBao: try again shortly.")
        try:
            # Another thread may have logged in meanwhile.
            if self._login is None or time.monotonic() >= self._login.until:
                self._login = self._log_in()
            return self._login
        finally:
            self._lock.release()

    def forget(self, refused: _Login) -> bool:
        """Whether to retry, because there is, or can be, another login than the refused one."""
        if "TOKEN" in self._named:
            return False
        if self._login is not refused:
            return True
        if time.monotonic() < refused.at + _SECOND_LOGIN_SECONDS:
            return False
        self._login = None
        return True

    def _log_in(self) -> _Login:
        named, now = self._named, time.monotonic()
        if "TOKEN" in named:
            return _Login(self._client(named["TOKEN"]), now, math.inf)
        try:
            answer = self._logged_in(self._client("").auth)
        except (Forbidden, InvalidRequest) as error:
            raise BackendError(
                f"Vault or OpenBao refused the login ({type(error).__name__}): check "
                "VAULT_ROLE_ID and VAULT_SECRET_ID, or"
                " VAULT_KUBERNETES_ROLE (docs/keys/vault.md)."
            ) from None
        token, seconds = answer["auth"]["client_token"], float(answer["auth"]["lease_duration"])
        # A duration of 0 means a token that never expires.
        return _Login(self._client(token), now, now + seconds * _USED if seconds else math.inf)

    def _logged_in(self, auth: Any) -> Any:
        named = self._named
        if "ROLE_ID" in named:
            return auth.approle.login(
                named["ROLE_ID"],
                named.get("SECRET_ID"),
                use_token=False,
                mount_point=self._mount("approle"),
            )
        if "KUBERNETES_ROLE" in named:
            return auth.kubernetes.login(
                named["KUBERNETES_ROLE"],
                _service_account(named.get("KUBERNETES_TOKEN_FILE", SERVICE_ACCOUNT)),
                use_token=False,
                mount_point=self._mount("kubernetes"),
            )
        raise BackendError(
            "Set VAULT_TOKEN, VAULT_ROLE_ID or VAULT_KUBERNETES_ROLE (docs/keys/vault.md)."
        )

    def _mount(self, usual: str) -> str:
        return self._named.get("AUTH_MOUNT", usual)

    def _client(self, token: str) -> Any:
        return hvac.Client(
            url=self._named.get("ADDR", ""),
            token=token,
            namespace=self._named.get("NAMESPACE"),
            timeout=TIMEOUT_SECONDS,  # type: ignore[arg-type]  # `requests` takes the two
            # A redirect would carry the token to another host.
            allow_redirects=False,
            session=self._session,
        )


def _service_account(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except (OSError, ValueError):
        raise BackendError(
            "The service account's token cannot be read: VAULT_KUBERNETES_TOKEN_FILE."
        ) from None


# By process, since a forked child must not use its parent's connections; and by settings, for
# tests.
_servers: dict[tuple[int, frozenset[tuple[str, str]]], _Server] = {}


def _server() -> _Server:
    named = {name: value for name, value in settings.VAULT.items() if value}
    place = os.getpid(), frozenset(named.items())
    # No lock, which a fork could leave held. Concurrent threads each make a server, and one is
    # kept.
    return _servers.get(place) or _servers.setdefault(place, _Server(named))
