"""What ends with a row, as the page says it: names up to a limit, a count beyond."""

from datetime import datetime

import pytest

from approvals.services import cascade_previews
from approvals.tests.cast import READ_CALENDAR, Person
from kms.models import Key
from registry.models import Agent, Grant, ServiceProvider
from registry.tests.cast import AgentClient, approved, enrolled

pytestmark = pytest.mark.django_db


def test_rows_beyond_those_named_are_counted(
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cascade_previews, "_NAMED", 1)
    grant = approved(agent, service_provider, now=now, capabilities=[READ_CALENDAR])
    assert cascade_previews.describe_agent(agent.agent(), now).facts == (
        "Read “calendar” at “Acme Payments”.",
    )
    assert cascade_previews.describe_service_provider(service_provider, now).facts == (
        f"Grant of agent “{grant.agent.name}”",
    )
    approved(agent, service_provider, now=now)
    assert cascade_previews.describe_agent(agent.agent(), now).facts[1:] == ("1 more grant",)
    assert cascade_previews.describe_service_provider(service_provider, now).facts[1:] == (
        "More grants",
    )


def test_an_owner_is_named_where_there_is_one(
    alice: Person, agent: AgentClient, now: datetime
) -> None:
    row = agent.agent()
    assert cascade_previews.describe_agent(row, now).about[0] == "Owner: “Alice”, alice@example.org"
    row.human = None
    assert cascade_previews.describe_agent(row, now).about[0].startswith("Key fingerprint: ")


@pytest.mark.parametrize("letters", [32, 33])
def test_a_name_above_32_letters_is_not_typed(
    agent: AgentClient, reading: Grant, now: datetime, letters: int
) -> None:
    row = Agent.objects.get()
    row.name = "x" * letters
    assert cascade_previews.describe_agent(row, now).typed == (
        row.name if letters == 32 else str(row.pk)[-8:]
    )


def test_with_a_request_no_grant_token_or_other_request_ends(reading: Grant, now: datetime) -> None:
    found = cascade_previews.describe_grant(reading, now)
    assert (found.grants, found.tokens, found.waiting) == (0, 0, 0)


def test_of_a_key_the_first_8_letters_of_its_name_are_typed(keys: None, now: datetime) -> None:
    key = Key.objects.get(purpose="receipt")
    found = cascade_previews.describe_key(key, now)
    assert (found.typed, found.tokens) == (key.kid[:8], 0)


def test_agents_of_a_human_beyond_those_named_are_counted(
    alice: Person, agent: AgentClient, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade_previews, "_NAMED", 1)

    def counted() -> list[str]:
        return [
            each
            for each in cascade_previews.describe_human(alice.human, now).facts
            if "more agent" in each
        ]

    assert counted() == []
    enrolled(alice.human, now=now)
    assert counted() == ["1 more agent"]


def test_a_grant_is_counted_and_told_with_its_limits(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now, envelope={"max_uses": 3})
    found = cascade_previews.describe_grant(grant, now)
    assert [each for each in found.facts if "3" in each]
    assert found.grants == 1
