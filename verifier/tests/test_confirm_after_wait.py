"""A yes that waited for its grant's lock is judged by the state after the wait."""

import threading

import pytest
from django.db import connection, transaction
from django.utils import timezone

from agentauth.protocol.errors import GrantChangedError
from registry.models import Grant, Human
from registry.services.agents import suspend_agent
from tests.waiting import until
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import confirm
from verifier.tests.scene import PAY, SYSTEM, key, pay, scene
from verifier.tests.test_shared_commits import waits_for_a_lock

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def test_a_yes_that_waited_while_its_agent_was_suspended_is_refused() -> None:
    place = scene(PAY, confirm_above={"value": "100.00", "currency": "EUR"})
    assert place.ask(pay("150.00"), idempotency_key=key())["reason"] == "confirm_above"
    asked, human = Confirmation.objects.get(), Human.objects.get()
    told: list[object] = []

    def says_yes() -> None:
        try:
            told.append(confirm(confirmation=asked, human=human, actor=SYSTEM, now=timezone.now()))
        except GrantChangedError as error:
            told.append(error)
        connection.close()

    yes = threading.Thread(target=says_yes)
    with transaction.atomic():
        Grant.objects.select_for_update().get(pk=place.grant.pk)
        yes.start()
        until(waits_for_a_lock)
        suspend_agent(agent=place.agent, actor=SYSTEM, now=timezone.now())
    yes.join(20)
    assert [type(each) for each in told] == [GrantChangedError]
    assert Confirmation.objects.get().status == Confirmation.Status.PENDING
