"""Rows are locked in one order everywhere, agent before grant before human: acts that meet wait in a line, never in a ring."""

import threading
import time
from datetime import datetime

import pytest
from django.db import connection, transaction

from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.people import delete_human
from registry.tests.cast import TESTER, AgentClient, approved

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def until_somebody_waits() -> None:
    deadline = time.monotonic() + 10
    with connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
    pytest.fail("nobody waits for a lock")


def test_who_deletes_a_human_waits_for_their_agent_before_touching_grants(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)

    def delete() -> None:
        try:
            delete_human(human=alice, actor=TESTER, now=now)
        finally:
            connection.close()

    deletion = threading.Thread(target=delete)
    with transaction.atomic():
        # As a rotation and an approval begin.
        Agent.objects.select_for_update(no_key=True).get(pk=grant.agent_id)
        deletion.start()
        until_somebody_waits()
        # Their next step: had the deletion come first here, each would wait for the other.
        assert Grant.objects.select_for_update(nowait=True).get(pk=grant.pk).status == "approved"
    deletion.join()
    grant.refresh_from_db()
    alice.refresh_from_db()
    assert (grant.status, alice.status) == ("revoked", "deleted")
