"""Owner and administrator each lift only their own suspension, as they read it (SA-1, SA-2)."""

from datetime import datetime, timedelta
from functools import partial

import pytest

from agentauth.protocol.errors import GrantChangedError, InvalidStateError
from audit import kinds
from audit.models import Event
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agents import resume_agent, revoke_agent, suspend_agent
from registry.services.expiry import expire_everything
from registry.services.grants import resume_grant, suspend_grant
from registry.services.humans import resume_human, suspend_human
from registry.services.service_providers import resume_service_provider, suspend_service_provider
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused, claim

pytestmark = pytest.mark.django_db
PARTIES = [False, True]


@pytest.mark.parametrize("by_admin", PARTIES)
def test_SA_2_one_party_never_lifts_the_others_suspension_of_an_agent(
    agent: AgentClient, now: datetime, *, by_admin: bool
) -> None:
    row = agent.agent()
    suspend_agent(agent=row, actor=TESTER, now=now, by_admin=by_admin)
    with pytest.raises(InvalidStateError, match="Only"):
        resume_agent(agent=row, actor=TESTER, now=now, by_admin=not by_admin)
    assert agent.agent().status == "suspended"
    with pytest.raises(InvalidStateError):
        suspend_agent(agent=row, actor=TESTER, now=now, by_admin=by_admin)
    suspend_agent(agent=row, actor=TESTER, now=now, by_admin=not by_admin)
    resume_agent(agent=row, actor=TESTER, now=now, by_admin=by_admin)
    assert (row.status, row.admin_holds, row.owner_holds) == ("suspended", not by_admin, by_admin)
    resume_agent(agent=row, actor=TESTER, now=now, by_admin=not by_admin)
    assert (row.status, row.admin_holds, row.owner_holds) == ("active", False, False)


@pytest.mark.parametrize("by_admin", PARTIES)
def test_SA_2_one_party_never_lifts_the_others_suspension_of_a_grant(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, *, by_admin: bool
) -> None:
    row = approved(agent, service_provider, now=now)
    suspend_grant(grant=row, actor=TESTER, now=now, by_admin=by_admin)
    with pytest.raises(InvalidStateError, match="Only"):
        resume_grant(grant=row, actor=TESTER, now=now, by_admin=not by_admin)
    with pytest.raises(InvalidStateError):
        suspend_grant(grant=row, actor=TESTER, now=now, by_admin=by_admin)
    suspend_grant(grant=row, actor=TESTER, now=now, by_admin=not by_admin)
    resume_grant(grant=row, actor=TESTER, now=now, by_admin=by_admin)
    assert (row.status, row.admin_holds, row.owner_holds) == ("suspended", not by_admin, by_admin)
    resume_grant(grant=row, actor=TESTER, now=now, by_admin=not by_admin)
    assert (row.status, row.admin_holds, row.owner_holds) == ("approved", False, False)


def test_SA_1_an_agent_suspended_again_is_not_resumed_as_before(
    agent: AgentClient, now: datetime
) -> None:
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    read = agent.agent()
    resume_agent(agent=agent.agent(), actor=TESTER, now=now)
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert agent.agent().suspensions == 2
    with pytest.raises(GrantChangedError):
        resume_agent(agent=read, actor=TESTER, now=now)
    assert agent.agent().status == "suspended"


def test_SA_1_resuming_fails_if_the_other_party_resumed_in_between(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    """The caller read that it would stay suspended."""
    grant = approved(agent, service_provider, now=now)
    for by_admin in PARTIES:
        suspend_agent(agent=agent.agent(), actor=TESTER, now=now, by_admin=by_admin)
        suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=by_admin)
    read, read_grant = agent.agent(), Grant.objects.select_related("agent").get(pk=grant.pk)
    resume_agent(agent=agent.agent(), actor=TESTER, now=now, by_admin=True)
    resume_grant(grant=grant, actor=TESTER, now=now, by_admin=True)
    with pytest.raises(GrantChangedError):
        resume_agent(agent=read, actor=TESTER, now=now)
    with pytest.raises(GrantChangedError):
        resume_grant(grant=read_grant, actor=TESTER, now=now)
    assert (agent.agent().status, Grant.objects.get().status) == ("suspended", "suspended")


