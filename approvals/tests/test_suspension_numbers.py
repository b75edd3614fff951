"""Each suspension has its own number, even if a release without numbers made it (SA-1)."""

from datetime import datetime

import pytest

from approvals.services.resume_signing import Party, Row, find_suspension
from approvals.tests.cast import Person
from registry.models import Agent, ServiceProvider
from registry.services.agents import suspend_agent
from registry.services.service_providers import suspend_service_provider
from registry.tests.cast import TESTER, AgentClient

pytestmark = pytest.mark.django_db


def test_SA_1_a_suspension_that_was_not_counted_has_the_number_0(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now, by_admin=False)
    suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    suspended: list[tuple[Row, Party]] = [
        (agent.agent(), "owner"),
        (ServiceProvider.objects.get(), "administrator"),
    ]
    for row, party in suspended:
        assert find_suspension(row, party=party, now=now).number == 1
    Agent.objects.update(suspensions=None)
    ServiceProvider.objects.update(suspensions=None)
    for row, party in suspended:
        row.refresh_from_db()
        assert find_suspension(row, party=party, now=now).number == 0
