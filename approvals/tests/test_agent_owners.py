"""An owner written into an agent's row gives the person nothing, on any page or act (ADR 49)."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.errors import GrantChangedError, InvalidStateError, NotFoundError
from approvals.notifications.outbox import add_waiting
from approvals.services.pending_items import waiting_for
from approvals.services.routed_requests import routed_to, tell_approvers
from approvals.tests.cast import ORIGIN, Person
from approvals.tests.notifying import by_mail
from approvals.tests.test_pages import asking, stray
from audit.models import Event
from kms.models import EndedSeal
from registry.models import Agent, EnrolmentCode, Grant, ServiceProvider
from registry.services.agent_claims import claim_agent
from registry.services.agents import suspend_agent
from registry.services.approvers import add_member, create_group, create_rule
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.grants import deny_grant, suspend_grant
from registry.tests.cast import TESTER, AgentClient, approve, assert_refused, claim, claim_link
from registry.tests.written_rows import write
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import confirm, deny

__all__ = ["asking", "stray"]
pytestmark = pytest.mark.django_db


@pytest.fixture
def given(agent: AgentClient, bob: Person) -> Callable[[], None]:
    """Alice's agent, as an attacker who can write rows gives it to Bob."""
    return lambda: write(agent.agent(), human=bob.human)


PAGES = (
    "/agents/{agent}/",
    "/agents/{agent}/revoke/",
    "/agents/{agent}/resume/",
    "/approvals/{waiting}/",
    "/approvals/{granted}/receipt/",
    "/approvals/{granted}/revoke/",
    "/confirmations/{asking}/",
    "/activity/{registered}/",
    "/v1/grants/{granted}/receipt",
)


def test_DJ_17_no_page_of_an_agent_is_shown_to_an_owner_in_its_row(
    alice: Person,
    bob: Person,
    stray: AgentClient,
    asking: Confirmation,
    reading: Grant,
    given: Callable[[], None],
    now: datetime,
) -> None:
    suspend_agent(agent=reading.agent, actor=TESTER, now=now)
    registered = Event.objects.filter(kind="registry.agent.registered", agent_id=reading.agent_id)
    names = {
        "agent": reading.agent_id,
        "waiting": reading.pk,
        "granted": asking.grant_id,
        "asking": asking.pk,
        "registered": registered.get().pk,
    }
    # An event from before the agent was claimed names only the agent.
    claim(stray, alice.human, now=now)
    before = Event.objects.get(kind="registry.agent.registered", agent_id=stray.agent().pk)
    every = [page.format(**names) for page in PAGES]
    theirs = {path: alice.get(path).status_code for path in [*every, f"/activity/{before.pk}/"]}
    assert set(theirs.values()) == {200}, theirs
    given()
    write(stray.agent(), human=bob.human)
    for path in theirs:
        assert bob.get(path).status_code == 404, path
    assert bob.client.post(f"/agents/{reading.agent_id}/suspend").status_code == 404


def test_DJ_17_lists_leave_out_an_agent_whose_owner_is_written(
    bob: Person, reading: Grant, asking: Confirmation, given: Callable[[], None], now: datetime
) -> None:
    given()
    name = reading.agent.name
    for path in ("/agents/", "/approvals/", "/activity/", "/agents/suspend-all/"):
        assert name not in bob.get(path).content.decode(), path
    assert waiting_for(bob.human, now).count == 0
    assert bob.client.post("/agents/suspend-all/suspend").status_code == 302
    assert Agent.objects.get(pk=reading.agent_id).status == "active"
    found = json.loads(b"".join(bob.press("/settings/data").streaming_content))
    assert (found["agents"], found["grants"], found["confirmations"]) == ([], [], [])


def test_DJ_17_no_one_is_told_of_what_waits_for_a_written_owner(
    alice: Person,
    bob: Person,
    admin: Person,
    reading: Grant,
    asking: Confirmation,
    given: Callable[[], None],
    now: datetime,
) -> None:
    for person in (alice, bob, admin):
        by_mail(person.human, now)
    # A new channel is not told of what waited before it.
    Grant.objects.update(created_at=now)
    given()
    assert add_waiting(now=now) == 0
    write(reading.agent, human=alice.human)
    assert add_waiting(now=now) == 2
    given()
    sent_to(admin, now)
    assert add_waiting(now=now) + tell_approvers(now=now) == 0
    assert waiting_for(admin.human, now, routed_to(admin.human, now)).count == 0
    assert admin.get(f"/approvals/{reading.pk}/").status_code == 404
    write(reading.agent, human=alice.human)
    assert tell_approvers(now=now) == 2
    assert waiting_for(admin.human, now, routed_to(admin.human, now)).count == 2
    assert admin.get(f"/approvals/{reading.pk}/").status_code == 200


def sent_to(person: Person, now: datetime) -> None:
    """From now on, a rule sends every request to this person."""
    group = create_group(name="Finance", wait_minutes=9, next_group=None, actor=TESTER, now=now)
    add_member(group=group, human=person.human, actor=TESTER, now=now)
    create_rule(
        name="All",
        group=group,
        service_provider=None,
        action_type="",
        above=None,
        actor=TESTER,
        now=now,
    )


def test_DJ_17_an_agent_whose_seal_has_ended_is_no_ones_either(
    alice: Person, admin: Person, reading: Grant, asking: Confirmation, now: datetime
) -> None:
    """The row is as a service wrote it, but was replaced since."""
    for person in (alice, admin):
        by_mail(person.human, now)
    Grant.objects.update(created_at=now)
    EndedSeal.objects.create(seal=str(reading.agent.seal))
    names = {"agent": reading.agent_id, "waiting": reading.pk, "asking": asking.pk}
    for page in ("/agents/{agent}/", "/approvals/{waiting}/", "/confirmations/{asking}/"):
        assert alice.get(page.format(**names)).status_code == 404
    assert waiting_for(alice.human, now).count == 0
    assert add_waiting(now=now) == 0
    with pytest.raises(NotFoundError):
        deny_grant(grant=reading, human=alice.human, reason="", actor=TESTER, now=now)
    sent_to(admin, now)
    assert routed_to(admin.human, now).count == 0
    assert tell_approvers(now=now) == 0


