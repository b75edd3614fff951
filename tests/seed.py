"""Makes an approved grant straight through the services, for tests whose subject begins after the approval.

`python -m tests.seed JSON` runs against the database of its environment and prints what was made, one for each wish of a list. The passkey is left
out on purpose here; the flows that are about approving go through the pages.
"""

import json
import os
import secrets
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")


def seed(
    *,
    capabilities: list[dict[str, Any]],
    envelope: dict[str, Any],
    alg: Literal["EdDSA", "ES256"] = "EdDSA",
    owner: str = "",
    require_nonce: bool = False,
) -> dict[str, Any]:
    """A human, a service provider, an active agent and an approved grant; ids and secrets to act with.

    With `owner`, the e-mail of a human who exists, the grant is theirs to decide and left pending.
    """
    from django.conf import settings

    from agentauth.protocol.capability import parse_capabilities
    from agentauth.protocol.envelope import parse_envelope
    from agentauth.protocol.keys import LocalSigner, PrivateKey
    from agentauth.protocol.manifest import sign_manifest, verify_manifest
    from audit.services import Actor
    from registry.models import Human
    from registry.services import enrolment, grant_requests, grants, people, registration, service_providers

    now, system = datetime.now(UTC), Actor(kind="system", id="seed")
    suffix = secrets.token_hex(4)
    asked = parse_capabilities(capabilities)
    limits = parse_envelope(envelope)
    if owner:
        human = Human.objects.get(email=owner)
    else:
        human = people.create_human(email=f"alice-{suffix}@example.org", name="Alice", actor=system, now=now)
    provider, secret = service_providers.create_service_provider(
        name=f"Acme {suffix}",
        audience=f"http://127.0.0.1:8001/{suffix}",
        allowed=[capability.label for capability in asked],
        require_nonce=require_nonce,
        actor=system,
        now=now,
    )
    key = PrivateKey.generate(alg)
    manifest = sign_manifest(
        LocalSigner(key),
        audience=settings.ISSUER,
        issued_at=int(now.timestamp()),
        expires_at=int(now.timestamp()) + 60 * 86_400,
        jti=secrets.token_urlsafe(16),
        name="Research Assistant",
        description="",
        model_origin="models.example",
        capabilities=asked,
    )
    verified = verify_manifest(manifest, expected_audience=settings.ISSUER, now=int(now.timestamp()))
    _, code = enrolment.create_enrolment_code(human=human, actor=system, now=now)
    agent = registration.register_agent(manifest=verified, enrolment_code=code, actor=system, now=now).agent
    wish = grant_requests.GrantRequest(
        service_provider=provider, capabilities=asked, envelope=limits, seconds=30 * 86_400, reason="seed"
    )
    grant, _ = grant_requests.request_grant(agent=agent, asked=wish, actor=system, now=now)
    if not owner:
        grants.approve_grant(
            grant=grant,
            human=human,
            capabilities=asked,
            envelope=limits,
            valid_until=now + timedelta(days=7),
            actor=Actor(kind="human", id=str(human.pk)),
            now=now,
        )
    return {
        "human_id": str(human.pk),
        "agent_id": str(agent.pk),
        "agent_pem": key.to_pem().decode(),
        "grant_id": str(grant.pk),
        "client_id": str(provider.pk),
        "client_secret": secret,
        "audience": provider.audience,
    }


if __name__ == "__main__":
    django.setup()
    wishes = json.loads(sys.argv[1])
    print(json.dumps([seed(**wish) for wish in wishes] if isinstance(wishes, list) else seed(**wishes)))
