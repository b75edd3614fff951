"""Approving and denying: what is shown is signed, once, by the user who was asked."""

import json
import os
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import InvalidReceiptError
from approvals.models import Challenge, Receipt
from approvals.tests.authenticator import UP
from approvals.tests.cast import PAY, READ_CALENDAR, Person
from audit import kinds
from audit.models import Event
from kms.services import verification_keys
from registry.models import Agent, Grant, ServiceProvider
from registry.services.grant_requests import withdraw_grant
from registry.tests.cast import TESTER, AgentClient, assert_refused, pending

pytestmark = pytest.mark.django_db


def assert_pending(grant: Grant) -> None:
    """U3: nothing happened."""
    grant.refresh_from_db()
    assert grant.status == "pending"
    assert not Receipt.objects.exists()


def test_a_signed_approval_grants_what_was_asked(alice: Person, reading: Grant) -> None:
    done = alice.approve(reading)
    assert (done.status_code, done.json()["status"]) == (200, "Approved")
    reading.refresh_from_db()
    assert (reading.status, reading.capabilities) == ("approved", reading.requested_capabilities)
    assert Event.objects.filter(kind=kinds.GRANT_APPROVED).count() == 1


def test_a_signed_denial_carries_its_reason(alice: Person, reading: Grant) -> None:
    assert alice.deny(reading, "Not  today").json()["status"] == "Denied"
    reading.refresh_from_db()
    assert (reading.status, reading.deny_reason) == ("denied", "Not today")
    assert Receipt.objects.get().consent_text.endswith("Reason given to the agent: “Not today”")


def test_what_the_human_lowers_is_what_is_granted(alice: Person, paying: Grant) -> None:
    choices = {
        "permission.1": "on",
        "amount.1": "40",
        "rate": "10",
        "budget.0": "100,00",
        "days": "2",
        "confirm": "20",
    }
    assert alice.approve(paying, **choices).status_code == 200
    paying.refresh_from_db()
    assert paying.capabilities == [PAY | {"max_amount": {"value": "40.00", "currency": "EUR"}}]
    envelope = paying.envelope
    assert envelope is not None
    assert envelope["max_requests_per_minute"] == 10
    assert envelope["budgets"][0]["value"] == "100.00"
    assert envelope["confirm_above"]["value"] == "20.00"
    assert paying.valid_until is not None
    assert paying.valid_until < paying.created_at + timedelta(days=2, minutes=1)
    assert paying.requested_capabilities == [READ_CALENDAR, PAY]


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"permission.7": "on"},
        {"permission.1": "on", "amount.1": "100.01"},
        {"permission.1": "on", "amount.1": "-1"},
        {"permission.1": "on", "amount.1": "1e2"},
        {"permission.1": "on", "budget.0": "500.01"},
        {"permission.1": "on", "rate": "31"},
        {"permission.1": "on", "rate": "0"},
        {"permission.1": "on", "days": "31"},
        {"permission.1": "on", "confirm": "50.01"},
        {"permission.1": "on", "max_amount": "1"},
        {"permission.1": True},
        {f"permission.{number}": "on" for number in range(100)}
        | {f"amount.{number}": "1" for number in range(100)},
    ],
)
def test_the_human_may_only_narrow(alice: Person, paying: Grant, choices: dict[str, Any]) -> None:
    drawn = alice.drawn(paying)
    for act in ("review", "second-step", "statement"):
        answer = alice.ask(paying, act, drawn=drawn, choices=choices, decision="approve")
        assert_refused(answer, 400, "invalid_request")
    assert_pending(paying)


