"""TRUSTED_MODEL_ORIGINS: hosts a manifest may claim for its model, if the operator names any."""

from datetime import datetime
from typing import Any

import pytest

from registry.models import Agent, Human
from registry.services.enrolment_codes import create_enrolment_code
from registry.tests.cast import TESTER, AgentClient, assert_refused, enrolled

pytestmark = pytest.mark.django_db


@pytest.fixture
def listed(settings: Any) -> None:
    settings.TRUSTED_MODEL_ORIGINS = ["models.example", "other.example"]


def test_without_a_list_any_origin_is_taken_as_a_claim() -> None:
    client = AgentClient()
    made = client.register(manifest=client.manifest(model_origin="who.knows.example"))
    assert made.status_code == 201
    assert client.agent().model_origin == "who.knows.example"


def test_AP_21_an_origin_on_the_list_is_taken(listed: None, alice: Human, now: datetime) -> None:
    client = AgentClient()
    code = create_enrolment_code(human=alice, actor=TESTER, now=now)[1]
    assert (
        client.register(code, manifest=client.manifest(model_origin="other.example")).status_code
        == 201
    )
    assert client.replace(model_origin="models.example").status_code == 200


# A subdomain of a trusted host may be rented out to others; the other two only look like the host.
@pytest.mark.parametrize(
    "origin",
    ["evil.example", "sub.models.example", "rnodels.example", "models.example.evil.example"],
)
def test_AP_21_an_origin_that_is_not_listed_registers_no_agent(
    listed: None, origin: str, alice: Human, now: datetime
) -> None:
    client = AgentClient()
    code = create_enrolment_code(human=alice, actor=TESTER, now=now)[1]
    for code_or_none in (None, code):
        answer = client.register(code_or_none, manifest=client.manifest(model_origin=origin))
        assert (
            "model_origin" in assert_refused(answer, 400, "invalid_manifest")["error_description"]
        )
    assert not Agent.objects.exists()
    # The refusal does not spend the code.
    assert client.register(code).status_code == 201


@pytest.mark.parametrize("change", [{}, {"name": "Another Name"}], ids=["renewal", "change"])
def test_AP_21_delisted_model_origin_blocks_renew_change_and_register(
    change: dict[str, Any], alice: Human, now: datetime, settings: Any
) -> None:
    client = enrolled(alice, now=now)
    settings.TRUSTED_MODEL_ORIGINS = ["other.example"]
    before = client.agent().manifest
    assert_refused(client.replace(**change), 400, "invalid_manifest")
    assert_refused(client.register(), 400, "invalid_manifest")
    assert client.agent().manifest == before
    # Its existing grants stay valid until its manifest ends.
    assert client.call("GET", "/v1/agents/me").json()["status"] == "active"
    assert client.replace(model_origin="other.example", **change).status_code == 200
