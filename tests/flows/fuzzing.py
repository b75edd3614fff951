"""Callers for the fuzzer: each signs whatever is sent, and knows some ids that exist."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from requests import PreparedRequest
from requests.auth import AuthBase, HTTPBasicAuth

from agentauth.protocol.agent_manifest import sign_manifest
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.key_change import sign_key_change
from agentauth.protocol.keys import LocalSigner, PrivateKey
from tests.actors import Scene, may_pay, payment_of

READ: dict[str, Any] = {"type": "read", "resource": "calendar"}
PAY = may_pay("100.00")
LIMITS = {
    "confirm_above": {"value": "20.00", "currency": "EUR"},
    "max_requests_per_minute": 600,
    "max_burst": 600,
}
PAYMENT = payment_of("30.00")


class Nobody(AuthBase):
    """Removes all credentials that were generated."""

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        for name in ("DPoP", "Authorization", "Cookie"):
            request.headers.pop(name, None)
        return request


class Agent(AuthBase):
    """Adds a proof over this very method, URL and body."""

    def __init__(self, signer: LocalSigner, origin: str) -> None:
        self.signer, self.origin = signer, origin

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        body = request.body.encode() if isinstance(request.body, str) else request.body
        path = str(request.path_url).partition("?")[0]
        request.headers["DPoP"] = self._proof(str(request.method), path, body)
        return request

    def _proof(self, method: str, path: str, body: bytes | None) -> str:
        made: dict[str, Any] = {
            "iat": int(time.time()),
            "jti": secrets.token_urlsafe(16),
            "body": body or None,
        }
        try:
            return make_proof(self.signer, method=method, url=self.origin + path, **made)
        except AgentAuthError:
            # A path that no proof can name is 404 before a proof is read.
            return make_proof(self.signer, method=method, url=self.origin, **made)


def fresh_key() -> LocalSigner:
    return LocalSigner(PrivateKey.generate("EdDSA"))


@dataclass
class Known:
    """What exists for one operation: an agent with grants, token, confirmation, valid bodies."""

    scene: Scene
    next_key: LocalSigner = field(default_factory=fresh_key)
    _things: dict[str, list[str]] = field(default_factory=dict)
    _logged: list[str] = field(default_factory=list)
    _size: int = 0

    def auth(self, caller: str, key: str) -> AuthBase:
        if caller == "agent" and key == "POST /v1/agents":
            # Registers repeatedly, each time with the key of the manifest in `bodies`.
            return Agent(self.next_key, self.scene.registry.url)
        if caller == "agent":
            return Agent(self.scene.signer, self.scene.registry.url)
        if caller == "provider":
            return HTTPBasicAuth(self.scene.client_id, self.scene.client_secret)
        return Nobody()

    def path_parameters(self) -> Mapping[str, list[str]]:
        """Path parameter → ids that exist, created when first needed."""
        if not self._things:
            pending = self.scene.api("POST", "/v1/grants", self.wish()).json()["grant_id"]
            asked = self.scene.ask(
                self.scene.question(self.scene.token(), PAYMENT, idempotency_key="first")
            )
            self._things = {
                "grant_id": [self.scene.grant_id, pending],
                "confirmation_id": [asked.json()["confirmation_id"]],
                "reference": [self.scene.client_id],
                # Tiles of the log; the fuzzer would percent-encode the slash of a partial tile.
                "level": ["0"],
                "tile": ["000"],
            }
        return self._things

    def query_parameters(self) -> Mapping[str, list[str]]:
        """Query parameter → valid values."""
        if not self._logged:
            events = self.scene.api("GET", "/v1/audit/events").json()["results"]
            places = {event["id"]: event["leaf_index"] for event in events}
            self._logged = [each for each, leaf in places.items() if leaf is not None]
            self._size = 1 + max((places[each] for each in self._logged), default=0)
        return {
            "event": self._logged,
            "first": ["1", "2"],
            "second": ["2", "256"],
            "tree_size": [str(self._size)],
        }

    def wish(self) -> dict[str, Any]:
        return {
            "service_provider": self.scene.client_id,
            "capabilities": [READ, PAY],
            "reason": secrets.token_hex(4),
        }

    def newcomer(self) -> str:
        return self._manifest(self.next_key)

    def renewal(self) -> str:
        return self._manifest(self.scene.signer)

    def grant(self) -> str:
        return self.scene.grant_id

    def token(self) -> str:
        return self.scene.token()

    def question(self) -> dict[str, Any]:
        return self.scene.question(self.token(), READ)

    def _manifest(self, signer: LocalSigner) -> str:
        now = int(time.time())
        return sign_manifest(
            signer,
            audience=self.scene.registry.url,
            issued_at=now,
            expires_at=now + 86_400,
            jti=secrets.token_urlsafe(16),
            name="Research Assistant",
            description="",
            model_origin="models.example",
            capabilities=parse_capabilities([READ, PAY]),
        )

    def new_key(self) -> str:
        return sign_key_change(
            self.next_key,
            audience=self.scene.registry.url,
            issued_at=int(time.time()),
            jti=secrets.token_urlsafe(16),
            agent_id=self.scene.agent_id,
            old_jkt=self.scene.signer.public.thumbprint,
        )

    def answered(self, key: str, status: int, content: bytes) -> None:
        """Switch to the next key once the registry did."""
        if (
            key == "POST /v1/agents/me/key"
            and status == 200
            and json.loads(content)["jkt"] == self.next_key.public.thumbprint
        ):
            self.scene.signer, self.next_key = self.next_key, fresh_key()
        if key == "POST /v1/agents" and status == 201:
            self.next_key = fresh_key()
