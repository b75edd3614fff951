"""Builds statements, whose hash a passkey signs, from rows (docs/protocol.md section 6)."""

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from django.conf import settings
from django.utils.translation import get_language

from agentauth.protocol.capability import parse_action
from agentauth.protocol.catalogue import CatalogueRef
from agentauth.protocol.passkey_statements import Statement
from agentauth.protocol.statement_building import (
    AgentRef,
    ServiceProviderRef,
    Signing,
    approval_statement,
    claim_statement,
    confirmation_statement,
)
from agentauth.protocol.statement_fields import NONCE_BYTES
from approvals.services.term_choices import Terms
from registry.models import Agent, Grant, Human, ServiceProvider
from verifier.models import Confirmation


def approval(
    *,
    grant: Grant,
    human: Human,
    decision: Literal["approve", "deny"],
    terms: Terms,
    second_step: bool,
    consent_text: str,
    now: datetime,
    deny_reason: str | None = None,
    routing: Mapping[str, Any] | None = None,
    catalogue: CatalogueRef | None = None,
) -> Statement:
    """The statement of an approval or a denial of exactly these terms.

    `catalogue`: the version whose words are in the text.
    """
    return approval_statement(
        signing(grant.agent, human, consent_text, now),
        decision=decision,
        grant_id=str(grant.pk),
        grant_version=grant.version,
        service_provider=provider_ref(grant.service_provider),
        capabilities=terms.capabilities,
        envelope=terms.envelope,
        valid_until=terms.valid_until,
        second_step=second_step,
        deny_reason=deny_reason,
        routing=routing,
        catalogue=catalogue,
    )


def confirmation(
    *,
    row: Confirmation,
    human: Human,
    decision: Literal["confirm", "deny"],
    consent_text: str,
    now: datetime,
    routing: Mapping[str, Any] | None = None,
    catalogue: CatalogueRef | None = None,
) -> Statement:
    """The statement of one confirmed or denied transaction; `catalogue` as for `approval`."""
    return confirmation_statement(
        signing(row.grant.agent, human, consent_text, now),
        decision=decision,
        confirmation_id=str(row.pk),
        grant_id=str(row.grant_id),
        grant_version=row.grant_version,
        service_provider=provider_ref(row.grant.service_provider),
        action=parse_action(row.action),
        idempotency_key=row.idempotency_key,
        routing=routing,
        catalogue=catalogue,
    )


def claim(*, agent: Agent, human: Human, consent_text: str, now: datetime) -> Statement:
    """The statement by which a human claims an agent."""
    return claim_statement(signing(agent, human, consent_text, now))


def signing(agent: Agent | None, human: Human, consent_text: str, now: datetime) -> Signing:
    """What every statement says: who signs, when, about which agent if any, the text they read."""
    return Signing(
        issuer=settings.ISSUER,
        rp_id=str(settings.RP_ID),
        human_id=str(human.pk),
        agent=AgentRef(str(agent.pk), agent.name, agent.jkt, agent.manifest_sha256)
        if agent
        else None,
        issued_at=now,
        nonce=secrets.token_bytes(NONCE_BYTES),
        consent_text=consent_text,
        language=get_language() or "en",
    )


def provider_ref(provider: ServiceProvider) -> ServiceProviderRef:
    """The service provider as statements name it."""
    return ServiceProviderRef(str(provider.pk), provider.name, provider.audience)