def test_DJ_17_a_written_owner_decides_nothing_even_on_an_older_page(
    alice: Person, bob: Person, reading: Grant, asking: Confirmation, given: Callable[[], None]
) -> None:
    now = asking.created_at
    options = alice.statement(reading, drawn=alice.drawn(reading)).json()["publicKey"]
    given()
    assert_refused(alice.decide(reading, options), 404, "not_found")
    stale = Grant.objects.select_related("agent__human", "service_provider").get(pk=reading.pk)
    with pytest.raises(GrantChangedError):
        approve(stale, bob.human, now=now)
    with pytest.raises(NotFoundError):
        deny_grant(grant=stale, human=bob.human, reason="", actor=TESTER, now=now)
    for decide in (confirm, deny):
        with pytest.raises(NotFoundError):
            decide(confirmation=asking, human=bob.human, actor=TESTER, now=now)
    reading.refresh_from_db()
    asking.refresh_from_db()
    assert (reading.status, asking.status) == ("pending", "pending")


def test_DJ_17_a_written_owner_resumes_and_ends_nothing(
    alice: Person, bob: Person, asking: Confirmation, given: Callable[[], None], now: datetime
) -> None:
    grant = Grant.objects.get(pk=asking.grant_id)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    assert alice.get(f"/approvals/{grant.pk}/resume/").status_code == 200
    given()
    for act in ("resume", "revoke"):
        assert bob.get(f"/approvals/{grant.pk}/{act}/").status_code == 404
    path = f"/approvals/{grant.pk}/resume/statement"
    assert_refused(bob.post(path, {"drawn": ""}), 404, "not_found")


def test_DJ_17_an_agent_with_a_written_owner_may_call_nothing(
    agent: AgentClient, service_provider: ServiceProvider, given: Callable[[], None]
) -> None:
    given()
    assert_refused(agent.ask(service_provider), 401, "invalid_client")
    assert_refused(agent.rotate(), 401, "invalid_client")
    assert_refused(agent.register(), 401, "invalid_client")
    assert not Event.objects.filter(kind="registry.grant.requested").exists()


def test_DJ_17_an_unclaimed_agent_with_a_written_owner_is_no_ones(
    alice: Person, stray: AgentClient
) -> None:
    grant = Grant.objects.get(agent=stray.agent())
    write(stray.agent(), human=alice.human, status="active", claim_expires_at=None)
    for path in (f"/agents/{stray.agent().pk}/", f"/approvals/{grant.pk}/"):
        assert alice.get(path).status_code == 404
    assert stray.agent().name not in alice.get("/agents/").content.decode()


def test_DJ_17_an_agent_set_back_to_unclaimed_is_claimed_by_no_one(
    alice: Person, bob: Person, stray: AgentClient, now: datetime
) -> None:
    """With its former seal, which ended when Alice claimed it."""
    before: Any = Agent.objects.filter(jkt=stray.jkt).values("human", "claim_expires_at", "seal")
    before = before.get()
    claim(stray, alice.human, now=now)
    # The state machine lets an expired agent become unclaimed again.
    for status in ("expired", "unclaimed"):
        write(stray.agent(), status=status, **before)
    assert stray.agent().fits()
    link = claim_link(stray.agent())[0].removeprefix(ORIGIN)
    assert bob.get(link).status_code == 404
    with pytest.raises(InvalidStateError, match="can no longer be claimed"):
        claim_agent(agent=stray.agent(), human=bob.human, actor=TESTER, now=now)
    _, code = create_enrolment_code(human=bob.human, actor=TESTER, now=now)
    assert_refused(stray.register(code), 401, "invalid_client")
    assert Agent.objects.get().human is None


def test_DJ_17_an_enrolment_code_in_a_row_enrols_no_agent(
    alice: Person, bob: Person, now: datetime
) -> None:
    """Bob's own code as Alice's: his agent would be among hers."""
    row, code = create_enrolment_code(human=bob.human, actor=TESTER, now=now)
    EnrolmentCode.objects.filter(pk=row.pk).update(human=alice.human)
    assert_refused(AgentClient().register(code), 400, "invalid_enrolment_code")
    EnrolmentCode.objects.filter(pk=row.pk).update(human=bob.human)
    assert AgentClient().register(code).status_code == 201


def test_DJ_17_a_used_code_is_not_given_more_time_in_its_row(alice: Person, now: datetime) -> None:
    """By the agent program that it enrolled: it would enrol another agent as Alice's."""
    row, code = create_enrolment_code(human=alice.human, actor=TESTER, now=now)
    assert AgentClient().register(code).status_code == 201
    fresh = {"used_at": None, "agent": None, "expires_at": row.expires_at + timedelta(minutes=9)}
    EnrolmentCode.objects.filter(pk=row.pk).update(**fresh)
    assert_refused(AgentClient().register(code), 400, "invalid_enrolment_code")


def test_a_person_with_many_agents_costs_as_many_queries_as_with_one(
    alice: Person, agent: AgentClient, now: datetime
) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as seen:
            waiting_for(alice.human, now)
        return len(seen)

    one = cost()
    row = agent.agent()
    for number in range(3):
        row.pk, row.jkt = None, f"{number}" * 43
        row.id = Agent._meta.pk.get_default()
        row.set_seal()
        row.save(force_insert=True)
    assert cost() == one
