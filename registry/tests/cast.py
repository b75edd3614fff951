"""An agent that signs its calls, and shortcuts to the states registry tests start from."""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.conf import settings
from django.test import Client

from agentauth.protocol.agent_manifest import sign_manifest, verify_manifest
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import Capability, parse_capabilities
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.key_change import sign_key_change
from agentauth.protocol.keys import LocalSigner, PrivateKey
from audit.services import Actor
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agent_claims import claim_agent, claim_url
from registry.services.agent_registration import register_agent
from registry.services.code_derivation import claim_codes
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.grant_requests import GrantRequest, request_grant
from tests import receipts

TESTER = Actor("system", "test")
OK = 200
READ_CALENDAR: dict[str, Any] = {"type": "read", "resource": "calendar"}
PAY: dict[str, Any] = {
    "type": "transact",
    "resource": "payments",
    "max_amount": {"value": "100.00", "currency": "EUR"},
}
MANIFEST: tuple[dict[str, Any], ...] = (READ_CALENDAR, {"type": "write", "resource": "files"}, PAY)


@dataclass
class AgentClient:
    """An agent's side: its key and signed calls through Django's test client."""

    alg: Any = "EdDSA"
    client: Client = field(
        default_factory=lambda: Client(SERVER_NAME="localhost", SERVER_PORT="8000")
    )

    def __post_init__(self) -> None:
        self.private = PrivateKey.generate(self.alg)
        self.signer = LocalSigner(self.private)
        # All its manifests count from this time, so their order never depends on the clock.
        self.made = int(datetime.now(UTC).timestamp())

    @property
    def jkt(self) -> str:
        return self.signer.public.thumbprint

    def agent(self) -> Agent:
        return Agent.objects.select_related("human").get(jkt=self.jkt)

    def manifest(
        self,
        *,
        capabilities: Sequence[Mapping[str, Any]] = MANIFEST,
        name: str = "Research Assistant",
        days: int = 60,
        later: int = 0,
        **changes: Any,
    ) -> str:
        issued_at = self.made + later
        return sign_manifest(
            self.signer,
            audience=settings.ISSUER,
            issued_at=issued_at,
            expires_at=issued_at + days * 86_400,
            jti=secrets.token_urlsafe(16),
            name=name,
            description=changes.get("description", "Reads papers"),
            model_origin=changes.get("model_origin", "models.example"),
            capabilities=parse_capabilities(list(capabilities)),
        )

    def private_jwk(self) -> dict[str, Any]:
        """The whole key with its private half, which no agent should ever send."""
        key = load_pem_private_key(self.private.to_pem(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        return {**self.signer.public.jwk, "d": b64u_encode(key.private_bytes_raw())}

    def disclosing(self, typ: str) -> str:
        """A JWS of this kind whose header contains the whole key."""
        return sign_compact({}, self.signer, typ=typ, header={"jwk": self.private_jwk()})

    def proof(self, method: str, path: str, body: bytes = b"", /, **changes: Any) -> str:
        values: dict[str, Any] = {
            "method": method,
            "url": settings.PUBLIC_URL + path,
            "iat": int(datetime.now(UTC).timestamp()),
            "jti": secrets.token_urlsafe(16),
            "body": body or None,
        }
        return make_proof(self.signer, **(values | changes))

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        proof: str | None = "",
        key: str | None = None,
        query: str = "",
    ) -> Any:
        """One call, with a new proof unless one is given; `proof=None` sends none."""
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        headers = {"Idempotency-Key": key} if key else {}
        if proof is not None:
            headers["DPoP"] = proof or self.proof(method, path, data)
        return self.client.generic(
            method, path + query, data, content_type="application/json", headers=headers
        )

    def register(
        self, code: str | None = None, *, manifest: str = "", key: str | None = None
    ) -> Any:
        body = {"manifest": manifest or self.manifest()}
        return self.call(
            "POST", "/v1/agents", body | ({"enrolment_code": code} if code else {}), key=key
        )

    def replace(self, *, key: str | None = None, later: int = 5, **manifest: Any) -> Any:
        """Replace the manifest, issued `later` seconds after this client was created."""
        body = {"manifest": self.manifest(later=later, **manifest)}
        return self.call("POST", "/v1/agents/me/manifest", body, key=key)

    def key_change(self, new: LocalSigner, **changes: Any) -> str:
        values: dict[str, Any] = {
            "audience": settings.ISSUER,
            "issued_at": int(datetime.now(UTC).timestamp()),
            "jti": secrets.token_urlsafe(16),
            "agent_id": str(self.agent().pk),
            "old_jkt": self.jkt,
        }
        return sign_key_change(new, **(values | changes))

    def rotate(self, new: PrivateKey | None = None, *, key: str | None = None) -> Any:
        """Rotate to another key; on success this client signs with it from then on."""
        signer = LocalSigner(private := new or PrivateKey.generate(self.alg))
        body = {"new_key": self.key_change(signer)}
        answer = self.call("POST", "/v1/agents/me/key", body, key=key)
        if answer.status_code == OK:
            self.private, self.signer = private, signer
        return answer

    def ask(self, at: ServiceProvider, /, *, key: str | None = None, **changes: Any) -> Any:
        body = {"service_provider": at.slug, "capabilities": [READ_CALENDAR]}
        return self.call("POST", "/v1/grants", body | changes, key=key)


def enrolled(human: Human, *, now: datetime, days: int = 60, alg: Any = "EdDSA") -> AgentClient:
    """A client whose agent is active and owned by `human`."""
    client = AgentClient(alg)
    _, code = create_enrolment_code(human=human, actor=TESTER, now=now)
    manifest = verify_manifest(
        client.manifest(days=days), expected_audience=settings.ISSUER, now=int(now.timestamp())
    )
    register_agent(manifest=manifest, enrolment_code=code, actor=TESTER, now=now)
    return client


def grant_request(
    service_provider: ServiceProvider,
    *,
    capabilities: Sequence[Mapping[str, Any]] = (READ_CALENDAR,),
    envelope: Mapping[str, Any] | None = None,
    seconds: int = 30 * 86_400,
    reason: str = "",
) -> GrantRequest:
    return GrantRequest(
        service_provider=service_provider,
        capabilities=parse_capabilities(list(capabilities)),
        envelope=parse_envelope(dict(envelope or {})),
        seconds=seconds,
        reason=reason,
    )


def pending(
    client: AgentClient, service_provider: ServiceProvider, *, now: datetime, **terms: Any
) -> Grant:
    grant, _ = request_grant(
        agent=client.agent(), asked=grant_request(service_provider, **terms), actor=TESTER, now=now
    )
    return Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)


