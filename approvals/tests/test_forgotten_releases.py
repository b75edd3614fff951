"""The receipt of a release after a restore covers many users: what happens when one is deleted."""

import pytest
from django.utils import timezone

from agentauth.protocol.approval_receipt import verify_receipt
from approvals.models import Challenge, Receipt
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.tests.cast import Person
from approvals.tests.database_rollback import restored
from approvals.tests.test_grant_release_after_restore import (
    decide,
    grant,
    outside,
    reviewed,
    statement,
)
from audit import kinds
from audit.models import Event
from kms.services import verification_keys
from registry.models import Grant
from registry.services.evidence_contradictions import find_contradictions
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db
__all__ = ["grant", "outside"]
ERASED = Event.objects.filter(kind=kinds.HUMAN_ERASED)


def test_a_release_proves_as_before_when_a_person_it_covers_is_deleted(
    grant: Grant, admin: Person, alice: Person
) -> None:
    row = restored()
    admin.sign_in()
    page = reviewed(admin, row, grant)
    # The page names the agent; the signed text, which outlives its user, does not.
    assert b"Research Assistant" in page.content
    assert decide(admin, row, statement(admin, row, page, grant)).status_code == 200
    person, before = grant.agent.human, Receipt.objects.get(kind="release")
    assert person is not None
    delete_human(human=person, actor=TESTER, now=timezone.now())
    kept = Receipt.objects.get(kind="release")
    assert (kept.compact, kept.consent_text) == (before.compact, before.consent_text)
    keys = verification_keys(purpose="receipt", now=timezone.now())
    found = verify_receipt(kept.compact, keys=keys, expected_issuer="http://localhost:8000")
    assert "Research Assistant" not in found.consent_text
    assert found.consent_text.startswith(f"Grant: {grant.pk}. Service: “")
    assert not any(event.data["receipts"].get(str(kept.pk)) for event in ERASED.all())


def test_old_release_text_is_erased_with_the_owner_of_the_named_agent(
    grant: Grant, admin: Person, alice: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = restored()
    admin.sign_in()
    text = "Agent: “Research Assistant”. Service: “Acme”."
    monkeypatch.setattr("approvals.consent_texts.release_text", lambda **_: text)
    assert (
        decide(admin, row, statement(admin, row, reviewed(admin, row, grant), grant)).status_code
        == 200
    )
    delete_human(human=bob.human, actor=TESTER, now=timezone.now())
    assert "Research Assistant" in Receipt.objects.get(kind="release").consent_text
    person = grant.agent.human
    assert person is not None
    delete_human(human=person, actor=TESTER, now=timezone.now())
    kept = Receipt.objects.get(kind="release")
    assert (kept.consent_text, kept.compact, kept.human_id) == ("", "", admin.human.pk)
    assert not Challenge.objects.filter(consent_text__contains="Research Assistant").exists()
    assert str(kept.pk) in ERASED.latest("id").data["receipts"]
    assert not list(find_contradictions(now=timezone.now()))
