"""Many disclosed private keys at once: the flood delays no other caller."""

from datetime import datetime
from time import monotonic

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.keys import PrivateKey
from audit.log.refusal_counts import RECORDED_PER_MINUTE, Batches
from audit.models import RefusalCount
from registry.models import Agent, BarredKey
from registry.services import barred_keys
from registry.services.barred_keys import Disclosed, bar_disclosed_keys
from registry.tests.cast import TESTER, AgentClient

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barred_keys, "_FLOODS", Batches(seconds=60))


def made(number: int, now: datetime) -> list[Disclosed]:
    """Keys that belong to no agent."""
    return [Disclosed(PrivateKey.generate("EdDSA").public, TESTER, now) for _ in range(number)]


def test_a_flood_of_keys_that_no_agent_has_touches_few_rows(now: datetime) -> None:
    with CaptureQueriesContext(connection) as asked:
        for each in made(5 * RECORDED_PER_MINUTE, now):
            bar_disclosed_keys([each])
    assert BarredKey.objects.count() == RECORDED_PER_MINUTE
    counted = [
        each["sql"]
        for each in asked.captured_queries
        if 'UPDATE "audit_refusalcount"' in each["sql"]
    ]
    # One for each barred key, and one or two for the first of the others.
    assert len(counted) <= RECORDED_PER_MINUTE + 2
    assert RefusalCount.objects.get().count == RECORDED_PER_MINUTE + 1


def test_what_waited_is_counted_with_the_next(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in made(2 * RECORDED_PER_MINUTE, now):
        bar_disclosed_keys([each])
    passed = monotonic() + 61
    monkeypatch.setattr(barred_keys, "monotonic", lambda: passed)
    bar_disclosed_keys(made(1, now))
    assert RefusalCount.objects.get().count == 2 * RECORDED_PER_MINUTE + 1


def test_together_they_are_looked_up_in_two_queries(now: datetime) -> None:
    bar_disclosed_keys(made(RECORDED_PER_MINUTE + 1, now))
    with CaptureQueriesContext(connection) as asked:
        bar_disclosed_keys(made(20, now))
    assert len([each for each in asked.captured_queries if each["sql"].startswith("SELECT")]) == 2


def test_in_a_flood_the_key_of_an_agent_is_barred_all_the_same(
    agent: AgentClient, now: datetime
) -> None:
    bar_disclosed_keys(made(3 * RECORDED_PER_MINUTE, now))
    held = Disclosed(agent.signer.public, TESTER, now)
    bar_disclosed_keys([*made(3, now), held])
    assert Agent.objects.get(pk=agent.agent().pk).status == Agent.Status.REVOKED
