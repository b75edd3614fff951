"""approve_grant, deny_grant, suspend, resume: what a decision may be, and only one of two wins."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.errors import (
    AgentAuthError,
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from audit.models import Event
from audit.tests.event_openings import opened
from kms.tests.sealing import change
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agents import suspend_agent
from registry.services.grant_requests import withdraw_grant
from registry.services.grants import (
    deny_grant,
    latest_end,
    narrowed_members,
    resume_grant,
    revoke_grant,
    suspend_grant,
)
from registry.services.humans import suspend_human
from registry.services.service_providers import suspend_service_provider
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approve,
    approved,
    capability,
    pending,
)

pytestmark = pytest.mark.django_db


def test_OG_5_what_was_asked_and_what_was_given_both_stay(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    wish = [READ_CALENDAR, PAY]
    grant = pending(agent, service_provider, now=now, capabilities=wish, envelope={"max_uses": 9})
    given = capability({"type": "read", "resource": "calendar/work"})
    approve(grant, alice, now=now, capabilities=[given], envelope=parse_envelope({"max_uses": 2}))
    row = Grant.objects.get(pk=grant.pk)
    assert (row.status, row.version, row.human, row.decided_at) == ("approved", 1, alice, now)
    assert row.requested_capabilities == wish
    assert row.capabilities == [given.to_json()]
    assert narrowed_members(row) == ["capabilities", "envelope.max_uses"]
    data = opened(Event.objects.get(kind="registry.grant.approved"))
    assert data["requested_capabilities"] == wish
    assert data["capabilities"] == [given.to_json()]
    assert (data["requested_envelope"], data["envelope"]) == ({"max_uses": 9}, {"max_uses": 2})
    body = agent.call("GET", f"/v1/grants/{grant.id}").json()
    assert body["requested"]["capabilities"] == wish
    assert body["granted"] == {"capabilities": [given.to_json()], "envelope": {"max_uses": 2}}
    assert body["narrowed"] == ["capabilities", "envelope.max_uses"]


@pytest.mark.parametrize(
    "wider",
    [
        {"capabilities": [capability({"type": "read", "resource": "mail"})]},
        {"capabilities": [capability(PAY)]},
        {"capabilities": []},
        {"envelope": parse_envelope({})},
        {"envelope": parse_envelope({"max_uses": 4})},
    ],
)
def test_a_human_may_only_narrow(
    agent: AgentClient,
    alice: Human,
    service_provider: ServiceProvider,
    now: datetime,
    wider: dict[str, Any],
) -> None:
    grant = pending(agent, service_provider, now=now, envelope={"max_uses": 3})
    with pytest.raises(InvalidRequestError):
        approve(grant, alice, now=now, **wider)
    assert Grant.objects.get(pk=grant.pk).status == "pending"
    assert not Event.objects.filter(kind="registry.grant.approved").exists()


@pytest.mark.parametrize("off", [timedelta(days=30, seconds=1), timedelta(0)])
def test_OG_8_the_end_is_in_time(
    agent: AgentClient,
    alice: Human,
    service_provider: ServiceProvider,
    now: datetime,
    off: timedelta,
) -> None:
    grant = pending(agent, service_provider, now=now)
    with pytest.raises(InvalidRequestError):
        approve(grant, alice, now=now, valid_until=now + off)


def test_a_shorter_life_is_a_narrowing(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    approve(grant, alice, now=now, valid_until=now + timedelta(days=1))
    assert narrowed_members(grant) == ["valid_until"]


def test_only_the_agents_human_decides(
    agent: AgentClient, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    with pytest.raises(NotFoundError):
        approve(grant, bob, now=now)
    with pytest.raises(NotFoundError):
        deny_grant(grant=grant, human=bob, reason="", actor=TESTER, now=now)


def test_of_two_decisions_one_wins(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    stale = Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)
    approve(grant, alice, now=now)
    for act in (
        lambda: approve(stale, alice, now=now),
        lambda: deny_grant(grant=stale, human=alice, reason="", actor=TESTER, now=now),
        lambda: withdraw_grant(grant=stale, actor=TESTER, now=now),
    ):
        with pytest.raises((GrantChangedError, InvalidStateError)):
            act()
    assert Event.objects.filter(kind="registry.grant.approved").count() == 1
    assert Grant.objects.get(pk=grant.pk).status == "approved"


def test_a_request_past_its_hour_cannot_be_decided(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    late = now + timedelta(hours=1)
    with pytest.raises(GrantChangedError):
        approve(grant, alice, now=late)
    with pytest.raises(GrantChangedError):
        deny_grant(grant=grant, human=alice, reason="", actor=TESTER, now=late)


@pytest.mark.parametrize("what", ["agent", "service_provider", "human", "allow_list", "manifest"])
def test_AP_2_nothing_is_granted_after_a_change(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime, what: str
) -> None:
    grant = pending(agent, service_provider, now=now)
    if what == "agent":
        suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    elif what == "service_provider":
        suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    elif what == "human":
        suspend_human(human=alice, actor=TESTER, now=now)
    elif what == "allow_list":
        change(ServiceProvider.objects.all(), allowed=["read:mail"])
    else:
        Agent.objects.update(capabilities=[{"type": "read", "resource": "mail"}])
    fresh = Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)
    with pytest.raises(AgentAuthError) as caught:
        approve(fresh, Human.objects.get(pk=alice.pk), now=now)
    assert caught.value.code == ("not_found" if what == "human" else "grant_changed")
    assert Grant.objects.get(pk=grant.pk).status == "pending"


def test_a_denial_keeps_its_reason_as_a_commitment(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    deny_grant(grant=grant, human=alice, reason="Not on Sundays", actor=TESTER, now=now)
    event = Event.objects.get(kind="registry.grant.denied")
    assert "Sundays" not in str(event.data)
    assert event.openings.get(member="deny_reason").value == "Not on Sundays"
    body = agent.call("GET", f"/v1/grants/{grant.id}").json()
    assert (body["status"], body["deny_reason"], body["granted"]) == (
        "denied",
        "Not on Sundays",
        None,
    )


def test_a_suspension_by_a_person_is_undone_by_resuming(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    assert (grant.status, grant.version) == ("suspended", 2)
    resume_grant(grant=grant, actor=TESTER, now=now)
    assert (grant.status, grant.version) == ("approved", 2)
    with pytest.raises(InvalidStateError):
        resume_grant(grant=grant, actor=TESTER, now=now)


def test_what_an_admin_suspended_only_an_admin_resumes(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=True)
    with pytest.raises(InvalidStateError, match="administrator"):
        resume_grant(grant=grant, actor=TESTER, now=now)
    assert Grant.objects.get(pk=grant.pk).status == "suspended"
    resume_grant(grant=grant, actor=TESTER, now=now, by_admin=True)
    assert Grant.objects.get(pk=grant.pk).status == "approved"


@pytest.mark.parametrize(
    "cause", ["key_rotated", "manifest_changed", "audience_changed", "recovery"]
)
def test_other_suspensions_return_only_by_a_signed_approval(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime, cause: str
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now, cause=cause)
    with pytest.raises(InvalidStateError):
        resume_grant(grant=grant, actor=TESTER, now=now)
    assert "approval_url" in agent.call("GET", f"/v1/grants/{grant.id}").json()
    approve(grant, alice, now=now)
    assert (grant.status, grant.version, grant.suspension_cause) == ("approved", 2, "")


def test_a_suspension_by_a_person_needs_no_approval(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    with pytest.raises(GrantChangedError):
        approve(grant, alice, now=now)


def test_a_new_approval_gives_no_more_than_the_old_one(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now, envelope={"max_uses": 9})
    approve(
        grant,
        alice,
        now=now,
        envelope=parse_envelope({"max_uses": 2}),
        valid_until=now + timedelta(days=1),
    )
    suspend_grant(grant=grant, actor=TESTER, now=now, cause="key_rotated")
    assert latest_end(grant, now) <= now + timedelta(days=1)
    with pytest.raises(InvalidRequestError):
        approve(grant, alice, now=now)


def test_RV_7_revoking_twice_changes_nothing_the_second_time(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    for _ in range(2):
        revoke_grant(grant=grant, actor=TESTER, now=now)
    assert grant.status == "revoked"
    assert Event.objects.filter(kind="registry.grant.revoked").count() == 1


def test_a_pending_grant_is_not_revoked_but_withdrawn(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    with pytest.raises(InvalidStateError):
        revoke_grant(grant=grant, actor=TESTER, now=now)
    for _ in range(2):
        withdraw_grant(grant=grant, actor=TESTER, now=now)
    assert Event.objects.filter(kind="registry.grant.withdrawn").count() == 1