def test_a_daily_budget_can_be_added_and_a_burst_never_exceeds_the_rate(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    limits = {"max_requests_per_minute": 30, "max_burst": 20}
    grant = pending(agent, service_provider, now=now, capabilities=[PAY], envelope=limits)
    choices = {"permission.0": "on", "daily": "75", "rate": "10"}
    assert alice.approve(grant, **choices).status_code == 200
    grant.refresh_from_db()
    assert grant.envelope == {
        "max_requests_per_minute": 10,
        "max_burst": 10,
        "budgets": [
            {"value": "75.00", "currency": "EUR", "period": "day", "zone": alice.human.time_zone}
        ],
    }


def test_AP_1_the_receipt_verifies_alone_and_no_character_can_change(
    alice: Person, paying: Grant
) -> None:
    alice.approve(paying)
    compact = Receipt.objects.get().compact
    keys = verification_keys(purpose="receipt", now=datetime.now(tz=paying.created_at.tzinfo))
    verified = verify_receipt(compact, keys=keys, expected_issuer=settings.ISSUER)
    body = verified.statement.body
    assert (body["grant_id"], body["grant_version"]) == (str(paying.pk), 1)
    assert (body["decision"], body["second_step"]) == ("approve", True)
    assert len(b64u_decode(str(body["nonce"]))) == 32
    assert "spend up to €100.00 per payment at “Acme Payments”" in verified.consent_text
    header, payload, signature = compact.split(".")
    claims = json.loads(b64u_decode(payload))
    for member in claims["statement"]:
        changed = json.loads(json.dumps(claims))
        changed["statement"][member] = f"{changed['statement'][member]}x"
        forged = ".".join([header, b64u_encode(json.dumps(changed).encode()), signature])
        with pytest.raises(InvalidReceiptError):
            verify_receipt(forged, keys=keys, expected_issuer=settings.ISSUER)


def test_AP_2_changes_since_the_page_was_drawn_are_listed(
    alice: Person, reading: Grant, now: datetime
) -> None:
    drawn = alice.drawn(reading)
    Agent.objects.update(name="Other Name")
    body = assert_refused(alice.statement(reading, drawn=drawn), 409, "grant_changed")
    assert body["changes"] == [
        "The agent was called “Research Assistant” and is now called “Other Name”."
    ]
    Agent.objects.update(name="Research Assistant")
    ServiceProvider.objects.update(allowed=["write:files"])
    assert_refused(alice.statement(reading, drawn=drawn), 409, "grant_changed")
    ServiceProvider.objects.update(allowed=["read:calendar"], audience="http://127.0.0.1:9999")
    assert_refused(alice.statement(reading, drawn=drawn), 409, "grant_changed")
    assert_pending(reading)


def test_AP_2_a_request_withdrawn_after_the_statement_is_not_granted(
    alice: Person, reading: Grant, now: datetime
) -> None:
    options = alice.statement(reading).json()["publicKey"]
    withdraw_grant(grant=reading, actor=TESTER, now=now)
    assert_refused(alice.decide(reading, options), 409, "grant_changed")
    reading.refresh_from_db()
    assert reading.status == "withdrawn"
    assert not Receipt.objects.exists()


def test_AP_2_an_agent_renamed_after_the_statement_is_not_granted(
    alice: Person, reading: Grant
) -> None:
    options = alice.statement(reading).json()["publicKey"]
    Agent.objects.update(name="Other Name")
    assert_refused(alice.decide(reading, options), 409, "grant_changed")
    assert_pending(reading)


def test_AP_4_an_assertion_for_one_request_is_nothing_for_another(
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    reading: Grant,
    now: datetime,
) -> None:
    other = pending(
        agent, service_provider, now=now, capabilities=[{"type": "read", "resource": "calendar/x"}]
    )
    options = alice.statement(reading).json()["publicKey"]
    assert_refused(alice.decide(other, options), 400, "invalid_assertion")
    alice.statement(other)
    assert_refused(alice.decide(other, options), 400, "invalid_assertion")
    assert_pending(other)
    assert_pending(reading)


def test_AP_7_the_same_answer_posted_again_gets_the_same_answer(
    alice: Person, reading: Grant
) -> None:
    options = alice.statement(reading).json()["publicKey"]
    body = {"credential": alice.device.assertion(options)}
    answers = [alice.post(f"/approvals/{reading.pk}/decide", body) for _ in range(3)]
    assert {(each.status_code, each.content) for each in answers} == {(200, answers[0].content)}
    assert Event.objects.filter(kind=kinds.GRANT_APPROVED).count() == 1
    assert Receipt.objects.count() == 1


def test_AP_9_AP_28_another_humans_request_does_not_exist(
    bob: Person, alice: Person, reading: Grant
) -> None:
    drawn = alice.drawn(reading)
    unknown = bob.get("/approvals/01890000-0000-7000-8000-000000000000/")
    mine = bob.get(f"/approvals/{reading.pk}/")
    assert (mine.status_code, unknown.status_code) == (404, 404)
    for act in ("review", "second-step", "statement", "decide"):
        assert_refused(bob.ask(reading, act, drawn=drawn, decision="approve"), 404, "not_found")
    assert_pending(reading)


def test_AP_11_a_passkey_of_a_colleague_cannot_sign(
    alice: Person, bob: Person, reading: Grant
) -> None:
    options = alice.statement(reading).json()["publicKey"]
    credential = bob.device.assertion(options)
    assert_refused(
        alice.post(f"/approvals/{reading.pk}/decide", {"credential": credential}),
        400,
        "invalid_assertion",
    )
    assert_pending(reading)


def test_AP_12_an_assertion_without_user_verification_is_refused(
    alice: Person, paying: Grant
) -> None:
    drawn = alice.drawn(paying)
    alice.ask(paying, "second-step", drawn=drawn)
    options = alice.statement(paying, drawn=drawn).json()["publicKey"]
    assert options["userVerification"] == "required"
    assert_refused(alice.decide(paying, options, flags=UP), 400, "invalid_assertion")
    assert_pending(paying)


def test_AP_13_OG_22_a_dangerous_permission_needs_the_second_step(
    alice: Person, paying: Grant
) -> None:
    body = assert_refused(alice.statement(paying), 403, "confirmation_required")
    [sentence] = body["dangerous"]
    assert sentence.startswith("The agent may spend up to €100.00 per payment at “Acme Payments”")
    assert sentence.endswith("at most €500.00 a day.")
    assert_refused(
        alice.decide(paying, {"challenge": b64u_encode(os.urandom(32))}), 400, "invalid_assertion"
    )
    assert_pending(paying)


def test_AP_13_the_second_step_is_for_those_very_terms_and_once(
    alice: Person, paying: Grant
) -> None:
    drawn = alice.drawn(paying)
    lower = {"permission.1": "on", "amount.1": "10"}
    # The second step too requires the text that is on the page.
    assert_refused(
        alice.ask(paying, "second-step", drawn=drawn, choices=lower), 409, "grant_changed"
    )
    lowered = alice.ask(paying, "review", drawn=drawn, choices=lower).json()["drawn"]
    assert alice.ask(paying, "second-step", drawn=lowered, choices=lower).status_code == 200
    assert_refused(alice.statement(paying, drawn=drawn), 403, "confirmation_required")
    assert alice.statement(paying, drawn=drawn, choices=lower).status_code == 200
    assert_refused(
        alice.statement(paying, drawn=drawn, choices=lower), 403, "confirmation_required"
    )
    assert Event.objects.filter(kind=kinds.SECOND_STEP_TAKEN).count() == 1


def test_AP_13_the_second_step_of_another_session_does_not_count(
    alice: Person, paying: Grant
) -> None:
    alice.ask(paying, "second-step")
    alice.client.logout()
    alice.sign_in()
    assert_refused(alice.statement(paying), 403, "confirmation_required")


def test_AP_14_the_challenge_lives_on_the_server_only(alice: Person, reading: Grant) -> None:
    options = alice.statement(reading).json()["publicKey"]
    row = Challenge.objects.get(purpose="approval")
    assert b64u_encode(bytes(row.challenge)) == options["challenge"]
    chosen = b64u_encode(os.urandom(32))
    body = {"credential": alice.device.assertion({"challenge": chosen}), "challenge": chosen}
    assert_refused(alice.post(f"/approvals/{reading.pk}/decide", body), 400, "invalid_assertion")
    # A challenge answered wrongly is spent, so even the right answer comes too late.
    assert_refused(alice.decide(reading, options), 400, "invalid_assertion")
    assert_pending(reading)


def test_AP_14_a_challenge_ends_after_five_minutes(
    alice: Person, reading: Grant, now: datetime
) -> None:
    options = alice.statement(reading).json()["publicKey"]
    Challenge.objects.update(expires_at=now)
    assert_refused(alice.decide(reading, options), 400, "invalid_assertion")
    assert_pending(reading)


def test_AP_18_a_signature_from_an_embedded_page_is_refused(alice: Person, reading: Grant) -> None:
    for change in ({"crossOrigin": True}, {"topOrigin": "https://evil.example"}):
        options = alice.statement(reading).json()["publicKey"]
        assert_refused(alice.decide(reading, options, **change), 400, "invalid_assertion")
    assert_pending(reading)


def test_OG_3_random_bytes_are_refused_as_a_signature(alice: Person, reading: Grant) -> None:
    options = alice.statement(reading).json()["publicKey"]
    assert_refused(
        alice.decide(reading, options, signature=os.urandom(70)), 400, "invalid_assertion"
    )
    assert_refused(
        alice.post(f"/approvals/{reading.pk}/decide", {"credential": "x"}), 400, "invalid_assertion"
    )
    assert_pending(reading)


def test_a_decided_request_cannot_be_decided_again(alice: Person, reading: Grant) -> None:
    drawn = alice.drawn(reading)
    alice.deny(reading)
    assert_refused(alice.statement(reading, drawn=drawn), 409, "invalid_state")
    assert alice.get(f"/approvals/{reading.pk}/").context["status"] == "denied"


def test_an_expired_request_is_gone(alice: Person, reading: Grant, now: datetime) -> None:
    drawn = alice.drawn(reading)
    Grant.objects.update(expires_at=now)
    assert_refused(alice.statement(reading, drawn=drawn), 410, "expired")
    assert "Expired" in alice.get(f"/approvals/{reading.pk}/").content.decode()


def test_a_drawn_page_we_did_not_make_is_refused(
    alice: Person, reading: Grant, paying: Grant
) -> None:
    assert_refused(alice.statement(reading, drawn="forged:token"), 400, "invalid_request")
    assert_refused(alice.statement(reading, drawn=alice.drawn(paying)), 400, "invalid_request")


@pytest.mark.django_db(transaction=True)
def test_AP_7_twenty_at_once_make_one_grant_and_one_event(alice: Person, reading: Grant) -> None:
    options = alice.statement(reading).json()["publicKey"]
    body = {"credential": alice.device.assertion(options)}
    answers: list[Any] = []
    barrier = threading.Barrier(20)

    def press() -> None:
        barrier.wait()
        answers.append(alice.post(f"/approvals/{reading.pk}/decide", body))
        connection.close()

    threads = [threading.Thread(target=press) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(each.status_code, each.content) for each in answers} == {(200, answers[0].content)}
    assert Event.objects.filter(kind=kinds.GRANT_APPROVED).count() == 1
    assert Receipt.objects.count() == 1
