"""The pages of an expired agent: its owner and an administrator suspend and resume it."""

from datetime import datetime, timedelta

import pytest

from approvals.models import Receipt
from approvals.tests.cast import Person
from registry.models import Agent, Grant
from registry.services.expiry import expire_everything
from registry.tests.cast import AgentClient, assert_refused

pytestmark = pytest.mark.django_db
SUSPEND = "Suspend agent"


@pytest.fixture
def expired(alice: Person, agent: AgentClient, paying: Grant, now: datetime) -> Agent:
    """Alice's, with an approved grant that is still valid."""
    alice.approve(paying)
    Agent.objects.update(expires_at=now - timedelta(seconds=1))
    expire_everything(now=now)
    row = agent.agent()
    assert row.status == "expired"
    return row


def status(row: Agent) -> str:
    row.refresh_from_db()
    return row.status


def test_its_owner_suspends_and_resumes_an_expired_agent(
    alice: Person, agent: AgentClient, expired: Agent
) -> None:
    path = f"/agents/{expired.pk}/"
    assert SUSPEND in alice.get(path).content.decode()
    assert alice.client.post(f"{path}suspend").status_code == 302
    assert status(expired) == "suspended"
    assert_refused(agent.replace(), 403, "agent_inactive")
    assert SUSPEND not in alice.get(path).content.decode()
    assert alice.resume(f"{path}resume/").status_code == 200
    told = Receipt.objects.get(kind="resume").consent_text.splitlines()
    assert told[2].startswith("The agent’s registration has expired.")
    assert agent.call("GET", "/v1/agents/me").json()["status"] == "expired"
    assert SUSPEND in alice.get(path).content.decode()
    assert agent.replace(later=6).json()["status"] == "active"


def test_an_administrator_suspends_and_resumes_an_expired_agent(
    admin: Person, agent: AgentClient, expired: Agent
) -> None:
    body = {"action": "suspend", "_selected_action": [str(expired.pk)]}
    admin.client.post("/admin/registry/agent/", body)
    assert (status(expired), expired.admin_holds) == ("suspended", True)
    assert_refused(agent.replace(), 403, "agent_inactive")
    assert admin.resume(f"/resume/agent/{expired.pk}/").status_code == 200
    assert agent.call("GET", "/v1/agents/me").json()["status"] == "expired"


def test_the_resume_text_of_an_agent_that_lives_on_says_no_end(
    alice: Person, agent: AgentClient, paying: Grant
) -> None:
    path = f"/agents/{paying.agent_id}/"
    alice.client.post(f"{path}suspend")
    assert alice.resume(f"{path}resume/").status_code == 200
    assert "has expired" not in Receipt.objects.get(kind="resume").consent_text
