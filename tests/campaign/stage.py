"""A registry at the time of the test vectors, with everything mutants are made from.

Agents, a grant, a token, and a user with a passkey.
"""

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.test import Client

from agentauth.protocol.agent_manifest import sign_manifest, verify_manifest
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import Signer
from approvals.tests.cast import Person, registered
from kms.services import ensure_key, signer
from registry.models import Grant, ServiceProvider
from registry.services.agent_registration import register_agent
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.service_providers import create_service_provider
from registry.services.tokens import issue_token, sign_issued
from registry.tests.cast import READ_CALENDAR, TESTER, approve, pending
from tests.campaign.signed import Original
from tests.vectors.generate import AGENT, AGENT_P256, AUDIENCE, NOW, STRANGER, local

WHEN = datetime.fromtimestamp(NOW, UTC)
PROVIDER_AUDIENCE = "http://127.0.0.1:8001"
PROVIDER_URL = f"{PROVIDER_AUDIENCE}/v1/events"
NEWCOMER = local("newcomer")
WIDE = (READ_CALENDAR, {"type": "write", "resource": "files"})
assert AUDIENCE != PROVIDER_AUDIENCE


@dataclass
class _Held:
    """What the casts of other tests expect of an agent's client."""

    holder: Any

    def agent(self) -> Any:
        return self.holder


@dataclass
class Stage:
    """The parties, and valid objects of each kind. Made under a clock that stands at `WHEN`."""

    provider: ServiceProvider = field(init=False)
    secret: str = field(init=False)
    grant: Grant = field(init=False)
    waiting: Grant = field(init=False)
    person: Person = field(init=False)
    token: Original = field(init=False)
    number: int = 0
    client: Client = field(
        default_factory=lambda: Client(SERVER_NAME="localhost", SERVER_PORT="8000")
    )

    def __post_init__(self) -> None:
        for purpose in ("token", "receipt"):
            ensure_key(purpose=purpose, actor=TESTER, now=WHEN - timedelta(days=1))
        self.provider, self.secret = create_service_provider(
            name="Acme",
            audience=PROVIDER_AUDIENCE,
            allowed=("read:calendar", "write:files"),
            actor=TESTER,
            now=WHEN,
        )
        self.person = registered("alice@example.org", "Alice", now=WHEN)
        agent = _Held(self._enrolled(AGENT))
        self._enrolled(AGENT_P256)
        asked: Any = pending(agent, self.provider, now=WHEN, capabilities=WIDE)  # type: ignore[arg-type]  # only its `agent()` is called
        self.grant = approve(asked, self.person.human, now=WHEN)
        self.waiting = pending(agent, self.provider, now=WHEN)  # type: ignore[arg-type]  # only its `agent()` is called
        tokens = [self._issued(agent.agent()) for _ in range(3)]
        self.token = Original(tokens[0], signer(purpose="token", now=WHEN), tokens[1:])

    def _enrolled(self, key: Signer) -> Any:
        _, code = create_enrolment_code(human=self.person.human, actor=TESTER, now=WHEN)
        verified = verify_manifest(manifest(key), expected_audience=settings.ISSUER, now=NOW)
        return register_agent(manifest=verified, enrolment_code=code, actor=TESTER, now=WHEN).agent

    def _issued(self, agent: Any) -> str:
        issued = issue_token(agent=agent, grant_id=str(self.grant.pk), actor=TESTER, now=WHEN)
        return sign_issued(issued.claims, WHEN)

    def proof(
        self,
        path: str,
        body: bytes = b"",
        *,
        key: Signer = AGENT,
        method: str = "POST",
        **more: Any,
    ) -> str:
        """A valid proof for a registry call, new each time."""
        self.number += 1
        more.setdefault("url", settings.PUBLIC_URL + path)
        return make_proof(
            key, method=method, iat=NOW, jti=f"campaign-{self.number}", body=body or None, **more
        )

    def send(self, path: str, body: bytes, *, proof: str | None, method: str = "POST") -> Any:
        headers = {} if proof is None else {"DPoP": proof}
        return self.client.generic(
            method, path, body, content_type="application/json", headers=headers
        )

    def verify(self, body: bytes) -> Any:
        credentials = base64.b64encode(f"{self.provider.pk}:{self.secret}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}"}
        return self.client.generic(
            "POST", "/v1/verify", body, content_type="application/json", headers=headers
        )

    def question(self) -> dict[str, Any]:
        """A verify request that is answered with yes."""
        proof = self.proof("", url=PROVIDER_URL, access_token=self.token.compact)
        action = {"type": "read", "resource": "calendar/work"}
        return {
            "token": self.token.compact,
            "proof": proof,
            "method": "POST",
            "url": PROVIDER_URL,
            "action": action,
        }


def manifest(key: Signer, **changes: Any) -> str:
    from agentauth.protocol.capability import parse_capabilities

    arguments: dict[str, Any] = {
        "audience": settings.ISSUER,
        "issued_at": NOW,
        "expires_at": NOW + 60 * 86_400,
        "jti": "manifest-1",
        "name": "Research Assistant",
        "description": "Reads papers",
        "model_origin": "models.example",
        "capabilities": parse_capabilities(list(WIDE)),
    }
    return sign_manifest(key, **(arguments | changes))


def newcomers_manifest() -> Original:
    others = [manifest(NEWCOMER, jti=f"other-{number}") for number in range(2)]
    return Original(manifest(NEWCOMER), NEWCOMER, [*others, manifest(STRANGER)])


def body_of(value: object) -> bytes:
    """JSON as clients write it; a lone surrogate is escaped."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()
