"""Decisions and ceremonies from before a suspension are void after it: the user decides again."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import pytest

from approvals.tests.cast import PAY, Person
from audit.models import Event
from registry.models import Grant, ServiceProvider
from registry.tests.cast import AgentClient, approved, assert_refused, enrolled
from verifier.models import Confirmation
from verifier.tests.scene import Scene, key

pytestmark = pytest.mark.django_db
# Who suspends and resumes what.
Stop = Callable[[Scene, Person, Person], None]


@pytest.fixture
def shop(
    alice: Person,
    agent: AgentClient,
    provider_and_secret: tuple[ServiceProvider, str],
    now: datetime,
) -> Scene:
    """Alice's grant to pay, above 50.00 only with her confirmation."""
    provider, secret = provider_and_secret
    above = {"value": "50.00", "currency": "EUR"}
    grant = approved(
        agent, provider, now=now, capabilities=[PAY], envelope={"confirm_above": above}
    )
    return Scene(grant, agent.agent(), alice.human, provider, secret, agent.signer, "")


def by_owner(shop: Scene, alice: Person, admin: Person) -> None:
    assert alice.client.post(f"/agents/{shop.agent.pk}/suspend").status_code == 302
    assert alice.resume(f"/agents/{shop.agent.pk}/resume/").status_code == 200


def by_admin(kind: str, row: Callable[[Scene], Any], path: str) -> Stop:
    def stop(shop: Scene, alice: Person, admin: Person) -> None:
        body = {"action": "suspend", "_selected_action": [str(row(shop).pk)]}
        assert admin.client.post(f"/admin/registry/{path}/", body).status_code == 302
        assert admin.resume(f"/resume/{kind}/{row(shop).pk}/").status_code == 200

    return stop


STOPS: Mapping[str, Stop] = {
    "agent, by its owner": by_owner,
    "agent": by_admin("agent", lambda shop: shop.agent, "agent"),
    "grant": by_admin("grant", lambda shop: shop.grant, "grant"),
    "human": by_admin("human", lambda shop: shop.human, "human"),
    "service provider": by_admin("service_provider", lambda shop: shop.provider, "serviceprovider"),
}


def ask_confirmation(shop: Scene, operation: str) -> str:
    answer = shop.pay("90.00", operation)
    assert answer["reason"] == "confirm_above"
    return str(answer["confirmation_id"])


def say_yes(alice: Person, confirmation: str) -> Any:
    path = f"/confirmations/{confirmation}/"
    options = alice.press_on(path, decision="confirm").json()["publicKey"]
    return alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})


@pytest.mark.parametrize("what", STOPS)
def test_EN_11_a_yes_from_before_a_suspension_is_not_used_after_it(
    what: str, shop: Scene, alice: Person, admin: Person
) -> None:
    operation = key()
    first = ask_confirmation(shop, operation)
    assert say_yes(alice, first).status_code == 200
    STOPS[what](shop, alice, admin)
    second = ask_confirmation(shop, operation)
    assert second != first
    # A new confirmation, made afterwards, is used once.
    alice.sign_in()
    assert say_yes(alice, second).status_code == 200
    assert shop.pay("90.00", operation)["valid"]


def test_EN_11_only_what_was_suspended_loses_its_yes(
    shop: Scene, alice: Person, admin: Person, now: datetime
) -> None:
    other = approved(enrolled(alice.human, now=now), shop.provider, now=now)
    operation = key()
    assert say_yes(alice, ask_confirmation(shop, operation)).status_code == 200
    assert alice.client.post(f"/agents/{other.agent_id}/suspend").status_code == 302
    assert alice.resume(f"/agents/{other.agent_id}/resume/").status_code == 200
    assert shop.pay("90.00", operation)["valid"]


@pytest.mark.parametrize("what", ["agent, by its owner", "agent", "grant", "service provider"])
def test_EN_11_a_yes_begun_before_a_suspension_is_not_finished_after_it(
    what: str, shop: Scene, alice: Person, admin: Person
) -> None:
    confirmation = ask_confirmation(shop, key())
    path = f"/confirmations/{confirmation}/"
    options = alice.press_on(path, decision="confirm").json()["publicKey"]
    STOPS[what](shop, alice, admin)
    # Her passkey signs the earlier question.
    answer = alice.post(f"{path}decide", {"credential": alice.device.assertion(options)})
    assert_refused(answer, 400, "invalid_assertion")
    assert Confirmation.objects.get(pk=confirmation).status == "pending"


@pytest.mark.parametrize("what", ["agent, by its owner", "agent", "service provider"])
def test_AP_9_approval_begun_before_a_suspension_cannot_be_finished(
    what: str, shop: Scene, alice: Person, admin: Person, agent: AgentClient, now: datetime
) -> None:
    asked = agent.ask(shop.provider)
    assert asked.status_code == 201, asked.content
    grant = Grant.objects.get(status="pending")
    options = alice.statement(grant).json()["publicKey"]
    STOPS[what](shop, alice, admin)
    assert_refused(alice.decide(grant, options), 400, "invalid_assertion")
    grant.refresh_from_db()
    assert grant.status == "pending"
    assert alice.approve(grant).status_code == 200


def test_SA_1_what_was_resumed_once_is_not_called_resumed_again(
    shop: Scene, alice: Person, admin: Person
) -> None:
    path = f"/agents/{shop.agent.pk}/resume/"
    suspend = f"/agents/{shop.agent.pk}/suspend"
    alice.client.post(suspend)
    options = alice.press_on(path).json()["publicKey"]
    body = {"credential": alice.device.assertion(options)}
    # After a lost answer, the same call gets the same answer and acts only once.
    assert [alice.post(f"{path}decide", body).status_code for _ in "ab"] == [200, 200]
    alice.client.post(suspend)
    assert_refused(alice.post(f"{path}decide", body), 400, "invalid_assertion")
    shop.agent.refresh_from_db()
    assert shop.agent.status == "suspended"
    assert Event.objects.filter(kind="registry.agent.resumed").count() == 1
