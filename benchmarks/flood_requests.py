"""Unauthenticated requests as whole HTTP requests, each new: the floods of `benchmarks.floods`."""

import base64
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from agentauth.protocol.agent_manifest import sign_manifest
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from benchmarks.load_generation import METHOD, PATH, BodyWriter, Crowd, Question

READ = {"type": "read", "resource": "calendar"}
MAX_ACCEPT = 500
JSON_BODY = "Content-Type: application/json"
FORM_BODY = "Content-Type: application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The server at `url`, its known callers, and a grant of one of them."""

    url: str
    crowd: Crowd
    grant_id: str

    def request(self, line: str, *headers: str, body: str = "") -> bytes:
        """`line` is method and path; Content-Length is added if there is a body."""
        lengths = [f"Content-Length: {len(body.encode())}"] if body else []
        head = [f"{line} HTTP/1.1", f"Host: {self.url.removeprefix('http://')}", *headers, *lengths]
        return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


@dataclass(frozen=True, slots=True)
class Flood:
    """One kind of outsider. `lean`: at the verifier's own processes, else at the registry's."""

    lean: bool
    make: Callable[[Target], bytes]
    many_addresses: bool = False


def stranger() -> LocalSigner:
    """An unknown key."""
    return LocalSigner(PrivateKey.generate())


def proof(target: Target, signer: LocalSigner, line: str, body: str = "") -> str:
    """The DPoP header of an agent's call to the registry."""
    method, _, path = line.partition(" ")
    made = make_proof(
        signer,
        method=method,
        url=target.url + path,
        iat=int(time.time()),
        jti=secrets.token_urlsafe(16),
        body=body.encode() or None,
    )
    return f"DPoP: {made}"


def own_data(target: Target, signer: LocalSigner) -> bytes:
    """`GET /v1/agents/me` with this key."""
    line = "GET /v1/agents/me"
    return target.request(line, proof(target, signer, line))


def token_call(target: Target) -> bytes:
    """`POST /v1/tokens` with an unknown key."""
    line, body = "POST /v1/tokens", json.dumps({"grant_id": target.grant_id})
    return target.request(line, proof(target, stranger(), line, body), JSON_BODY, body=body)


def registration(target: Target) -> bytes:
    """`POST /v1/agents` with a valid manifest."""
    signer, now = stranger(), int(time.time())
    manifest = sign_manifest(
        signer,
        audience=target.url,
        issued_at=now,
        expires_at=now + 86_400,
        jti=secrets.token_urlsafe(16),
        name=f"Agent {secrets.token_hex(4)}",
        description="Reads calendars",
        model_origin="models.example",
        capabilities=parse_capabilities([READ]),
    )
    line, body = "POST /v1/agents", json.dumps({"manifest": manifest})
    return target.request(line, proof(target, signer, line, body), JSON_BODY, body=body)


def wrong_basic(target: Target) -> str:
    """The known provider's id, with a new wrong secret each time."""
    pair = f"{target.crowd.client_id}:{secrets.token_urlsafe(32)}".encode()
    return "Authorization: Basic " + base64.b64encode(pair).decode()


@lru_cache(maxsize=8)
def _body(target: Target, token: str = "") -> str:
    """A question about `token` (default: the first agent's), with the agent's proof."""
    pem, known = target.crowd.agents[0]
    return BodyWriter(pem, token or known, target.crowd.audience, Question(READ)).body(
        int(time.time())
    )


def wrong_secret(target: Target) -> bytes:
    """`POST /v1/verify` with a wrong secret. The server never reads the question, so it stays the
    same.
    """
    return target.request("POST /v1/verify", wrong_basic(target), JSON_BODY, body=_body(target))


def long_accept(target: Target) -> bytes:
    """The same with an Accept header that is slow to parse, a new one each time."""
    ranges = ",".join([secrets.token_hex(8), *["a"] * (MAX_ACCEPT // 2 - 10)])
    return target.request(
        "POST /v1/verify", wrong_basic(target), f"Accept: {ranges}", JSON_BODY, body=_body(target)
    )


def garbage_token(target: Target) -> bytes:
    """A known service provider asks about an invalid token."""
    token = ".".join(secrets.token_urlsafe(size) for size in (40, 300, 64))
    known = f"Authorization: {target.crowd.basic}"
    return target.request("POST /v1/verify", known, JSON_BODY, body=_body(target, token))


def stolen_token(target: Target) -> bytes:
    """A known service provider asks about an agent's token with a proof by an unknown key."""
    _, token = target.crowd.agents[0]
    made = make_proof(
        stranger(),
        method=METHOD,
        url=target.crowd.audience + PATH,
        iat=int(time.time()),
        jti=secrets.token_urlsafe(16),
        access_token=token,
    )
    asked = json.loads(_body(target)) | {"proof": made}
    known = f"Authorization: {target.crowd.basic}"
    return target.request("POST /v1/verify", known, JSON_BODY, body=json.dumps(asked))


def wrong_revocation(target: Target) -> bytes:
    """`POST /v1/revoke` with a wrong secret."""
    return target.request("POST /v1/revoke", wrong_basic(target), FORM_BODY, body="token=x")


def no_proof(target: Target) -> bytes:
    """A DPoP header that is not a proof."""
    return target.request("GET /v1/agents/me", f"DPoP: {secrets.token_urlsafe(200)}")


FLOODS = {
    "wrong secrets": Flood(lean=True, make=wrong_secret),
    "wrong secrets, many addresses": Flood(lean=True, make=wrong_secret, many_addresses=True),
    "wrong secrets, Accept headers": Flood(lean=True, make=long_accept, many_addresses=True),
    "garbage tokens at verify": Flood(lean=True, make=garbage_token),
    "unproven keys at verify": Flood(lean=True, make=stolen_token),
    "unproven keys": Flood(lean=False, make=lambda target: own_data(target, stranger())),
    "unproven keys, many addresses": Flood(
        lean=False, make=lambda target: own_data(target, stranger()), many_addresses=True
    ),
    "unproven keys at /v1/tokens": Flood(lean=False, make=token_call, many_addresses=True),
    "registrations": Flood(lean=False, make=registration),
    "registrations, many addresses": Flood(lean=False, make=registration, many_addresses=True),
    "wrong secrets at the registry": Flood(lean=False, make=wrong_revocation, many_addresses=True),
    "garbage for a proof": Flood(lean=False, make=no_proof, many_addresses=True),
}
