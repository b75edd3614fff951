"""An agent named like one the registry knows: its owner is warned on every page and in the text."""

import json
from datetime import datetime

import pytest
from django.conf import settings

from agentauth.protocol.approval_receipt import verify_receipt
from approvals.models import Receipt
from approvals.tests.cast import PAY, Person, waiting_confirmation
from kms.services import verification_keys
from registry.models import Agent, Grant, ServiceProvider
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, approve, assert_refused, claim_link, pending

pytestmark = pytest.mark.django_db
LOOKS_LIKE = "Acme Payrnents"
LINE = (
    "This agent’s name looks like “Acme Payments”, the name of a service here, but it is not that "
    "service."
)
TITLE = "Check the name carefully"


@pytest.fixture
def disguised(agent: AgentClient) -> AgentClient:
    """Alice's agent, named almost like the service."""
    Agent.objects.filter(jkt=agent.jkt).update(name=LOOKS_LIKE)
    return agent


@pytest.fixture
def asked(disguised: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    return pending(disguised, service_provider, now=now)


def test_AP_21_agent_pages_show_the_likeness_warning_with_id_and_key(
    alice: Person,
    disguised: AgentClient,
    asked: Grant,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    paid = approve(
        pending(disguised, service_provider, now=now, capabilities=[PAY]), alice.human, now=now
    )
    row = waiting_confirmation(paid, now)
    for path in (
        f"/approvals/{asked.pk}/",
        f"/agents/{asked.agent_id}/",
        f"/confirmations/{row.pk}/",
    ):
        page = alice.get(path).content.decode()
        assert TITLE in page, path
        assert LINE in page, path
        shown(page, disguised.agent())


def shown(page: str, agent: Agent) -> None:
    """The page shows the two things no other agent has."""
    assert f'<dd class="mono">{agent.pk}</dd>' in page
    assert " ".join(agent.jkt[start : start + 4] for start in range(0, 16, 4)) in page


def test_AP_21_unlike_name_shows_no_warning_but_shows_id_and_key(
    alice: Person, agent: AgentClient, reading: Grant
) -> None:
    for path in (f"/approvals/{reading.pk}/", f"/agents/{reading.agent_id}/"):
        page = alice.get(path).content.decode()
        assert TITLE not in page
        shown(page, agent.agent())


def test_AP_21_what_is_signed_says_it_and_the_receipt_verifies(
    alice: Person, asked: Grant, now: datetime
) -> None:
    page = alice.get(f"/approvals/{asked.pk}/")
    assert (LINE, None) in page.context["statement"]
    assert alice.approve(asked).status_code == 200
    receipt = Receipt.objects.get()
    assert LINE in receipt.consent_text.splitlines()
    keys = verification_keys(purpose="receipt", now=now)
    found = verify_receipt(receipt.compact, keys=keys, expected_issuer=settings.ISSUER)
    assert LINE in found.consent_text.splitlines()
    assert LINE in alice.get(f"/approvals/{asked.pk}/receipt/").content.decode().replace(
        "&#x27;", "'"
    )


def test_AP_21_a_claim_says_it_too(
    alice: Person, service_provider: ServiceProvider, now: datetime
) -> None:
    client = AgentClient()
    client.register(manifest=client.manifest(name=service_provider.name))
    url, code = claim_link(client.agent())
    path = url.removeprefix("http://localhost:8000")
    exact = (
        "This agent calls itself “Acme Payments”, the name of a service here, but it is not that "
        "service."
    )
    page = alice.get(path).content.decode()
    assert exact in page
    shown(page, client.agent())
    options = alice.press_on(path, code=code).json()["publicKey"]
    done = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert done.status_code == 200
    assert exact in Receipt.objects.get().consent_text.splitlines()


@pytest.mark.parametrize(("decision", "told"), [("confirm", True), ("deny", False)])
def test_AP_21_a_confirmation_says_it_too(
    alice: Person,
    disguised: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    decision: str,
    told: bool,
) -> None:
    """A denial grants nothing, so it stays one sentence."""
    grant = approve(
        pending(disguised, service_provider, now=now, capabilities=[PAY]), alice.human, now=now
    )
    path = f"/confirmations/{waiting_confirmation(grant, now).pk}/"
    options = alice.press_on(path, decision=decision).json()["publicKey"]
    assert (
        alice.post(f"{path}decide", {"credential": alice.device.assertion(options)}).status_code
        == 200
    )
    assert (LINE in Receipt.objects.get(kind="confirmation").consent_text.splitlines()) is told


def test_AP_21_a_likeness_that_came_under_the_drawn_page_voids_it(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    drawn = alice.drawn(reading)
    create_service_provider(
        name="Research Assistant",
        audience="http://127.0.0.1:8003",
        allowed=(),
        actor=TESTER,
        now=now,
    )
    answer = assert_refused(alice.statement(reading, drawn=drawn), 409, "grant_changed")
    assert "The warnings about the agent" in json.dumps(answer["changes"])
    assert alice.approve(reading).status_code == 200
