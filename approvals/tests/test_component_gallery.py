"""Pictures of agents and services, and the page of all components."""

import re

import pytest
from pytest_django.fixtures import Settings

from approvals.identicons import identity_mark
from approvals.tests.cast import Person, browser
from audit.new_ids import new_id
from registry.models import Agent, Grant, ServiceProvider
from registry.tests.cast import AgentClient

pytestmark = pytest.mark.django_db


def test_a_mark_depends_on_the_id_and_not_on_the_name() -> None:
    one, other = new_id(), new_id()
    assert identity_mark(Agent(pk=one, name="A")) == identity_mark(Agent(pk=one, name="B"))
    assert identity_mark(Agent(pk=one, name="A")) != identity_mark(Agent(pk=other, name="A"))
    assert identity_mark(Agent(pk=one)) != identity_mark(ServiceProvider(pk=one))


def test_a_key_rotation_keeps_the_mark() -> None:
    one = new_id()
    assert identity_mark(Agent(pk=one, jkt="a")) == identity_mark(Agent(pk=one, jkt="b"))


def test_hundreds_of_agents_have_marks_of_their_own() -> None:
    marks = [identity_mark(Agent(pk=new_id())) for _ in range(300)]
    assert len(set(marks)) > 295


def test_a_mark_is_decoration_that_the_policy_allows() -> None:
    mark = identity_mark(Agent(pk=new_id(), name="<script>"))
    assert 'aria-hidden="true"' in mark
    assert not re.search(r"style=|href|url\(|script|<title", mark)


@pytest.mark.parametrize("name", ["agents/", "agents/{agent}/", "approvals/", "approvals/{grant}/"])
def test_agents_and_services_are_listed_with_their_marks(
    alice: Person, agent: AgentClient, reading: Grant, name: str
) -> None:
    page = alice.get("/" + name.format(agent=reading.agent_id, grant=reading.pk)).content.decode()
    assert str(identity_mark(reading.agent)) in page


def test_a_receipt_shows_the_marks_of_both(alice: Person, reading: Grant) -> None:
    alice.approve(reading)
    page = alice.get(f"/approvals/{reading.pk}/receipt/").content.decode()
    assert str(identity_mark(reading.agent)) in page
    assert str(identity_mark(reading.service_provider)) in page


@pytest.mark.parametrize("language", ["en-gb", "de"])
def test_the_page_of_components_has_every_part(alice: Person, language: str) -> None:
    alice.client.post("/language", {"language": language})
    page = alice.get("/components/")
    assert page.status_code == 200
    text = page.content.decode()
    parts = {"state-revoked", "risk-high", "note urgent", "feed", "is-refused", "signed-text"}
    assert not [each for each in parts if each not in text]


def test_production_has_no_page_of_components(alice: Person, settings: Settings) -> None:
    assert alice.get("/components/").status_code == 200
    settings.DEVELOPMENT = False
    assert alice.get("/components/").status_code == 404
    assert browser().get("/components/").status_code == 404