def approve(grant: Grant, human: Human, *, now: datetime, **changes: Any) -> Grant:
    """Approve and sign."""
    receipts.approve(grant, human, actor=TESTER, now=now, **changes)
    return grant


def approved(
    client: AgentClient, service_provider: ServiceProvider, *, now: datetime, **terms: Any
) -> Grant:
    grant = pending(client, service_provider, now=now, **terms)
    human = grant.agent.human
    assert human is not None
    return approve(grant, human, now=now)


def issue(client: AgentClient, grant: Grant, **options: Any) -> Any:
    return client.call("POST", "/v1/tokens", {"grant_id": str(grant.id)}, **options)


def claim_link(agent: Agent) -> tuple[str, str]:
    """The link and short code of the agent's current claim, as its registration returns them."""
    return claim_url(agent.id, agent.claim_number), claim_codes(agent.id, agent.claim_number)[0]


def claim(client: AgentClient, human: Human, *, now: datetime) -> None:
    claim_agent(agent=client.agent(), human=human, actor=TESTER, now=now)


def basic(service_provider: ServiceProvider, secret: str) -> dict[str, str]:
    token = base64.b64encode(f"{service_provider.pk}:{secret}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def assert_refused(response: Any, status: int, error: str) -> dict[str, Any]:
    """U1, U2, U5: the answer is this refusal, short, in JSON, and not cacheable."""
    body: dict[str, Any] = json.loads(response.content)
    assert (response.status_code, body["error"]) == (status, error), body
    assert body["error_description"]
    assert len(response.content) <= 1024
    assert response["Cache-Control"] == "no-store"
    return body


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def capability(obj: Mapping[str, Any]) -> Capability:
    return parse_capabilities([dict(obj)])[0]
