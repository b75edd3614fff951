"""The database enforces states and uniqueness against every writer."""

from datetime import datetime
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.db.models import Model

from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services import grants
from registry.services.agents import revoke_agent
from registry.tests.cast import TESTER, AgentClient, approved, pending

pytestmark = pytest.mark.django_db

FORBIDDEN = [
    (Agent, "active", "unclaimed"),
    (Agent, "revoked", "active"),
    (Agent, "revoked", "suspended"),
    (Agent, "suspended", "unclaimed"),
    (Grant, "denied", "approved"),
    (Grant, "expired", "approved"),
    (Grant, "withdrawn", "pending"),
    (Grant, "revoked", "approved"),
    (Grant, "approved", "pending"),
    (Grant, "approved", "denied"),
    (ServiceProvider, "revoked", "active"),
]
ROADS = {
    "active": [],
    "approved": [],
    "revoked": ["revoked"],
    "suspended": ["suspended"],
    "denied": ["denied"],
    "expired": ["expired"],
    "withdrawn": ["withdrawn"],
}


@pytest.mark.parametrize(("model", "old", "new"), FORBIDDEN)
def test_a_state_that_may_not_follow_is_refused_by_the_database(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    model: type[Model],
    old: str,
    new: str,
) -> None:
    never_approved = old in {"denied", "withdrawn"}
    make = pending if never_approved else approved
    rows: dict[type[Model], Any] = {Agent: agent.agent(), ServiceProvider: service_provider}
    row = rows[model] if model in rows else make(agent, service_provider, now=now)
    for step in ROADS[old]:
        model._default_manager.filter(pk=row.pk).update(status=step)
    with pytest.raises(IntegrityError), transaction.atomic():
        model._default_manager.filter(pk=row.pk).update(status=new)
    row.refresh_from_db()
    assert row.status == old


def test_a_grant_is_born_pending_and_an_agent_unclaimed_or_active(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    grant.pk = None
    grant._state.adding = True
    with pytest.raises(IntegrityError), transaction.atomic():
        grant.save(force_insert=True)
    row = agent.agent()
    row.pk, row.jkt, row.status = None, "x" * 43, "suspended"
    with pytest.raises(IntegrityError), transaction.atomic():
        row.save(force_insert=True)


def test_one_key_is_one_agent(agent: AgentClient) -> None:
    row = agent.agent()
    row.pk = None
    with pytest.raises(IntegrityError), transaction.atomic():
        row.save(force_insert=True)


def test_one_identical_pending_request_per_agent(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    grant.pk = None
    with pytest.raises(IntegrityError), transaction.atomic():
        grant.save(force_insert=True)


def test_an_approved_grant_is_whole(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    with pytest.raises(IntegrityError), transaction.atomic():
        Grant.objects.filter(pk=grant.pk).update(status="approved")


def test_one_address_is_one_human_in_any_case(alice: Human, now: datetime) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Human.objects.create(email="ALICE@example.org", name="Another", created_at=now)


def test_RV_2_agent_cannot_stop_its_revocation_by_a_timed_withdrawal(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent withdraws a request between the read and the swap: revoking goes on."""
    grant = pending(agent, service_provider, now=now)
    ending = grants.end_grant

    def withdrawn_first(stale: Grant, *rest: Any, **named: Any) -> None:
        Grant.objects.filter(pk=grant.pk).update(status=Grant.Status.WITHDRAWN, ended_at=now)
        ending(stale, *rest, **named)

    monkeypatch.setattr(grants, "end_grant", withdrawn_first)
    revoke_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert agent.agent().status == Agent.Status.REVOKED
