"""What an owner ends for good: a grant by one press, an agent by its name and a passkey (SA-8)."""

import pytest

from approvals.tests.cast import Person
from approvals.tests.test_destructive_actions import granted, shown
from registry.models import Agent, Grant, ServiceProvider
from registry.tests.cast import assert_refused

__all__ = ["granted"]
pytestmark = pytest.mark.django_db


def test_SA_8_an_owner_revokes_a_grant_with_one_press_after_its_page(
    alice: Person, granted: Grant
) -> None:
    place = f"/approvals/{granted.pk}/revoke/"
    assert place in shown(alice, f"/agents/{granted.agent_id}/")
    page = shown(alice, place)
    assert "“Acme Payments”" in page
    assert "data-verify" not in page
    assert alice.end(place)["Location"] == f"/agents/{granted.agent_id}/"
    granted.refresh_from_db()
    assert granted.status == "revoked"


def test_SA_8_an_owners_page_that_is_old_revokes_nothing(
    alice: Person, granted: Grant, service_provider: ServiceProvider
) -> None:
    press = alice.ready_to_end(f"/approvals/{granted.pk}/revoke/")
    Agent.objects.update(name="Another name")
    assert_refused(press(), 409, "grant_changed")
    granted.refresh_from_db()
    assert granted.status == "approved"


def test_SA_8_revoking_an_agent_without_grants_still_needs_a_signature(
    alice: Person, granted: Grant
) -> None:
    place = f"/agents/{granted.agent_id}/revoke/"
    address = place + alice.get(place).context["found"].shown
    assert_refused(
        alice.client.post(address, {"typed": granted.agent.name}), 401, "verification_required"
    )
    # Revoking its grants first, one press each, must not get around the agent's signature.
    assert alice.end(f"/approvals/{granted.pk}/revoke/").status_code == 302
    address = place + alice.get(place).context["found"].shown
    assert_refused(
        alice.client.post(address, {"typed": granted.agent.name}), 401, "verification_required"
    )
    assert alice.end(place)["Location"] == f"/agents/{granted.agent_id}/"
    granted.agent.refresh_from_db()
    assert granted.agent.status == "revoked"


def test_SA_8_suspending_stays_one_press(alice: Person, granted: Grant) -> None:
    assert alice.client.post(f"/agents/{granted.agent_id}/suspend").status_code == 302
    granted.agent.refresh_from_db()
    assert granted.agent.status == "suspended"
