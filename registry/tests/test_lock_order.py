"""Rows are locked in one order everywhere (agent, grant, human), so acts queue without deadlock."""

import threading
from datetime import datetime

import pytest
from django.db import connection, transaction

from audit.tests.waiting import wait_for_lock_waiters
from registry.models import Agent, EnrolmentCode, Grant, Human, ServiceProvider
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.humans import delete_human
from registry.tests.cast import TESTER, AgentClient, approved

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


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
        wait_for_lock_waiters()
        # Their next step: had the deletion locked this first, each would wait for the other.
        assert Grant.objects.select_for_update(nowait=True).get(pk=grant.pk).status == "approved"
    deletion.join()
    grant.refresh_from_db()
    alice.refresh_from_db()
    assert (grant.status, alice.status) == ("revoked", "deleted")


@pytest.mark.parametrize("known", [False, True])
def test_enrolment_locks_the_user_before_the_enrolment_code(
    alice: Human, now: datetime, *, known: bool
) -> None:
    """As a suspension does, which ends the codes of the user it locked."""
    stray, answers = AgentClient(), list[int]()
    assert not known or stray.register().status_code == 201
    _row, code = create_enrolment_code(human=alice, actor=TESTER, now=now)

    def register() -> None:
        try:
            answers.append(stray.register(code).status_code)
        finally:
            connection.close()

    registration = threading.Thread(target=register)
    with transaction.atomic():
        Human.objects.select_for_update(no_key=True).get(pk=alice.pk)
        registration.start()
        wait_for_lock_waiters()
        assert EnrolmentCode.objects.select_for_update(nowait=True).get().used_at is None
    registration.join()
    assert answers == [200 if known else 201]
