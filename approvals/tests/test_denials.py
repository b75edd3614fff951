"""An administrator denies another user's request by signature, with a receipt (SA-7)."""

from datetime import datetime

import pytest
from django.conf import settings

from agentauth.protocol.approval_receipt import verify_receipt
from approvals.models import Receipt
from approvals.tests.authenticator import UP
from approvals.tests.cast import Person
from audit import kinds
from audit.models import Event
from kms.services import verification_keys
from registry.models import Grant, ServiceProvider
from registry.services.grant_requests import withdraw_grant
from registry.tests.cast import TESTER, AgentClient, assert_refused

pytestmark = pytest.mark.django_db
LIST = "/admin/registry/grant/"


def choose(admin: Person, *rows: Grant) -> str:
    """Press the list's button for these rows; returns the target address."""
    body = {"action": "deny", "_selected_action": [str(row.pk) for row in rows]}
    return str(admin.client.post(LIST, body)["Location"])


def test_SA_7_an_administrators_denial_is_signed_with_a_receipt(
    admin: Person, alice: Person, reading: Grant, now: datetime
) -> None:
    path = choose(admin, reading)
    assert path == f"/denials/{reading.pk}/"
    page = admin.get(path).content.decode()
    assert "Deny with passkey" in page
    assert "Read “calendar”" in page
    assert admin.deny_as_admin(reading, "Not  here").json()["status"] == "Denied"
    reading.refresh_from_db()
    assert (reading.status, reading.human_id, reading.deny_reason) == (
        "denied",
        admin.human.pk,
        "Not here",
    )
    assert Event.objects.get(kind=kinds.GRANT_DENIED).actor_id == str(admin.human.pk)
    kept = Receipt.objects.get()
    keys = verification_keys(purpose="receipt", now=now)
    found = verify_receipt(kept.compact, keys=keys, expected_issuer=settings.ISSUER)
    body = found.statement.to_json()
    assert (body["kind"], body["decision"], body["grant_id"]) == (
        "approval",
        "deny",
        str(reading.pk),
    )
    assert (body["human_id"], body["deny_reason"]) == (str(admin.human.pk), "Not here")
    # Its owner sees who denied it.
    shown = alice.get(f"/approvals/{reading.pk}/").content.decode()
    assert "An administrator denied this" in shown
    assert "Ada" not in alice.get(f"/approvals/{reading.pk}/receipt/").content.decode()


def test_SA_7_the_agent_gets_no_receipt_of_an_administrators_denial(
    admin: Person, alice: Person, agent: AgentClient, reading: Grant, paying: Grant
) -> None:
    """It names the administrator's account and passkey. The agent reads the reason in its grant."""
    assert admin.deny_as_admin(reading, "Not here").status_code == 200
    path = f"/v1/grants/{reading.pk}/receipt"
    assert_refused(agent.call("GET", path), 404, "not_found")
    assert alice.get(path).json()["receipt"] == Receipt.objects.get().compact
    assert alice.deny(paying, "Not this").status_code == 200
    assert agent.call("GET", f"/v1/grants/{paying.pk}/receipt").status_code == 200


def test_SA_7_a_request_decided_since_the_page_was_opened_is_not_denied(
    admin: Person, reading: Grant, now: datetime
) -> None:
    options = admin.press_on(
        f"/denials/{reading.pk}/", reason="Denied by an administrator."
    ).json()["publicKey"]
    withdraw_grant(grant=reading, actor=TESTER, now=now)
    credential = admin.device.assertion(options)
    assert_refused(
        admin.post(f"/denials/{reading.pk}/decide", {"credential": credential}),
        409,
        "grant_changed",
    )
    assert not Receipt.objects.exists()


def test_SA_7_the_session_alone_denies_nothing(admin: Person, reading: Grant) -> None:
    path = choose(admin, reading)
    assert_refused(admin.post(f"{path}decide"), 400, "invalid_assertion")
    assert_refused(admin.deny_as_admin(reading, flags=UP), 400, "invalid_assertion")
    reading.refresh_from_db()
    assert reading.status == "pending"
    assert not Receipt.objects.exists()


def test_SA_7_what_moved_since_the_page_was_drawn_is_not_denied(
    admin: Person, agent: AgentClient, reading: Grant
) -> None:
    path = f"/denials/{reading.pk}/"
    page = admin.get(path)
    ServiceProvider.objects.update(name="Another name")
    body = {"drawn": page.context["denial"].drawn, "reason": page.context["reason"]}
    assert_refused(admin.post(f"{path}statement", body), 409, "grant_changed")
    agent.rotate()
    assert_refused(admin.post(f"{path}statement", body), 409, "grant_changed")


def test_AP_2_a_denial_signs_the_reason_that_was_shown(
    admin: Person, alice: Person, reading: Grant, paying: Grant
) -> None:
    """A typed reason is part of the text: the page shows it as signed, and its token covers it."""
    path = f"/denials/{reading.pk}/"
    body = {"drawn": admin.drawn_at(path), "reason": "Typed since."}
    assert_refused(admin.post(f"{path}statement", body), 409, "grant_changed")
    shown = admin.post(f"{path}review", body).json()
    assert shown["sentences"][-1] == "Reason given to the agent: “Typed since.”"
    assert admin.post(f"{path}statement", body | {"drawn": shown["drawn"]}).status_code == 200
    own = {"drawn": alice.denial_drawn(paying, "No.")}
    choices = {"reason": "No"}
    assert_refused(alice.statement(paying, "deny", choices=choices, **own), 409, "grant_changed")
    # The token of the approving half covers its own text only.
    assert_refused(alice.statement(paying, "deny", drawn=alice.drawn(paying)), 409, "grant_changed")
    assert_refused(alice.statement(paying, drawn=alice.denial_drawn(paying)), 409, "grant_changed")


def test_AP_2_no_reason_is_shown_on_a_page_that_changed(alice: Person, paying: Grant) -> None:
    drawn = alice.denial_drawn(paying)
    ServiceProvider.objects.update(name="Another name")
    body = {"drawn": drawn, "reason": "No."}
    assert_refused(alice.post(f"/approvals/{paying.pk}/review-denial", body), 409, "grant_changed")
    assert_refused(
        alice.post(f"/approvals/{paying.pk}/review-denial", {"drawn": drawn}),
        400,
        "invalid_request",
    )


def test_SA_7_only_administrators_deny_anothers_request(
    alice: Person, bob: Person, reading: Grant
) -> None:
    path = f"/denials/{reading.pk}/"
    for person in (alice, bob):
        assert person.get(path).status_code == 404
        assert person.get(f"/denials/?id={reading.pk}").status_code == 404
        for act in ("review", "statement", "decide"):
            assert_refused(person.post(f"{path}{act}"), 404, "not_found")


def test_SA_7_what_was_decided_cannot_be_denied(
    admin: Person, reading: Grant, paying: Grant, now: datetime
) -> None:
    withdraw_grant(grant=reading, actor=TESTER, now=now)
    assert admin.get(f"/denials/{reading.pk}/").status_code == 409
    page = admin.get(choose(admin, reading, paying)).content.decode()
    assert f'href="/denials/{paying.pk}/"' in page
    assert f'href="/denials/{reading.pk}/"' not in page
