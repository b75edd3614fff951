"""The button that suspends all of a person's agents at once."""

import time
from copy import copy
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.errors import InvalidStateError
from approvals.tests.cast import Person
from audit import kinds
from audit.models import Event
from audit.new_ids import new_id
from registry.models import Agent
from registry.services import agents
from registry.tests.cast import TESTER, AgentClient, enrolled
from tests.time_limits import within

pytestmark = pytest.mark.django_db
PAGE, ACT = "/agents/suspend-all/", "/agents/suspend-all/suspend"


def copies(agent: Agent, number: int, **changed: Any) -> list[Agent]:
    """More agents of the same person, without keys of their own."""
    made, known = [], Agent.objects.count()
    for index in range(number):
        row = copy(agent)
        row.pk = new_id()
        row.jkt = f"{agent.jkt[:32]}{known + index:011d}"
        row.set_seal()
        made.append(row)
    Agent.objects.bulk_create(made)
    # An agent begins active; the database's triggers allow these changes from there.
    ids = [row.pk for row in made]
    if changed:
        Agent.objects.filter(pk__in=ids).update(**changed)
    return list(Agent.objects.filter(pk__in=ids))


def states(person: Person) -> dict[Any, tuple[str, bool, bool]]:
    rows = Agent.objects.filter(human=person.human)
    return {row.pk: (row.status, row.admin_holds, row.owner_holds) for row in rows}


def test_one_press_suspends_each_own_agent_with_one_event(
    alice: Person, bob: Person, agent: AgentClient, now: datetime
) -> None:
    mine, theirs = agent.agent(), enrolled(bob.human, now=now).agent()
    [expired] = copies(mine, 1, status="expired", expires_at=now - timedelta(days=1))
    [revoked] = copies(mine, 1, status="revoked")
    [held] = copies(mine, 1)
    agents.suspend_agent(agent=held, actor=TESTER, now=now, by_admin=True)
    [already] = copies(mine, 1)
    agents.suspend_agent(agent=already, actor=TESTER, now=now)
    before = Event.objects.filter(kind=kinds.AGENT_SUSPENDED).count()
    answer = alice.client.post(ACT, follow=True)
    assert "3 agents suspended. To bring one back, open it" in answer.content.decode()
    assert states(alice) == {
        mine.pk: ("suspended", False, True),
        expired.pk: ("suspended", False, True),
        held.pk: ("suspended", True, True),
        already.pk: ("suspended", False, True),
        revoked.pk: ("revoked", False, False),
    }
    assert Agent.objects.get(pk=theirs.pk).status == "active"
    fresh = Event.objects.filter(kind=kinds.AGENT_SUSPENDED).order_by("id")[before:]
    assert {event.agent_id for event in fresh} == {mine.pk, expired.pk, held.pk}
    assert {(event.actor_id, event.data["by_admin"]) for event in fresh} == {
        (str(alice.human.pk), False)
    }
    # An administrator's resume alone brings no agent back.
    held.refresh_from_db()
    agents.resume_agent(agent=held, actor=TESTER, now=now, by_admin=True)
    assert states(alice)[held.pk] == ("suspended", False, True)


def test_it_suspends_what_the_single_button_would(
    alice: Person, agent: AgentClient, now: datetime
) -> None:
    mine = agent.agent()
    for status in ("active", "expired", "revoked"):
        copies(mine, 1, status=status)
    for by_admin, by_owner in ((True, None), (True, True), (True, False), (False, None)):
        kept = {"suspended_by_admin": by_admin, "suspended_by_owner": by_owner}
        copies(mine, 1, status="suspended", **kept)
    able = set(agents.suspendable_agents(alice.human).values_list("pk", flat=True))
    for row in Agent.objects.filter(human=alice.human):
        try:
            agents.suspend_agent(agent=row, actor=TESTER, now=now)
            assert row.pk in able
        except InvalidStateError:
            assert row.pk not in able


def test_each_agent_comes_back_with_a_signature_of_its_own(
    alice: Person, agent: AgentClient
) -> None:
    [other] = copies(agent.agent(), 1)
    alice.client.post(ACT)
    assert alice.resume(f"/agents/{agent.agent().pk}/resume/").status_code == 200
    assert {row.pk: row.status for row in Agent.objects.filter(human=alice.human)} == {
        agent.agent().pk: "active",
        other.pk: "suspended",
    }


def test_the_page_asks_once_and_names_what_stops(alice: Person, agent: AgentClient) -> None:
    assert f'href="{PAGE}"' in alice.get("/activity/").content.decode()
    copies(agent.agent(), 24)
    page = alice.get(PAGE)
    assert (page.context["count"], len(page.context["names"])) == (25, 20)
    assert "Suspend all 25 agents?" in page.content.decode()
    assert states(alice)[agent.agent().pk][0] == "active"
    alice.client.post(ACT)
    assert "Nothing to suspend" in alice.get(PAGE).content.decode()
    done = alice.client.post(ACT, follow=True).content.decode()
    assert "0 agents suspended" in done


def test_a_thousand_agents_stop_within_a_pages_time(
    alice: Person, agent: AgentClient, django_assert_max_num_queries: Any
) -> None:
    copies(agent.agent(), 999)
    began = time.monotonic()
    assert alice.client.post(ACT).status_code == 302
    # About 2 s. The bound only catches work that grows faster than the number of agents.
    assert time.monotonic() - began < within(20)
    assert Agent.objects.filter(human=alice.human, status="suspended").count() == 1000
    assert Event.objects.filter(kind=kinds.AGENT_SUSPENDED).count() == 1000
    with django_assert_max_num_queries(30):
        assert alice.get(PAGE).status_code == 200


def test_one_transaction_locks_a_bounded_number_of_agents(
    alice: Person, agent: AgentClient, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.services.agents.AGENTS_PER_TRANSACTION", 2)
    copies(agent.agent(), 4)
    taken: list[int] = []
    suspend_next = agents._suspend_next

    def counted(*given: Any) -> int:
        taken.append(suspend_next(*given))
        return taken[-1]

    monkeypatch.setattr("registry.services.agents._suspend_next", counted)
    assert agents.suspend_all_agents(human=alice.human, actor=TESTER, now=now) == 5
    assert taken == [2, 2, 1, 0]


def test_agents_that_need_presence_are_named_where_it_is_explained(
    alice: Person, agent: AgentClient, reading: Any
) -> None:
    page = alice.get("/agents/").content.decode()
    assert "What “I’m here” means" in page
    assert "None of your agents needs it now." in page
    alice.approve(reading)
    reading.refresh_from_db()
    reading.envelope = {"requires_human_online": True}
    reading.save()
    page = alice.get("/agents/")
    assert "These agents need it:" in page.content.decode()
    assert page.context["dependent"] == [f"“{agent.agent().name}”"]
    assert 'href="/agents/#presence-title"' in alice.get("/activity/").content.decode()


def test_the_list_of_agents_takes_the_same_queries_however_many(
    alice: Person, agent: AgentClient
) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as made:
            alice.get("/agents/")
        # What is known of the replay cache's home is read again after a second.
        return sum("verifier_home" not in each["sql"] for each in made.captured_queries)

    alice.get("/agents/")
    few = queries()
    copies(agent.agent(), 40)
    assert queries() == few
