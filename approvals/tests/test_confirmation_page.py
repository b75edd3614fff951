"""The page of a payment above the threshold while its agent or service provider is inactive."""

from datetime import datetime

import pytest

from approvals.tests.cast import Person
from approvals.tests.test_pages import asking
from registry.models import Agent, Grant
from registry.services.agents import suspend_agent
from registry.tests.cast import TESTER, assert_refused
from verifier.models import Confirmation

__all__ = ["asking"]

pytestmark = pytest.mark.django_db


def suspend(grant: Grant, now: datetime) -> None:
    suspend_agent(agent=Agent.objects.get(pk=grant.agent_id), actor=TESTER, now=now)


def test_the_page_of_a_suspended_agent_says_why_and_offers_to_deny(
    alice: Person, asking: Confirmation, now: datetime
) -> None:
    path = f"/confirmations/{asking.pk}/"
    assert 'value="confirm"' in alice.get(path).content.decode()
    suspend(asking.grant, now)
    page = alice.get(path).content.decode()
    assert "The agent is suspended, so it cannot do this. Resume it first, or deny." in page
    assert 'value="confirm"' not in page
    body = assert_refused(alice.press_on(path, decision="confirm"), 409, "grant_changed")
    assert "suspended" in body["error_description"]
    options = alice.press_on(path, decision="deny").json()["publicKey"]
    done = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert done.json()["status"] == "Denied"


def test_a_suspension_between_statement_and_signature_refuses_the_yes(
    alice: Person, asking: Confirmation, now: datetime
) -> None:
    path = f"/confirmations/{asking.pk}/"
    options = alice.press_on(path, decision="confirm").json()["publicKey"]
    suspend(asking.grant, now)
    credential = alice.device.assertion(options)
    assert_refused(alice.post(f"{path}decide", {"credential": credential}), 409, "grant_changed")
    asking.refresh_from_db()
    assert asking.status == "pending"
