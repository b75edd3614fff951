"""A user can be erased: no text of theirs or their agents remains, and the log still verifies."""

import json
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.db.models import Q
from pytest_django.fixtures import Settings

from agentauth.protocol.encoding import b64u_encode, sha256
from approvals.models import Receipt
from approvals.services.expiry import expire_everything
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.services.text_erasure import AGAIN_FOR
from approvals.tests import canary_texts as words
from approvals.tests.canary_texts import Planted, found, in_database, in_files, listed, word
from approvals.tests.cast import Person, registered
from approvals.tests.test_human_suspension_and_erasure import everything
from audit import kinds
from audit.archive.segment_writing import archive_audit
from audit.checkpoints.signing import checkpoint_log
from audit.log.sequencer import sequence_until_empty
from audit.models import DroppedMonth, Event, Opening
from audit.services import record, seal_audit
from audit.stores.store_factory import store_at
from audit.tests.signing import sign_with
from audit.verify.verification import verify_log
from registry.models import Agent, Grant, Human
from registry.services.evidence_contradictions import (
    ERASED_BUT_MISSING,
    ERASED_BUT_PRESENT,
    ERASURE_MISSING,
    ROW_UNSEALED,
    find_contradictions,
)
from registry.tests.cast import TESTER, AgentClient, assert_refused
from verifier.models import Confirmation

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(settings: Settings, tmp_path: Path) -> Path:
    """A signing log, with a store."""
    sign_with(settings, f"file:{tmp_path}")
    return tmp_path


def named(now: datetime) -> dict[str, str]:
    """What verify_audit reports besides the log and invalid seals, with the reason."""
    found = find_contradictions(now=now)
    return {each.subject: each.problem for each in found if each.problem != ROW_UNSEALED}


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
    # These must be found, or the search proves nothing.
    assert len(hits["audit_opening.value"]) > 30
    assert not [place for place in hits if place.startswith("audit_event")]
    digests = [b64u_encode(sha256(each.encode())) for each in set().union(*hits.values())]
    events = json.dumps(list(Event.objects.values_list("data", flat=True)))
    assert [digest for digest in digests if digest in events] == []
    archive(now, store)
    assert listed(in_files(store)) == ""
    assert verify_log().ok


def test_OG_28_no_text_of_a_deleted_person_stays_anywhere(
    admin: Person, store: Path, now: datetime
) -> None:
    planted = Planted(now)
    words.live(planted, admin)
    archive(now, store)
    human = planted.person.human
    # No digest of a single word either, against which a guess could be tested.
    digests = {b64u_encode(sha256(each.encode())) for each in set().union(*in_database().values())}
    assert any(digest in everything() for digest in digests)
    delete_human(human=human, actor=TESTER, now=now)
    archive(now, store)
    assert listed(in_database()) == ""
    assert [digest for digest in digests if digest in everything()] == []
    assert listed(in_files(store)) == ""
    assert verify_log().ok


