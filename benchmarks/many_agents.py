"""Creates many agents with approved grants and live tokens, for `--part many` of benchmarks.verify.

`python -m benchmarks.many_agents agents|tokens` reads JSON, acts on the database of its environment
and prints the result. One agent with its grant exists (tests/seed.py). The others are copies of its
rows: a person per 300 agents; an agent with its own key and seal; a grant; and the receipt of that
grant's approval, signed by a passkey and by the registry's receipt key. A token is a row with its
claims, signed with the registry's token key. A PostgreSQL superuser inserts 1,000 rows at a time,
without triggers, one of which lets grants begin only as pending.

Left out is what no verifier reads: the events of these acts, and manifests by the copies' own keys.
"""

import json
import os
import secrets
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import django
from django.db import connection, models, transaction

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
    django.setup()

from django.conf import settings  # isort: split

from agentauth.protocol.behavioural_envelope import EMPTY, parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.keys import Algorithm, LocalSigner, PrivateKey
from agentauth.protocol.token import MAX_TOKEN_SECONDS, build_claims
from approvals.models import Receipt
from audit.new_ids import new_id
from kms.services import signer
from registry.models import Agent, Grant, Human, Token
from registry.services.pairwise_subjects import pairwise_subject
from registry.services.tokens import sign_issued
from tests import receipts
from tests.seed import AGENTS_EACH

ROWS = 1_000
M = TypeVar("M", bound=models.Model)


def agents(agent_id: str, count: int, alg: Algorithm) -> list[dict[str, str]]:
    """`count` copies of this agent and its grant: `agent_id`, `agent_pem`, `grant_id` of each."""
    grant = Grant.objects.select_related("agent__human", "service_provider").get(agent_id=agent_id)
    humans = [_person(grant.agent.human) for _ in range(0, count, AGENTS_EACH)]
    Human.objects.bulk_create(humans)
    made: list[dict[str, str]] = []
    for start in range(0, count, ROWS):
        numbers = range(start, min(start + ROWS, count))
        copies = [copies_of(grant, humans[number // AGENTS_EACH], alg) for number in numbers]
        pems, new_agents, grants, new_receipts = zip(*copies, strict=True)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")
            Agent.objects.bulk_create(new_agents)
            Grant.objects.bulk_create(grants)
            Receipt.objects.bulk_create(new_receipts)
        made += [
            {"agent_id": str(own.agent_id), "agent_pem": pem, "grant_id": str(own.pk)}
            for pem, own in zip(pems, grants, strict=True)
        ]
    return made


def tokens(grant_ids: Sequence[str]) -> Iterator[str]:
    """A token for each of these grants, which have the first one's terms. Valid for 900 s."""
    first = Grant.objects.select_related("service_provider").get(pk=grant_ids[0])
    capabilities, envelope = parse_capabilities(first.capabilities), parse_envelope(first.envelope)
    provider = first.service_provider
    subject = cache(lambda human_id: pairwise_subject(human_id, provider.pk, version=None))
    whose = Grant.objects.values_list("pk", "agent_id", "human_id", "agent__jkt")
    for start in range(0, len(grant_ids), ROWS):
        ids = [uuid.UUID(each) for each in grant_ids[start : start + ROWS]]
        found = {row[0]: row[1:] for row in whose.filter(pk__in=ids)}
        now = datetime.now(UTC).replace(microsecond=0)
        rows = []
        for grant_id in ids:
            agent_id, human_id, jkt = found[grant_id]
            claims = build_claims(
                issuer=settings.ISSUER,
                audience=provider.audience,
                subject=subject(human_id),
                agent_id=str(agent_id),
                jti=str(uuid.uuid4()),
                issued_at=int(now.timestamp()),
                expires_at=int(now.timestamp()) + MAX_TOKEN_SECONDS,
                jkt=jkt,
                grant_id=str(grant_id),
                grant_version=first.version,
                capabilities=capabilities,
                has_envelope=envelope != EMPTY,
            )
            rows.append(_token(claims, now))
        Token.objects.bulk_create(rows)
        yield from (sign_issued(row.claims, now) for row in rows)


def copies_of(grant: Grant, human: Human, alg: Algorithm) -> tuple[str, Agent, Grant, Receipt]:
    """A new agent's key (PEM), and unsaved rows: the agent, its grant, the receipt."""
    key, now = PrivateKey.generate(alg), datetime.now(UTC)
    public = LocalSigner(key).public
    agent = copy_of(grant.agent, human=human, jkt=public.thumbprint, public_jwk=public.jwk)
    agent.set_seal()
    own = copy_of(grant, agent=agent, human=human, service_provider=grant.service_provider)
    receipt = receipts.approval_of(own, receipt_signer(), now=now)
    # As for a current receipt; otherwise the jobs would parse each receipt for it.
    receipt.kid = receipt_signer().kid
    return key.to_pem().decode(), agent, own, receipt


@cache
def receipt_signer() -> Any:
    """The key that signs receipts now."""
    return signer(purpose="receipt", now=datetime.now(UTC))


def _person(first: Human | None) -> Human:
    assert first is not None
    return copy_of(first, email=f"alice-{secrets.token_hex(8)}@example.org")


def _token(claims: Mapping[str, Any], now: datetime) -> Token:
    return Token(
        jti=claims["jti"],
        grant_id=claims["grant_id"],
        grant_version=claims["grant_version"],
        jkt=claims["cnf"]["jkt"],
        claims=claims,
        issued_at=now,
        expires_at=now + timedelta(seconds=MAX_TOKEN_SECONDS),
    )


def copy_of(row: M, **changes: Any) -> M:
    """The row under a new id, not saved yet."""
    named = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}  # noqa: SLF001 — Django's documented API
    for name, value in {"id": new_id(), **changes}.items():
        named.pop(f"{name}_id", None)
        named[name] = value
    return type(row)(**named)


if __name__ == "__main__":
    told = json.load(sys.stdin)
    print(json.dumps(agents(**told) if sys.argv[1] == "agents" else list(tokens(told))))
