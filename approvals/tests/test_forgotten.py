"""A person can be forgotten: no text of theirs or of their agents stays anywhere, and the log proves as before."""

from datetime import datetime
from pathlib import Path

import pytest
from django.db import IntegrityError, transaction
from django.db.models import Q
from pytest_django.fixtures import Settings

from approvals.models import Receipt
from approvals.services.expiry import expire_everything
from approvals.services.forgetting import AGAIN_FOR
from approvals.services.leaving import delete_human
from approvals.tests import planted as words
from approvals.tests.cast import Person
from approvals.tests.planted import Planted, found, in_database, in_files, listed
from audit.archive.archiving import archive_audit
from audit.checkpoints import checkpoint_log
from audit.models import Opening
from audit.sequencer import sequence_until_empty
from audit.services import seal_audit
from audit.stores import store_at
from audit.verification import verify_log
from registry.models import Grant, Human
from registry.services.standing_grants import UNTOLD, review
from registry.tests.cast import TESTER, AgentClient

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(settings: Settings, tmp_path: Path) -> Path:
    """The log signs, and has a store outside."""
    settings.AUDIT_SIGNER, settings.AUDIT_KEYS = "audit.tests.signing.signer", "audit.tests.signing.keys"
    settings.AUDIT_STORE = f"file:{tmp_path}"
    return tmp_path


def archive(now: datetime, store: Path) -> None:
    sequence_until_empty(now=now)
    checkpoint_log(now=now)
    archive_audit(now=now, store=store_at(f"file:{store}"))


def test_no_text_of_a_person_goes_into_an_event_or_the_archive(
    admin: Person, store: Path, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        words.live(Planted(now), admin)
    assert found(caplog.text) == set()
    hits = in_database()
    # What must be found, or the search proves nothing.
    assert len(hits["audit_opening.value"]) > 30
    assert not [place for place in hits if place.startswith("audit_event")]
    archive(now, store)
    assert listed(in_files(store)) == ""
    assert verify_log().ok


def test_no_text_of_a_deleted_person_stays_anywhere(admin: Person, store: Path, now: datetime) -> None:
    planted = Planted(now)
    words.live(planted, admin)
    archive(now, store)
    human = planted.person.human
    delete_human(human=human, actor=TESTER, now=now)
    archive(now, store)
    assert listed(in_database()) == ""
    assert listed(in_files(store)) == ""
    assert verify_log().ok


def test_the_database_blanks_no_receipt_of_a_person_who_is_there(
    alice: Person, bob: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    assert alice.approve(reading).status_code == 200
    delete_human(human=bob.human, actor=TESTER, now=now)
    receipt = Receipt.objects.filter(human=alice.human)
    blank = {"compact": "", "consent_text": "", "passkey_name": ""}
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        receipt.update(**blank)
    human = alice.human
    delete_human(human=human, actor=TESTER, now=now)
    # Nothing else of it changes, and it does not come back.
    for change in ({"decision": "deny"}, {"compact": "x"}, {**blank, "subject": "other"}):
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            Receipt.objects.filter(human=human).update(**change)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Receipt.objects.filter(human=human).delete()


def test_verify_audit_names_a_receipt_that_was_blanked_without_an_erasure(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    assert alice.approve(reading).status_code == 200
    assert dict(review()) == {}
    # As a role that owns the tables might, to hide what was signed.
    Human.objects.filter(pk=alice.human.pk).update(status="deleted")
    Grant.objects.update(status="revoked")
    Receipt.objects.update(compact="", consent_text="", passkey_name="")
    assert dict(review()) == {str(reading.pk): UNTOLD}


def test_what_an_earlier_release_left_of_a_deleted_person_is_erased(
    admin: Person, store: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Planted(now)
    words.live(planted, admin)

    def erase_little(*, human: Human, email: str, **_: object) -> None:
        """What release 2 erased."""
        Opening.objects.filter(Q(event__human_id=human.pk) | Q(member="email", value=email)).delete()

    with monkeypatch.context() as patch:
        patch.setattr("approvals.services.leaving.erase_texts", erase_little)
        delete_human(human=planted.person.human, actor=TESTER, now=now)
    assert len(in_database()) > 10
    later = now + AGAIN_FOR * 2
    assert expire_everything(now=later)["people"] == 1
    assert listed(in_database()) == ""
    assert expire_everything(now=later)["people"] == 0
    seal_audit(now=later)
    assert verify_log().ok
