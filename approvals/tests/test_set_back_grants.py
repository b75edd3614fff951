"""Setting rows back as the serving role does not widen a narrowed grant again."""

from datetime import datetime
from typing import Any

import pytest

from agentauth.protocol.behavioural_envelope import parse_envelope
from approvals.models import Receipt
from approvals.tests.cast import Person
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.evidence_contradictions import find_contradictions
from registry.services.grants import resume_grant, suspend_grant
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approve,
    approved,
    assert_refused,
    capability,
    issue,
)
from tests import receipts

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]


def narrowed(
    agent: AgentClient, alice: Person, service_provider: ServiceProvider, now: datetime
) -> tuple[Grant, dict[str, Any]]:
    """A grant approved, narrowed, then suspended and resumed by its owner; and its original row."""
    grant = approved(agent, service_provider, now=now, capabilities=[READ_CALENDAR, PAY])
    assert issue(agent, grant).status_code == 201
    before: dict[str, Any] = {
        name: getattr(grant, name) for name in ("version", "capabilities", "envelope")
    }
    suspend_grant(grant=grant, cause=Grant.SuspensionCause.RECOVERY, actor=TESTER, now=now)
    approve(
        grant,
        alice.human,
        now=now,
        capabilities=(capability(READ_CALENDAR),),
        envelope=parse_envelope({"max_uses": 1}),
    )
    suspend_grant(grant=grant, actor=TESTER, now=now)
    resume_grant(grant=grant, actor=TESTER, now=now)
    assert issue(agent, grant).status_code == 201
    return grant, before


def test_DJ_17_a_grant_of_which_a_receipt_lost_its_text_gives_no_token(
    agent: AgentClient, alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    grant, before = narrowed(agent, alice, service_provider, now)
    # The trigger allows erasing texts of a deleted user: for a moment the agent is given to one.
    ghost = Human.objects.create(email="ghost@example.org", name="Ghost", created_at=now)
    Human.objects.filter(pk=ghost.pk).update(status=Human.Status.DELETED)
    Agent.objects.update(human=ghost)
    last = Receipt.objects.filter(pk=receipts.last_of(grant).pk)
    assert last.update(compact="", consent_text="", passkey_name="") == 1
    Agent.objects.update(human=alice.human)
    Grant.objects.update(**before | {"version": grant.version})
    assert_refused(issue(agent, grant), 400, "invalid_grant")
    assert str(grant.pk) in {found.subject for found in find_contradictions(now=now)}


def test_DJ_17_a_row_of_an_earlier_version_gives_no_token(
    agent: AgentClient, alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    """The process has cached that its terms were proved."""
    grant, before = narrowed(agent, alice, service_provider, now)
    Grant.objects.update(**before)
    assert_refused(issue(agent, grant), 400, "invalid_grant")
    assert str(grant.pk) in {found.subject for found in find_contradictions(now=now)}
