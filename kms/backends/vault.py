"""Keys in the Transit engine of a Vault or OpenBao server: made there, used there, and never let out."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

import hvac
import requests
from django.conf import settings
from hvac.exceptions import VaultError

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import PublicKey, Signer, ed25519_public_key
from audit.identifiers import new_id
from kms.backends import BackendError

SCHEME: Final = "vault"
TIMEOUT_SECONDS: Final = 2
_ADDRESS = re.compile(r"vault:([A-Za-z0-9_-]{1,64})/(agentauth-[a-z]{1,16}-[0-9a-f-]{36})")
# Each key of ours is a key of Transit by itself, so Transit's own rotation is never used.
_VERSION: Final = 1
_PREFIX: Final = f"vault:v{_VERSION}:"


class VaultBackend:
    """The `vault:` backend; a URI is `vault:<mount>/<key name>`. Nothing is asked of the server until it is needed."""

    def create(self, *, purpose: str) -> tuple[str, PublicKey]:
        """Make an Ed25519 key that can neither be exported nor backed up in clear."""
        uri = f"{SCHEME}:{settings.VAULT_TRANSIT_MOUNT}/agentauth-{purpose}-{new_id()}"
        mount, name = _place(uri)
        with _server() as transit:
            transit.create_key(
                name=name,
                key_type="ed25519",
                exportable=False,
                allow_plaintext_backup=False,
                mount_point=mount,
            )
        return uri, _VaultSigner(mount, name).public

    def open(self, uri: str) -> Signer:
        """The key at `uri`. Whether it is there shows at its first use."""
        return _VaultSigner(*_place(uri))


class _VaultSigner:
    """One key of Transit."""

    alg: Final = "EdDSA"

    def __init__(self, mount: str, name: str) -> None:
        self._mount, self._name = mount, name

    @cached_property
    def public(self) -> PublicKey:
        """Asked for once. Raises BackendError, also for a key that is not the kind we made."""
        with _server() as transit:
            found = transit.read_key(name=self._name, mount_point=self._mount)["data"]
            if found["type"] != "ed25519" or found["exportable"] or found["allow_plaintext_backup"]:
                raise BackendError(
                    f"The key {self._name} is of another kind than we make, or can be exported."
                )
            return ed25519_public_key(
                base64.b64decode(found["keys"][str(_VERSION)]["public_key"], validate=True)
            )

    @property
    def kid(self) -> str:
        return self.public.thumbprint

    def sign(self, message: bytes) -> bytes:
        """64 bytes, checked before they are used: what comes over a network may be anything."""
        public = self.public
        with _server() as transit:
            answer = transit.sign_data(
                name=self._name,
                hash_input=base64.b64encode(message).decode(),
                key_version=_VERSION,
                mount_point=self._mount,
            )
            text = answer["data"]["signature"]
            if not text.startswith(_PREFIX):
                raise BackendError(f"The key service signed with another version of {self._name}.")
            signature = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
            public.verify(message, signature, alg=self.alg)
            return signature


def _place(uri: str) -> tuple[str, str]:
    found = _ADDRESS.fullmatch(uri)
    if found is None:
        raise BackendError("That is not the address of a key of ours in Transit.")
    return found[1], found[2]


@contextmanager
def _server() -> Iterator[Any]:
    """The Transit engine; whatever goes wrong inside becomes BackendError, without token or address of a caller."""
    try:
        # No redirect is followed: the token would go along.
        with requests.Session() as session:
            client = hvac.Client(
                url=settings.VAULT_ADDR,
                token=settings.VAULT_TOKEN,
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,
                session=session,
            )
            yield client.secrets.transit
    except (VaultError, requests.RequestException) as error:
        raise BackendError(f"The key service did not do it: {type(error).__name__}.") from error
    except (AgentAuthError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise BackendError(f"The key service answered oddly: {type(error).__name__}.") from error
