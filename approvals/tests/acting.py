"""Events of decisions as the verifier records them, for tests of the activity pages."""

import json
from datetime import datetime
from typing import Any

from django.db import transaction

from approvals.tests.cast import browser
from audit import kinds
from audit.models import Event
from audit.services import Actor, record
from registry.models import Grant
from registry.tests.cast import AgentClient, basic, issue
from verifier.stores.decision_audit_events import split

PAID: dict[str, Any] = {
    "type": "transact",
    "resource": "payments",
    "amount": {"value": "80.00", "currency": "EUR"},
}
READ: dict[str, Any] = {"type": "read", "resource": "calendar/work"}


def act(
    grant: Grant,
    now: datetime,
    action: dict[str, Any] | None = None,
    *,
    kind: str = kinds.DECISION_ALLOWED,
    refused: tuple[str, str | None] | None = None,
    **data: Any,
) -> Event:
    """One decision about the grant's agent; `refused` is an error and its reason."""
    if refused:
        kind, data = kinds.DECISION_DENIED, data | {"error": refused[0]}
    plain, personal = split({"action": action or PAID, **data}, None if refused else "read:x")
    with transaction.atomic():
        return record(
            kind=kind,
            actor=Actor("service_provider", str(grant.service_provider_id)),
            at=now,
            outcome="denied" if refused else "success",
            reason=(refused[1] or refused[0]) if refused else None,
            agent_id=grant.agent_id,
            human_id=grant.agent.human_id,
            service_provider_id=grant.service_provider_id,
            grant_id=grant.pk,
            token_jti="t0ken-jti",
            data=plain,
            personal=personal,
        )


def verify(
    agent: AgentClient, grant: Grant, secret: str, action: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """The service asks the verifier about one call of the agent."""
    provider = grant.service_provider
    token, url = issue(agent, grant).json()["access_token"], f"{provider.audience}/v1/payments"
    body = {
        "token": token,
        "proof": agent.proof("POST", "", url=url, access_token=token),
        "method": "POST",
        "url": url,
        "action": action,
        "idempotency_key": "k",
    } | more
    answer = browser().post(
        "/v1/verify",
        json.dumps(body),
        content_type="application/json",
        headers=basic(provider, secret),
    )
    assert answer.status_code == 200, answer.content
    return dict(answer.json())
