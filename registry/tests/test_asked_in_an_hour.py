"""How often an agent may request grants, whatever the outcome: requests leave permanent rows."""

from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.errors import RateLimitedError
from audit.models import Event
from registry.models import Grant, Human, ServiceProvider
from registry.services.agents import revoke_agent
from registry.services.grant_requests import withdraw_grant
from registry.tests.cast import TESTER, AgentClient, assert_refused, enrolled, pending

pytestmark = pytest.mark.django_db


def ask_and_withdraw(
    agent: AgentClient, provider: ServiceProvider, times: int, now: datetime
) -> None:
    for _ in range(times):
        withdraw_grant(grant=pending(agent, provider, now=now), actor=TESTER, now=now)


def test_an_agent_asks_sixty_times_in_an_hour_whatever_it_withdraws(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    ask_and_withdraw(agent, service_provider, 1, now - timedelta(minutes=59))
    ask_and_withdraw(agent, service_provider, 59, now)
    with pytest.raises(RateLimitedError, match="This agent may ask for at most 60 ") as caught:
        pending(agent, service_provider, now=now)
    assert caught.value.fields["retry_after"] == 61
    # Another agent has its own hour.
    pending(enrolled(alice, now=now), service_provider, now=now)
    later = now + timedelta(minutes=1)
    ask_and_withdraw(agent, service_provider, 1, later)
    with pytest.raises(RateLimitedError):
        pending(agent, service_provider, now=later)


@pytest.mark.long
def test_all_agents_of_a_human_ask_three_hundred_times_in_an_hour(
    alice: Human, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    agents = [enrolled(alice, now=now) for _ in range(6)]
    for each in agents[:5]:
        ask_and_withdraw(each, service_provider, 60, now)
    with pytest.raises(RateLimitedError, match="All agents of this agent's owner"):
        pending(agents[5], service_provider, now=now)
    pending(enrolled(bob, now=now), service_provider, now=now)
    # A user who finds five flooding agents ends one, and the others go on.
    with transaction.atomic():
        revoke_agent(agent=agents[0].agent(), actor=TESTER, now=now)
        withdraw_grant(grant=pending(agents[5], service_provider, now=now), actor=TESTER, now=now)
        transaction.set_rollback(True)
    pending(agents[5], service_provider, now=now + timedelta(hours=1))


def test_hourly_request_limit_covers_unclaimed_agents(
    service_provider: ServiceProvider, now: datetime
) -> None:
    stray = AgentClient()
    assert stray.register().status_code == 201
    ask_and_withdraw(stray, service_provider, 60, now)
    with pytest.raises(RateLimitedError):
        pending(stray, service_provider, now=now)


def test_beyond_it_the_answer_is_429_and_a_flood_of_them_few_events(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    ask_and_withdraw(agent, service_provider, 60, now)
    before = Event.objects.count()
    for _ in range(30):
        response = agent.ask(service_provider)
        assert_refused(response, 429, "rate_limited")
    assert 3500 < int(response["Retry-After"]) <= 3600
    assert Event.objects.count() - before <= 10
    assert Grant.objects.filter(status="pending").count() == 0


@pytest.mark.postgres
def test_the_hour_is_read_by_index(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    ask_and_withdraw(agent, service_provider, 2, now)
    with CaptureQueriesContext(connection) as asked:
        pending(agent, service_provider, now=now)
    [hour] = [each["sql"] for each in asked.captured_queries if each["sql"].endswith("LIMIT 60")]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        cursor.execute(f"EXPLAIN {hour}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "grant_asked" in plan, plan
