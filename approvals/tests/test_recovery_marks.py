"""What a recently recovered user signs is marked: in the text, on the receipt, in the activity."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from approvals.models import Receipt, Recovery
from approvals.tests.cast import ORIGIN, PAY, Person, waiting_confirmation
from approvals.tests.recovering import ready_link, recovered
from registry.models import Agent, Grant, ServiceProvider
from registry.services.agents import suspend_agent
from registry.services.grants import suspend_grant
from registry.tests.cast import TESTER, AgentClient, approve, claim_link, pending

pytestmark = pytest.mark.django_db
MARK = "This account was recovered with a new passkey on"


@pytest.fixture
def anew(alice: Person, reading: Grant, now: datetime) -> Person:
    """Alice, or a thief helped by an administrator, with the new passkey."""
    assert reading
    return recovered(ready_link(alice.human, now))


def test_WR_15_an_approval_soon_after_a_recovery_is_marked(anew: Person, reading: Grant) -> None:
    page = anew.get(f"/approvals/{reading.pk}/").content.decode()
    assert page.count(MARK) == 1
    assert anew.approve(reading).status_code == 200
    receipt = Receipt.objects.get(kind="approval")
    assert MARK in receipt.consent_text
    assert MARK in anew.get(f"/approvals/{reading.pk}/receipt/").content.decode()
    sentence = next(line for line in receipt.consent_text.splitlines() if MARK in line)
    assert anew.get("/activity/").content.decode().count(sentence) == 1


def test_WR_15_a_passkey_added_after_the_recovery_does_not_wash_it(
    anew: Person, reading: Grant
) -> None:
    other = Person(client=anew.client)
    options = anew.ask_passkey().json()["publicKey"]
    assert anew.post(
        "/settings/passkeys/finish", {"credential": other.device.registration(options)}
    )
    assert other.approve(reading).status_code == 200
    assert MARK in Receipt.objects.get(kind="approval").consent_text


def test_WR_15_after_two_weeks_nothing_is_marked(anew: Person, reading: Grant) -> None:
    Recovery.objects.update(used_at=timezone.now() - timedelta(days=14, seconds=1))
    assert anew.approve(reading).status_code == 200
    assert MARK not in Receipt.objects.get(kind="approval").consent_text
    assert MARK not in anew.get("/activity/").content.decode()


def test_WR_15_only_the_recovered_user_is_marked(anew: Person, bob: Person) -> None:
    assert anew
    assert MARK not in bob.get("/activity/").content.decode()


def test_WR_15_a_claim_soon_after_a_recovery_is_marked(anew: Person) -> None:
    client = AgentClient()
    client.register()
    url, code = claim_link(client.agent())
    path = url.removeprefix(ORIGIN)
    assert MARK in anew.get(path).content.decode()
    options = anew.press_on(path, code=code).json()["publicKey"]
    assert (
        anew.post(f"{path}decide", {"credential": anew.device.assertion(options)}).status_code
        == 200
    )
    assert MARK in Receipt.objects.get(kind="claim").consent_text
    assert Agent.objects.filter(human=anew.human, pk=client.agent().pk).exists()


def test_WR_15_a_confirmation_soon_after_a_recovery_is_marked(
    anew: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    paid = approve(
        pending(agent, service_provider, now=now, capabilities=[PAY]), anew.human, now=now
    )
    row = waiting_confirmation(paid, now)
    path = f"/confirmations/{row.pk}/"
    options = anew.press_on(path, decision="confirm").json()["publicKey"]
    assert (
        anew.post(f"{path}decide", {"credential": anew.device.assertion(options)}).status_code
        == 200
    )
    assert MARK in Receipt.objects.get(kind="confirmation").consent_text


@pytest.mark.parametrize("what", ["agent", "grant"])
def test_WR_15_an_owners_resume_soon_after_a_recovery_is_marked(
    anew: Person, reading: Grant, now: datetime, what: str
) -> None:
    assert anew.approve(reading).status_code == 200
    if what == "agent":
        path = f"/agents/{reading.agent_id}/"
        suspend_agent(agent=reading.agent, actor=TESTER, now=now)
    else:
        path = f"/approvals/{reading.pk}/"
        reading.refresh_from_db()
        suspend_grant(grant=reading, actor=TESTER, now=now)
    assert MARK in anew.get(f"{path}resume/").content.decode()
    assert anew.resume(f"{path}resume/").status_code == 200
    receipt = Receipt.objects.get(kind="resume")
    assert receipt.consent_text.count(MARK) == 1
    # Beside the approval, the resume.
    assert anew.get("/activity/").content.decode().count(MARK) == 2


def test_WR_15_an_administrators_resume_is_not_the_recovered_persons(
    anew: Person, admin: Person, reading: Grant, now: datetime
) -> None:
    suspend_agent(agent=reading.agent, actor=TESTER, now=now, by_admin=True)
    assert admin.resume(f"/resume/agent/{reading.agent_id}/").status_code == 200
    assert MARK not in Receipt.objects.get(kind="resume").consent_text
    assert MARK not in anew.get("/activity/").content.decode()
