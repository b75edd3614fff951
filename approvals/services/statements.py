"""Builds the statement of each kind from rows: the bytes a passkey signs (docs/protocol.md section 6)."""

import hashlib
import secrets
from datetime import datetime
from typing import Any

from django.conf import settings

from agentauth.protocol.approval import (
    Statement,
    approval_statement,
    claim_statement,
    confirmation_statement,
)
from agentauth.protocol.encoding import b64u_encode, timestamp
from approvals.services.terms import Terms
from registry.models import Agent, Grant, Human, ServiceProvider
from verifier.models import Confirmation

NONCE_BYTES = 32


def approval(
    *,
    grant: Grant,
    human: Human,
    decision: str,
    terms: Terms,
    second_step: bool,
    consent_text: str,
    language: str,
    now: datetime,
    deny_reason: str | None = None,
) -> Statement:
    """The statement of an approval (`approve`) or a denial (`deny`) of exactly these terms."""
    return approval_statement(
        **_head(grant.agent, human, decision, consent_text, language, now),
        grant_id=str(grant.pk),
        grant_version=grant.version,
        service_provider=_provider(grant.service_provider),
        capabilities=[each.to_json() for each in terms.capabilities],
        envelope=terms.envelope.to_json(),
        valid_until=timestamp(terms.valid_until),
        second_step=second_step,
        deny_reason=deny_reason,
    )


def confirmation(
    *,
    row: Confirmation,
    human: Human,
    decision: str,
    consent_text: str,
    language: str,
    now: datetime,
) -> Statement:
    """The statement of one confirmed (`confirm`) or denied (`deny`) transaction."""
    return confirmation_statement(
        **_head(row.grant.agent, human, decision, consent_text, language, now),
        confirmation_id=str(row.pk),
        grant_id=str(row.grant_id),
        grant_version=row.grant_version,
        service_provider=_provider(row.grant.service_provider),
        action=row.action,
        idempotency_key=row.idempotency_key,
    )


def claim(*, agent: Agent, human: Human, consent_text: str, language: str, now: datetime) -> Statement:
    """The statement by which a human takes an agent as theirs."""
    return claim_statement(**_head(agent, human, "claim", consent_text, language, now))


def _head(
    agent: Agent, human: Human, decision: str, consent_text: str, language: str, now: datetime
) -> dict[str, Any]:
    return {
        "decision": decision,
        "issuer": settings.ISSUER,
        "rp_id": settings.RP_ID,
        "human_id": str(human.pk),
        "agent": {
            "id": str(agent.pk),
            "name": agent.name,
            "jkt": agent.jkt,
            "manifest_sha256": agent.manifest_sha256,
        },
        "issued_at": timestamp(now),
        "nonce": b64u_encode(secrets.token_bytes(NONCE_BYTES)),
        "consent_sha256": b64u_encode(hashlib.sha256(consent_text.encode()).digest()),
        "language": language,
    }


def _provider(provider: ServiceProvider) -> dict[str, str]:
    return {"id": str(provider.pk), "name": provider.name, "audience": provider.audience}
