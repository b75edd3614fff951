"""A caller's credentials, read from a request's bytes before Django and its parser see them."""

import re
import time
from dataclasses import dataclass
from typing import Final

from django.conf import settings

from agentauth.client_address import client_address
from agentauth.middleware import REGISTRATION
from agentauth.protocol.dpop import LeakedKeyError, verify_proof
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import AgentAuthError, InvalidClientError
from agentauth.protocol.jose import read_header
from agentauth.protocol.keys import PrivateMemberError, parse_jwk
from registry.authentication import read_basic

# As the parser accepts it: the target may be an absolute URL.
_HEAD: Final = re.compile(
    rb"([^ \r\n]+) (?:[a-z]+://[^/ \r\n]*)?(/v1/[^ ?\r\n]*)(?:\?[^ \r\n]*)? HTTP/1\.([01])\r\n",
    re.IGNORECASE,
)
_LINES: Final = re.compile(
    rb"\r\n(dpop|authorization|x-forwarded-for|connection):[ \t]*([^\r\n]*)(?=\r\n)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Call:
    """A request and the credentials in it, unchecked. `keeps`: the client keeps the connection."""

    method: str
    path: str
    proof: str | None
    authorization: str | None
    address: str
    body: bytes
    keeps: bool

    @property
    def registers(self) -> bool:
        """Whether it is a registration, whose key is not known yet."""
        return self.method == "POST" and self.path == REGISTRATION

    @property
    def key_header(self) -> str:
        """The proof's header, which holds the key; the same in each proof of most clients."""
        return (self.proof or "").partition(".")[0]

    @property
    def known_as(self) -> bytes:
        """The key under which valid credentials are remembered."""
        return sha256((self.authorization or self.key_header).encode())


def read_call(data: bytearray, head: int, end: int, peer: object) -> Call | None:
    """The request in `data[:end]`, whose head is `data[:head]`, from `peer`.

    None if only Django can judge it. A header on two lines counts as absent, except
    X-Forwarded-For, whose lines are one list.
    """
    text = bytes(data[:head])
    first = _HEAD.match(text)
    if first is None:
        return None
    lines: dict[bytes, list[str]] = {}
    for name, value in _LINES.findall(text):
        lines.setdefault(name.lower(), []).append(value.decode("latin-1").strip(" \t"))
    proof, authorization = (
        lines[name][0] if len(lines.get(name, ())) == 1 else None
        for name in (b"dpop", b"authorization")
    )
    path = first[2].decode("latin-1")
    if b"dpop" not in lines and b"authorization" not in lines and path != REGISTRATION:
        return None
    meta = {
        "HTTP_X_FORWARDED_FOR": ",".join(lines.get(b"x-forwarded-for", ())),
        "REMOTE_ADDR": str(peer[0]) if isinstance(peer, tuple) else "",
    }
    return Call(
        first[1].decode("latin-1"),
        path,
        proof,
        authorization,
        client_address(meta, hops=settings.TRUSTED_PROXIES),
        bytes(data[head:end]) if proof else b"",
        keeps=first[3] == b"1" and "close" not in ",".join(lines.get(b"connection", ())).lower(),
    )


def pair_of(call: Call) -> tuple[str, str] | None:
    """Client id and secret of a service provider; None if absent or malformed."""
    try:
        return read_basic(call.authorization) if call.authorization else None
    except InvalidClientError:
        return None


def jkt_of(call: Call) -> str | None:
    """The thumbprint of the key in the proof, whose signature is not checked yet."""
    if call.authorization or not call.proof:
        return None
    try:
        return parse_jwk(read_header(call.key_header).get("jwk"), registered=True).thumbprint
    except PrivateMemberError as error:
        return error.derives.thumbprint if error.derives else None
    except AgentAuthError:
        return None


def verifies(call: Call) -> bool:
    """Whether the proof is valid, or shows a private key, which Django must see to bar it."""
    try:
        verify_proof(
            call.proof or "",
            expected_method=call.method,
            expected_url=settings.PUBLIC_URL + call.path,
            access_token=None,
            body=call.body,
            now=int(time.time()),
        )
    except LeakedKeyError:
        return True
    except AgentAuthError:
        return False
    return True
