"""Makes an approved grant straight through the services, for tests whose subject begins after the approval.

`python -m tests.seed JSON` runs against the database of its environment and prints what was made. The passkey is left
out on purpose here; the flows that are about approving go through the pages.
"""

import json
import os
import secrets
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")


def seed(*, capabilities: list[dict[str, Any]], envelope: dict[str, Any]) -> dict[str, Any]:
    """A human, a service provider, an active agent and an approved grant; ids and secrets to act with."""
    from django.conf import settings

    from agentauth.protocol.capability import parse_capabilities
    from agentauth.protocol.envelope import parse_envelope
    from agentauth.protocol.keys import LocalSigner, PrivateKey
    from agentauth.protocol.manifest import sign_manifest
    from audit.services import Actor
    from registry.models import Agent, Grant
    from registry.services import agents, grants, people, service_providers

    now, system = datetime.now(UTC), Actor(kind="system", id="seed")
    suffix = secrets.token_hex(4)
    asked = parse_capabilities(capabilities)
    human = people.create_human(
        email=f"alice-{suffix}@example.org", name="Alice", is_staff=False, actor=system, now=now
    )
    provider, secret = service_providers.create_service_provider(
        name=f"Acme {suffix}",
        audience=f"https://{suffix}.sp.example",
        allowed=[f"{capability.type}:{capability.resource}" for capability in asked],
        actor=system,
        now=now,
    )
    key = PrivateKey.generate()
    manifest = sign_manifest(
        LocalSigner(key),
        audience=settings.ISSUER,
        issued_at=int(now.timestamp()),
        expires_at=int(now.timestamp()) + 86_400 * 60,
        jti=secrets.token_urlsafe(16),
        name="Research Assistant",
        description="",
        model_origin="models.example",
        capabilities=asked,
    )
    agent, _ = agents.register_agent(
        manifest=manifest, proof_jkt=key.public.thumbprint, actor=system, now=now
    )
    Agent.objects.filter(pk=agent.pk).update(status=Agent.Status.ACTIVE, human=human)
    agent.refresh_from_db()
    grant, _ = grants.request_grant(
        agent=agent,
        service_provider=provider,
        capabilities=asked,
        envelope=parse_envelope(envelope),
        reason="seed",
        lifetime_seconds=None,
        actor=system,
        now=now,
    )
    grants.approve_grant(
        grant=grant,
        human=human,
        capabilities=asked,
        envelope=parse_envelope(envelope),
        valid_until=now + timedelta(days=7),
        actor=Actor(kind="human", id=str(human.pk)),
        now=now,
    )
    return {
        "human_id": str(human.pk),
        "agent_id": str(agent.pk),
        "agent_pem": key.to_pem().decode(),
        "grant_id": str(Grant.objects.get(pk=grant.pk).pk),
        "client_id": str(provider.pk),
        "client_secret": secret,
        "audience": provider.audience,
    }


if __name__ == "__main__":
    django.setup()
    print(json.dumps(seed(**json.loads(sys.argv[1]))))
