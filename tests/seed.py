"""Creates approved grants through the services, for tests that start after the approval.

`python -m tests.seed scenes|crowd|tokens|receipts|redis_home|events` reads JSON, acts on the
database of its environment and prints the result. It uses no page (tests/receipts.py); tests of
approving use the pages.
"""

import json
import os
import secrets
import sys
import uuid
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
    """A user, a service provider, an active agent and an approved grant; ids and secrets to act
    with.

    With `owner`, the e-mail of an existing user, the grant is pending and theirs to decide.
    """
    from registry.models import Human

    human = Human.objects.get(email=owner) if owner else _human()
    provider, secret = _service_provider(capabilities, require_nonce=require_nonce)
    made = _granted(human, provider, capabilities, envelope, alg, pending=bool(owner))
    return made | {
        "human_id": str(human.pk),
        "client_id": str(provider.pk),
        "client_secret": secret,
        "audience": provider.audience,
    }


# As many grants as may be requested in an hour.
AGENTS_EACH = 300


def crowd(
    *,
    agents: int,
    capabilities: list[dict[str, Any]],
    envelope: dict[str, Any],
    alg: Literal["EdDSA", "ES256"] = "EdDSA",
) -> dict[str, Any]:
    """One service provider and users with up to AGENTS_EACH agents, each with an approved grant.

    In one transaction, since no caller needs one of them earlier. For measurements.
    """
    from django.db import transaction

    with transaction.atomic():
        humans = [_human() for _ in range(0, agents, AGENTS_EACH)]
        provider, secret = _service_provider(capabilities, require_nonce=False)
        made = [
            _granted(
                humans[number // AGENTS_EACH], provider, capabilities, envelope, alg, pending=False
            )
            for number in range(agents)
        ]
    return {
        "client_id": str(provider.pk),
        "client_secret": secret,
        "audience": provider.audience,
        "agents": made,
    }


def tokens(grant_ids: list[str]) -> list[str]:
    """A new token of each grant."""
    from django.db import transaction

    from audit.services import Actor
    from registry.models import Grant
    from registry.services.tokens import issue_token, sign_issued

    now, issued = datetime.now(UTC), []
    grants = Grant.objects.select_related("agent").in_bulk(map(uuid.UUID, grant_ids))
    with transaction.atomic():
        for grant_id in grant_ids:
            agent = grants[uuid.UUID(grant_id)].agent
            actor = Actor(kind="agent", id=str(agent.pk))
            issued.append(issue_token(agent=agent, grant_id=grant_id, actor=actor, now=now))
    return [sign_issued(token.claims, now) for token in issued]


def signed_again(grant_ids: list[str]) -> list[str]:
    """Add a receipt to each grant that an earlier version's seeds left without; returns the ids."""
    from registry.models import Grant
    from tests import receipts

    # Before the upgrade its new columns do not exist.
    found = Grant.objects.filter(pk__in=grant_ids).defer("follows_at")
    grants = [each for each in found if not receipts.has_receipt(each)]
    for grant in grants:
        receipts.sign(grant, now=datetime.now(UTC))
    return [str(grant.pk) for grant in grants]


def redis_home() -> dict[str, Any]:
    """Put the first epoch in Redis, as if the verifier had always been there, before any call.

    A move would make all callers wait: for leases, and then for nonces.
    """
    from verifier.models import Home
    from verifier.stores.redis_probe import RedisProbe

    probe = RedisProbe()
    servers = sorted(probe.run_ids())
    probe.mark(1)
    Home.objects.update_or_create(
        pk=Home.ONLY,
        defaults={"kind": Home.Kind.REDIS, "servers": servers, "began_at": datetime.now(UTC)},
    )
    return {"servers": servers}


def events(count: int) -> None:
    """Add `count` events to the log, with their numbers."""
    from audit.tests.proving import grow

    grow(count, now=datetime.now(UTC))


def _human() -> Any:
    from audit.services import Actor
    from registry.services import humans as people

    system = Actor(kind="system", id="seed")
    email = f"alice-{secrets.token_hex(4)}@example.org"
    return people.create_human(email=email, name="Alice", actor=system, now=datetime.now(UTC))


def _service_provider(
    capabilities: list[dict[str, Any]], *, require_nonce: bool
) -> tuple[Any, str]:
    from django.conf import settings

    from agentauth.protocol.capability import parse_capabilities
    from audit.services import Actor
    from registry.services import service_providers

    suffix = secrets.token_hex(4)
    # Nothing is sent there.
    place = "http://127.0.0.1:8001" if settings.DEVELOPMENT else "https://services.example.org"
    return service_providers.create_service_provider(
        name=f"Acme {suffix}",
        audience=f"{place}/{suffix}",
        allowed=[capability.label for capability in parse_capabilities(capabilities)],
        require_nonce=require_nonce,
        actor=Actor(kind="system", id="seed"),
        now=datetime.now(UTC),
    )


def _granted(
    human: Any,
    provider: Any,
    capabilities: list[dict[str, Any]],
    envelope: dict[str, Any],
    alg: Literal["EdDSA", "ES256"],
    *,
    pending: bool,
) -> dict[str, Any]:
    """An active agent of `human` with a grant at `provider`, approved unless `pending`."""
    from django.conf import settings

    from agentauth.protocol.agent_manifest import sign_manifest, verify_manifest
    from agentauth.protocol.behavioural_envelope import parse_envelope
    from agentauth.protocol.capability import parse_capabilities
    from agentauth.protocol.keys import LocalSigner, PrivateKey
    from audit.services import Actor
    from registry.services import agent_registration, enrolment_codes, grant_requests
    from tests import receipts

    now, system = datetime.now(UTC), Actor(kind="system", id="seed")
    asked, limits = parse_capabilities(capabilities), parse_envelope(envelope)
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
    verified = verify_manifest(
        manifest, expected_audience=settings.ISSUER, now=int(now.timestamp())
    )
    _, code = enrolment_codes.create_enrolment_code(human=human, actor=system, now=now)
    agent = agent_registration.register_agent(
        manifest=verified, enrolment_code=code, actor=system, now=now
    ).agent
    wish = grant_requests.GrantRequest(
        service_provider=provider,
        capabilities=asked,
        envelope=limits,
        seconds=30 * 86_400,
        reason="seed",
    )
    grant, _ = grant_requests.request_grant(agent=agent, asked=wish, actor=system, now=now)
    if not pending:
        receipts.approve(
            grant,
            human,
            valid_until=(now + timedelta(days=7)).replace(microsecond=0),
            actor=Actor(kind="human", id=str(human.pk)),
            now=now,
        )
    return {
        "agent_id": str(agent.pk),
        "agent_pem": key.to_pem().decode(),
        "grant_id": str(grant.pk),
    }


def run_command(what: str, told: Any) -> Any:
    """Run the command of that name with the JSON arguments."""
    if what == "scenes":
        return [seed(**wish) for wish in told]
    if what == "crowd":
        return crowd(**told)
    if what == "tokens":
        return tokens(told)
    if what == "receipts":
        return signed_again(told)
    if what == "redis_home":
        return redis_home()
    if what == "events":
        return events(told)
    sys.exit(f"{what}: nothing of that name is seeded")


if __name__ == "__main__":
    django.setup()
    print(json.dumps(run_command(sys.argv[1], json.loads(sys.stdin.read()))))
