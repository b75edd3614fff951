"""The admin site: every button is a service with its event, and what is refused there is on record too."""

from collections.abc import Sequence
from typing import Any

import pytest
from django.db.models import Model

from approvals.admin_site import site
from approvals.tests.cast import Person
from audit.models import Event
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.tests.cast import AgentClient

pytestmark = pytest.mark.django_db


def press(admin: Person, row: Model, action: str) -> Any:
    path = f"/admin/{row._meta.app_label}/{row._meta.model_name}/"
    done = admin.client.post(path, {"action": action, "_selected_action": [str(row.pk)]}, follow=True)
    assert done.status_code == 200
    return done.content.decode()


def events(actor: Person, seen: set[Any]) -> list[tuple[str, str]]:
    """Kind and outcome of what this person has done since `seen`."""
    fresh = Event.objects.exclude(pk__in=seen).filter(actor_kind="human", actor_id=str(actor.human.pk))
    return [(event.kind, event.outcome) for event in fresh.order_by("id")]


def test_each_button_changes_the_row_and_writes_its_event(
    admin: Person, alice: Person, agent: AgentClient, reading: Grant, service_provider: ServiceProvider
) -> None:
    # In an order in which each is possible.
    alice.approve(reading)
    presses: Sequence[tuple[Model, str, str, str]] = [
        (reading, "suspend", "registry.grant.suspended", "suspended"),
        (reading, "resume", "registry.grant.resumed", "approved"),
        (reading, "revoke", "registry.grant.revoked", "revoked"),
        (agent.agent(), "suspend", "registry.agent.suspended", "suspended"),
        (agent.agent(), "resume", "registry.agent.resumed", "active"),
        (agent.agent(), "revoke", "registry.agent.revoked", "revoked"),
        (service_provider, "suspend", "registry.service_provider.suspended", "suspended"),
        (service_provider, "resume", "registry.service_provider.resumed", "active"),
        (service_provider, "revoke", "registry.service_provider.revoked", "revoked"),
        (alice.human, "suspend", "registry.human.suspended", "suspended"),
    ]
    for row, action, kind, status in presses:
        seen = set(Event.objects.values_list("pk", flat=True))
        press(admin, row, action)
        assert events(admin, seen) == [(kind, "success")]
        assert type(row)._default_manager.values_list("status", flat=True).get(pk=row.pk) == status


@pytest.mark.parametrize("model", ["agent", "grant", "serviceprovider", "human"])
def test_a_button_for_a_row_that_cannot_be_is_a_bad_request(admin: Person, model: str) -> None:
    body = {"action": "suspend", "_selected_action": ["no-id"]}
    answer = admin.client.post(f"/admin/registry/{model}/", body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_a_refused_button_says_why_and_is_on_record(admin: Person, reading: Grant) -> None:
    seen = set(Event.objects.values_list("pk", flat=True))
    assert "Only an approved grant can be suspended." in press(admin, reading, "suspend")
    assert events(admin, seen) == [("audit.request.refused", "denied")]


def test_a_refused_form_says_why_and_is_on_record(admin: Person, service_provider: ServiceProvider) -> None:
    seen = set(Event.objects.values_list("pk", flat=True))
    body = {"name": "Another", "audience": service_provider.audience, "allowed": ""}
    page = admin.press("/admin/new-service-provider/", body).content.decode()
    assert "shown this once" not in page
    signed = ("approvals.human.verified", "success")
    assert events(admin, seen) == [signed, ("audit.request.refused", "denied")]


def test_a_denial_by_an_admin_is_theirs_and_on_record(admin: Person, reading: Grant) -> None:
    seen = set(Event.objects.values_list("pk", flat=True))
    press(admin, reading, "deny")
    reading.refresh_from_db()
    assert (reading.status, reading.human_id) == ("denied", admin.human.pk)
    assert events(admin, seen) == [("registry.grant.denied", "success")]


def test_no_row_can_be_added_changed_or_deleted_by_hand(admin: Person, reading: Grant) -> None:
    models = [Agent, Grant, Human, ServiceProvider]
    for model in models:
        base = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        row = model._default_manager.first()
        assert row is not None
        assert admin.get(f"{base}add/").status_code == 403
        assert admin.client.post(f"{base}{row.pk}/change/", {"name": "x"}).status_code == 403
        assert admin.client.post(f"{base}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    for model_admin in site._registry.values():
        assert "delete_selected" not in model_admin.get_actions(_request(admin))


def _request(admin: Person) -> Any:
    return admin.get("/admin/").wsgi_request
