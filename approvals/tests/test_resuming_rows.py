"""Which suspension a party may lift, and what the text says about it (SA-2)."""

from datetime import datetime

import pytest
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError
from approvals import resume_consent_texts
from approvals.services.resume_signing import Party, Row, find_suspension
from approvals.tests.cast import Person
from registry.models import Grant, ServiceProvider
from registry.services.agents import suspend_agent
from registry.services.grants import suspend_grant
from registry.tests.cast import TESTER, AgentClient, approved

pytestmark = pytest.mark.django_db


@pytest.fixture
def grant(agent: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    return approved(agent, service_provider, now=now)


@pytest.mark.parametrize("kind", ["agent", "grant", "human", "service_provider"])
def test_what_is_not_suspended_is_not_resumed(
    grant: Grant, alice: Person, now: datetime, kind: str
) -> None:
    rows: dict[str, Row] = {
        "agent": grant.agent,
        "grant": grant,
        "human": alice.human,
        "service_provider": grant.service_provider,
    }
    with pytest.raises(InvalidStateError):
        find_suspension(rows[kind], party="administrator", now=now)


@pytest.mark.parametrize(
    ("stopped_by", "other"), [("owner", "administrator"), ("administrator", "owner")]
)
def test_SA_2_a_party_finds_no_suspension_of_the_other(
    grant: Grant, now: datetime, stopped_by: Party, other: Party
) -> None:
    suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=stopped_by == "administrator")
    assert find_suspension(grant, party=stopped_by, now=now).row == grant
    with pytest.raises(InvalidStateError):
        find_suspension(grant, party=other, now=now)


def test_an_agent_has_expired_at_the_moment_of_its_end(grant: Grant, now: datetime) -> None:
    agent = grant.agent
    suspend_agent(agent=agent, actor=TESTER, now=now)
    agent.expires_at = now
    assert resume_consent_texts.has_expired() in find_suspension(agent, party="owner", now=now).text


@pytest.mark.parametrize("path", ["/resume/agent/", "/denials/"])
def test_a_list_of_nothing_says_so_and_leads_back_to_its_rows(admin: Person, path: str) -> None:
    page = admin.get(path).content.decode()
    assert "Nothing was chosen. Choose rows in the list first." in page
    assert "You sign each" not in page
    kind = "grant" if path == "/denials/" else "agent"
    assert f'href="/admin/registry/{kind}/">Back to the list</a>' in page


def test_a_list_that_can_resume_nothing_asks_for_no_signature(grant: Grant, admin: Person) -> None:
    path = f"/resume/agent/?id={grant.agent_id}"
    assert "You sign each" not in admin.get(path).content.decode()
    suspend_agent(agent=grant.agent, actor=TESTER, now=timezone.now(), by_admin=True)
    assert "You sign each" in admin.get(path).content.decode()


@pytest.mark.parametrize("kind", ["planet", "key", "key_certificate", "invitation"])
def test_a_list_of_a_kind_that_is_not_resumed_is_not_found(admin: Person, kind: str) -> None:
    assert admin.get(f"/resume/{kind}/").status_code == 404


@pytest.mark.parametrize(("state", "said"), [("active", "now"), ("suspended", "once it is active")])
def test_a_suspended_agent_may_do_nothing_now(
    grant: Grant, alice: Person, state: str, said: str
) -> None:
    if state == "suspended":
        suspend_agent(agent=grant.agent, actor=TESTER, now=timezone.now())
    page = alice.get(f"/agents/{grant.agent_id}/").content.decode()
    assert f"What it may do {said}" in page
