"""Receipts keep the words they were signed with; versions with different words mix safely."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from html import unescape
from unittest.mock import patch

import pytest
from django.conf import settings

from agentauth.protocol.approval_receipt import verify_receipt
from approvals.models import Receipt
from approvals.tests.cast import Person, drawn_on
from kms.services import verification_keys
from registry.models import Grant
from registry.services.agents import suspend_agent
from registry.tests.cast import TESTER, approve

pytestmark = pytest.mark.django_db

# As release 4 worded them before they changed.
APPROVAL = """\
Agent: “Research Assistant”
Service: “Acme Payments” at http://127.0.0.1:8001
The agent may read “calendar” at “Acme Payments”.
The agent may spend up to €100.00 per payment at “Acme Payments” (“payments”).
Each payment above €50.00 asks you again.
No budget limits what you are not asked about: 10 payments of €50.00 move €500.00 without asking you.
Only while you are here: the “I'm here” switch is on.
This ends on 25 December 2026, 09:00 (Europe/Berlin)."""  # noqa: E501
DENIAL = """\
Agent: “Research Assistant”
Service: “Acme Payments” at http://127.0.0.1:8001
The agent may not have what it asked for."""
RESUMPTION = """\
I resume my agent “Research Assistant”, which I suspended.
The agent may again read “calendar” at “Acme Payments”."""
OTHER_WORDS = ["The text to sign is not the one that was shown."]


@contextmanager
def earlier_words() -> Iterator[None]:
    """A process of a version that words its texts differently."""
    with (
        patch("approvals.consent_texts.approval_text", lambda **_terms: APPROVAL),
        patch("approvals.consent_texts.denial_text", lambda **_terms: DENIAL),
        patch("approvals.resume_consent_texts.agent_text", lambda *_terms, **_more: RESUMPTION),
    ):
        yield


def stopped(grant: Grant, owner: Person, now: datetime) -> str:
    """The page on which the owner of a suspended agent resumes it."""
    approve(grant, owner.human, now=now)
    suspend_agent(agent=grant.agent, actor=TESTER, now=now)
    return f"/agents/{grant.agent_id}/resume/"


def check(receipt: Receipt, text: str, now: datetime) -> None:
    """The receipt verifies by itself, with exactly these words."""
    keys = verification_keys(purpose="receipt", now=now)
    found = verify_receipt(receipt.compact, keys=keys, expected_issuer=settings.ISSUER)
    assert (found.consent_text, receipt.consent_text) == (text, text)


def test_approval_with_earlier_words_verifies_and_is_shown_with_them(
    alice: Person, paying: Grant, now: datetime
) -> None:
    with earlier_words():
        assert alice.approve(paying).status_code == 200
    check(Receipt.objects.get(), APPROVAL, now)
    page = unescape(alice.get(f"/approvals/{paying.pk}/receipt/").content.decode())
    assert [line for line in APPROVAL.splitlines() if f"<p>{line}</p>" not in page] == []
    file = alice.get(f"/approvals/{paying.pk}/receipt/?format=jws").content.decode()
    assert file == Receipt.objects.get().compact


def test_resumption_with_earlier_words_verifies(
    alice: Person, reading: Grant, now: datetime
) -> None:
    path = stopped(reading, alice, now)
    with earlier_words():
        assert alice.resume(path).status_code == 200
    check(Receipt.objects.get(kind="resume"), RESUMPTION, now)


@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_page_with_other_words_must_be_reloaded(
    decision: str, alice: Person, reading: Grant
) -> None:
    def drawn() -> str:
        return alice.drawn(reading) if decision == "approve" else alice.denial_drawn(reading)

    with earlier_words():
        old = drawn()
    refused = alice.ask(reading, "statement", decision=decision, drawn=old)
    assert (refused.status_code, refused.json()["changes"]) == (409, OTHER_WORDS)
    new = drawn()
    with earlier_words():
        assert alice.ask(reading, "statement", decision=decision, drawn=new).status_code == 409
    assert alice.ask(reading, "statement", decision=decision, drawn=new).status_code == 200


def test_resume_page_with_other_words_must_be_reloaded(
    alice: Person, reading: Grant, now: datetime
) -> None:
    path = stopped(reading, alice, now)
    with earlier_words():
        old = drawn_on(alice.get(path))
        asked = alice.press_on(path).json()["publicKey"]
    refused = alice.post(f"{path}statement", {"drawn": old})
    assert (refused.status_code, refused.json()["changes"]) == (409, OTHER_WORDS)
    # The statement has the earlier words, and its page would show others now.
    late = alice.post(f"{path}decide", {"credential": alice.device.assertion(asked)})
    assert (late.status_code, late.json()["changes"]) == (409, OTHER_WORDS)
    assert not Receipt.objects.filter(kind="resume").exists()
    assert alice.resume(path).status_code == 200


def test_approval_keeps_the_words_of_its_statement(
    alice: Person, reading: Grant, now: datetime
) -> None:
    with earlier_words():
        asked = alice.statement(reading).json()["publicKey"]
    assert alice.decide(reading, asked).status_code == 200
    check(Receipt.objects.get(), APPROVAL, now)