def test_admins_words_about_another_user_are_erased_with_the_admin(
    admin: Person, alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    other = registered("other@example.org", "Other", now=now, is_staff=True)
    assert other.deny_as_admin(reading, word("denial")).status_code == 200
    delete_human(human=other.human, actor=TESTER, now=now)
    assert listed(in_database()) == ""
    # Alice still sees that it was denied, and her agent that there is no receipt.
    page = alice.get(f"/approvals/{reading.pk}/")
    assert page.status_code == 200
    assert "An administrator denied this" in page.content.decode()
    assert_refused(agent.call("GET", f"/v1/grants/{reading.pk}/receipt"), 404, "not_found")
    assert named(now) == {}


def test_administrators_read_what_is_left_of_a_deleted_person(
    admin: Person, store: Path, now: datetime
) -> None:
    planted = Planted(now)
    place = words.live(planted, admin)
    human = planted.person.human
    delete_human(human=human, actor=TESTER, now=now)
    for kind, pk in (("human", human.pk), ("agent", place.agent.pk), ("grant", place.grant.pk)):
        assert admin.get(f"/admin/registry/{kind}/").status_code == 200
        assert admin.get(f"/admin/registry/{kind}/{pk}/change/").status_code == 200
    assert admin.get("/admin/").status_code == 200
    confirmed = Confirmation.objects.get(status="consumed")
    assert confirmed.action == {"type": "transact", "amount": {"value": "70.00", "currency": "EUR"}}


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
    # No other member may change, and the texts cannot be restored.
    for change in ({"decision": "deny"}, {"compact": "x"}, {**blank, "subject": "other"}):
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            Receipt.objects.filter(human=human).update(**change)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Receipt.objects.filter(human=human).delete()


def test_verify_audit_names_a_receipt_that_was_blanked_without_an_erasure(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    assert alice.approve(reading).status_code == 200
    assert named(now) == {}
    # As an owner of the tables might, to hide what was signed.
    Human.objects.filter(pk=alice.human.pk).update(status="deleted")
    Grant.objects.update(status="revoked")
    Receipt.objects.update(compact="", consent_text="", passkey_name="")
    assert named(now) == {str(reading.pk): ERASURE_MISSING}
    assert "receipt" in {each.kind for each in find_contradictions(now=now)}


def test_verify_audit_believes_an_erasure_of_what_was_that_persons_alone(
    alice: Person, bob: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    """As a process that may add events and change accounts might, to hide what Alice signed."""
    assert alice.approve(reading).status_code == 200
    receipt, gone, hers = Receipt.objects.get(), bob.human, alice.human
    delete_human(human=gone, actor=TESTER, now=now)
    Agent.objects.update(human=gone)
    with transaction.atomic():
        data: dict[str, object] = {"agents": [str(agent.agent().pk)], "events": []}
        data["receipts"] = {str(receipt.pk): b64u_encode(sha256(receipt.compact.encode()))}
        record(kind=kinds.HUMAN_ERASED, actor=TESTER, at=now, human_id=gone.pk, data=data)
    # The trigger trusts the row about the agent's owner; the log has its own record.
    Receipt.objects.update(compact="", consent_text="", passkey_name="")
    Grant.objects.update(status="revoked")
    assert named(now) == {str(reading.pk): ERASURE_MISSING}
    Agent.objects.update(human=hers)
    assert named(now) == {str(reading.pk): ERASURE_MISSING}


def test_verify_audit_names_a_person_who_was_erased_and_never_was(now: datetime) -> None:
    nobody = uuid4()
    with transaction.atomic():
        record(kind=kinds.HUMAN_DELETED, actor=TESTER, at=now, human_id=nobody)
    assert named(now) == {str(nobody): ERASED_BUT_MISSING}
    assert [each.kind for each in find_contradictions(now=now)] == ["person"]


def test_verify_audit_names_it_also_where_months_were_dropped(
    alice: Person, bob: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    """The event of an older erasure may be dropped with its month, and the user with it."""
    assert alice.deny(reading).status_code == 200
    DroppedMonth.objects.create(
        month=now.date(), events=0, first_leaf=0, last_leaf=0, kept_from=0, at=now
    )
    human = alice.human
    # The trigger allows erasing texts of a deleted user: for a moment the agent is given to one.
    delete_human(human=bob.human, actor=TESTER, now=now)
    Agent.objects.update(human=Human.objects.get(status="deleted"))
    assert Receipt.objects.update(compact="", consent_text="", passkey_name="") == 1
    Agent.objects.update(human=human)
    assert named(now) == {str(reading.pk): ERASURE_MISSING}
    Human.objects.filter(pk=human.pk).update(status="deleted")
    assert named(now) == {}


def test_verify_audit_reports_an_existing_user_logged_as_erased(
    alice: Person, now: datetime
) -> None:
    """The event excuses the user's missing openings, which any process with that right can add."""
    with transaction.atomic():
        data: dict[str, object] = {"agents": [], "events": [], "receipts": {}}
        record(kind=kinds.HUMAN_ERASED, actor=TESTER, at=now, human_id=alice.human.pk, data=data)
    assert named(now) == {str(alice.human.pk): ERASED_BUT_PRESENT}
    assert [each.kind for each in find_contradictions(now=now)] == ["person"]


def test_what_an_earlier_release_left_of_a_deleted_person_is_erased(
    admin: Person, store: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Planted(now)
    words.live(planted, admin)

    def erase_little(*, human: Human, email: str, **_: object) -> None:
        """What release 2 erased."""
        Opening.objects.filter(
            Q(event__human_id=human.pk) | Q(member="email", value=email)
        ).delete()

    with monkeypatch.context() as patch:
        patch.setattr("approvals.services.human_suspension_and_erasure.erase_texts", erase_little)
        delete_human(human=planted.person.human, actor=TESTER, now=now)
    assert len(in_database()) > 10
    later = now + AGAIN_FOR * 2
    assert expire_everything(now=later)["people"] == 1
    assert listed(in_database()) == ""
    assert expire_everything(now=later)["people"] == 0
    seal_audit(now=later)
    assert verify_log().ok
