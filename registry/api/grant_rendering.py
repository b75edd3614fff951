"""Renders a grant as JSON for its agent: the reply to a request, and the grant's state."""

import uuid
from datetime import datetime
from typing import Any

from django.conf import settings

from agentauth.protocol.encoding import timestamp
from registry.models import Grant
from registry.services.agent_claims import claim_is_live, claim_url
from registry.services.grants import narrowed_members
from registry.services.idempotency import IdempotentAnswer


def storable_answer(grant: Grant, *, now: datetime, status: int) -> IdempotentAnswer:
    """The answer to a grant request, as stored.

    Its claim link is a secret, so only the claim's number is stored; `render_request` makes the
    link.
    """
    body: dict[str, Any] = {
        "grant_id": str(grant.id),
        "status": grant.status_at(now),
        "expires_at": timestamp(grant.expires_at),
        "interval": grant.poll_interval,
    }
    if claim_is_live(grant.agent, now):
        body |= {"claim_number": grant.agent.claim_number, "agent_id": str(grant.agent_id)}
    return IdempotentAnswer(status, body)


def render_request(answer: IdempotentAnswer) -> dict[str, Any]:
    """The stored answer with its `approval_url`."""
    body = dict(answer.body)
    number, agent_id = body.pop("claim_number", None), body.pop("agent_id", None)
    grant_id = body["grant_id"]
    body["approval_url"] = _approval_url(
        grant_id, uuid.UUID(agent_id) if agent_id else None, number
    )
    # Sorted: the database returns the members of a stored answer in another order.
    return dict(sorted(body.items()))


def render_grant(grant: Grant, now: datetime) -> dict[str, Any]:
    """A grant: terms requested and granted, the decision, and the page on which a human decides."""
    status = grant.status_at(now)
    body: dict[str, Any] = {
        "grant_id": str(grant.id),
        "status": status,
        "grant_version": grant.version,
        "service_provider": {
            "id": str(grant.service_provider_id),
            "slug": grant.service_provider.slug,
            "name": grant.service_provider.name,
            "audience": grant.service_provider.audience,
        },
        "requested": {
            "capabilities": grant.requested_capabilities,
            "envelope": grant.requested_envelope,
            "lifetime_seconds": grant.requested_seconds,
        },
        "granted": None,
        "narrowed": narrowed_members(grant),
        "reason": grant.reason,
        "created_at": _time(grant.created_at),
        "expires_at": _time(grant.expires_at),
        "decided_at": _time(grant.decided_at),
        "deny_reason": grant.deny_reason or None,
        "valid_until": _time(grant.valid_until),
    }
    if grant.capabilities is not None:
        body["granted"] = {"capabilities": grant.capabilities, "envelope": grant.envelope}
    if status == Grant.Status.PENDING:
        link_works = claim_is_live(grant.agent, now)
        number = grant.agent.claim_number if link_works else None
        body["approval_url"] = _approval_url(str(grant.id), grant.agent_id, number)
        body["interval"] = grant.poll_interval
    elif grant.waits_for_signature(now):
        # Only a new signed approval ends this suspension; it is given on the same page.
        body["approval_url"] = _approval_url(str(grant.id), None, None)
    return body


def _approval_url(grant_id: str, agent_id: uuid.UUID | None, claim_number: int | None) -> str:
    if agent_id is not None and claim_number is not None:
        return f"{claim_url(agent_id, claim_number)}?grant={grant_id}"
    return f"{settings.PUBLIC_URL}/approvals/{grant_id}/"


def _time(at: datetime | None) -> str | None:
    return timestamp(at) if at is not None else None