def test_SA_1_a_human_suspended_again_is_not_resumed_as_before(alice: Human, now: datetime) -> None:
    suspend_human(human=alice, actor=TESTER, now=now)
    read = Human.objects.get(pk=alice.pk)
    resume_human(human=alice, actor=TESTER, now=now)
    suspend_human(human=alice, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        resume_human(human=read, actor=TESTER, now=now)
    assert Human.objects.get(pk=alice.pk).status == "suspended"


def test_SA_1_a_service_provider_suspended_again_is_not_resumed_as_before(
    service_provider: ServiceProvider, now: datetime
) -> None:
    suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    read = ServiceProvider.objects.get()
    resume_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        resume_service_provider(service_provider=read, actor=TESTER, now=now)
    assert ServiceProvider.objects.get().status == "suspended"


def test_a_revoked_agent_is_neither_suspended_nor_resumed(
    agent: AgentClient, now: datetime
) -> None:
    row = agent.agent()
    suspend_agent(agent=row, actor=TESTER, now=now)
    revoke_agent(agent=row, actor=TESTER, now=now)
    for act in (suspend_agent, resume_agent):
        with pytest.raises(InvalidStateError):
            act(agent=row, actor=TESTER, now=now)
    assert Agent.objects.get().status == "revoked"


@pytest.mark.parametrize("by_admin", PARTIES)
@pytest.mark.parametrize("recorded", [False, True])
def test_no_renewal_lifts_the_suspension_of_an_expired_agent(
    agent: AgentClient, now: datetime, *, recorded: bool, by_admin: bool
) -> None:
    Agent.objects.update(expires_at=now - timedelta(seconds=1))
    assert (
        expire_everything(now=now)["agents"] == 1 if recorded else agent.agent().status == "active"
    )
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now, by_admin=by_admin)
    assert_refused(agent.replace(), 403, "agent_inactive")
    assert agent.agent().status == "suspended"
    resume_agent(agent=agent.agent(), actor=TESTER, now=now, by_admin=by_admin)
    assert Event.objects.get(kind=kinds.AGENT_RESUMED).data["status"] == "expired"
    assert agent.call("GET", "/v1/agents/me").json()["status"] == "expired"
    assert agent.replace(later=6).json()["status"] == "active"


def test_event_names_the_owner_who_claimed_the_agent_meanwhile(alice: Human, now: datetime) -> None:
    for act, kind in (
        (partial(suspend_agent, by_admin=True), kinds.AGENT_SUSPENDED),
        (revoke_agent, kinds.AGENT_REVOKED),
    ):
        client = AgentClient()
        assert client.register().status_code == 201
        read = client.agent()
        claim(client, alice, now=now)
        act(agent=read, actor=TESTER, now=now)
        assert Event.objects.get(kind=kind).human_id == alice.pk


def test_refused_suspension_says_which_agents_can_be_suspended(
    agent: AgentClient, now: datetime
) -> None:
    row = agent.agent()
    suspend_agent(agent=row, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError, match="suspended by the other party only"):
        suspend_agent(agent=row, actor=TESTER, now=now)
    suspend_agent(agent=row, actor=TESTER, now=now, by_admin=True)


def test_expired_unclaimed_agent_cannot_be_suspended(agent: AgentClient, now: datetime) -> None:
    """It has no owner and holds no grant."""
    Agent.objects.update(status="expired", human=None)
    with pytest.raises(InvalidStateError, match="claimed"):
        suspend_agent(agent=agent.agent(), actor=TESTER, now=now, by_admin=True)
