"""What pages say about the log: only what was checked, and plainly if something is inconsistent."""

from datetime import datetime, timedelta

import pytest
from django.db import transaction
from pytest_django.fixtures import Settings

from approvals.tests.cast import Person
from audit import kinds
from audit.checkpoints.signing import EVERY, checkpoint_log
from audit.log import load_shedding
from audit.models import Checkpoint, CheckpointCopy, Cosignature, Event, Head, Segment
from audit.services import record, seal_audit
from audit.tests.tampering import as_table_owner
from audit.verify.log_status import LATE
from kms.models import Key
from kms.services import disable_key, ensure_key, rotate_key
from registry.models import Grant
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db


@pytest.fixture
def signed(alice: Person, reading: Grant, settings: Settings, now: datetime) -> Checkpoint:
    """A fully signed log about Alice and her agent."""
    settings.AUDIT_STORE = ""
    ensure_key(purpose="audit", actor=TESTER, now=now)
    seal_audit(now=now)
    checkpoint_log(now=now)
    return Checkpoint.objects.get()


def page(who: Person, path: str = "/activity/") -> str:
    answer = who.get(path)
    assert answer.status_code == 200
    return str(answer.content.decode())


def happen(now: datetime) -> None:
    """Add one numbered, unsigned event."""
    with transaction.atomic():
        record(kind=kinds.HUMAN_CHANGED, actor=TESTER, at=now)
    seal_audit(now=now)


def test_a_log_that_fits_is_verified_and_each_event_offers_its_proof(
    alice: Person, signed: Checkpoint
) -> None:
    answer = alice.get("/activity/")
    lines = answer.context["lines"]
    assert {line["position"].status for line in lines} == {"proved"}
    text = answer.content.decode()
    assert "Verified just now" in text
    assert f"It covers {signed.size} of {signed.size} events." in text
    assert f"{len(lines)} events on this page are as they were recorded" in text
    for line in lines:
        assert f'href="/v1/audit/proof/bundle?event={line["event"].pk}"' in text
    assert alice.get(f"/v1/audit/proof/bundle?event={lines[0]['event'].pk}").status_code == 200


def test_what_is_not_signed_yet_is_not_called_verified(
    alice: Person, reading: Grant, now: datetime
) -> None:
    text = page(alice)
    assert "Verified" not in text
    assert "waits for its number" in text
    assert "proof/bundle" not in text
    seal_audit(now=now)
    text = page(alice)
    assert "Not signed yet" in text
    assert "Verified" not in text
    assert "proof/bundle" not in text


def test_news_that_waits_too_long_for_a_signature_is_said(
    alice: Person, admin: Person, signed: Checkpoint, now: datetime
) -> None:
    happen(now)
    with as_table_owner():
        Event.objects.update(at=now - 2 * LATE)
        Checkpoint.objects.update(at=now - 2 * LATE)
        for text in (page(alice, "/activity/?agent=none"), page(admin, "/admin/log/")):
            assert "Not signed for a while" in text
            assert "Verified" not in text


def test_an_event_that_was_changed_is_named_and_nothing_is_called_verified(
    alice: Person, signed: Checkpoint
) -> None:
    changed = Event.objects.filter(human_id=alice.human.pk).order_by("-id")[0]
    with as_table_owner():
        Event.objects.filter(pk=changed.pk).update(reason="another")
        answer = alice.get("/activity/")
    text = answer.content.decode()
    assert "1 event below is not what was recorded" in text
    assert "manage.py verify_audit</code>" in text
    assert "Verified" not in text
    assert f"event={changed.pk}" not in text
    assert [
        line["event"] for line in answer.context["lines"] if line["position"].status == "wrong"
    ] == [changed]


def test_a_log_that_is_not_what_it_signed_is_said_on_both_pages(
    alice: Person, admin: Person, signed: Checkpoint, now: datetime
) -> None:
    seal_audit(now=now)
    with as_table_owner():
        Head.objects.update(peaks=b"")
        for text in (page(alice), page(admin, "/admin/log/")):
            assert "The log does not match what was signed" in text
            assert 'role="alert"' in text
            assert "Verified" not in text
        assert "Verified" not in page(alice, "/activity/?agent=none")


def test_the_control_room_shows_how_far_each_copy_comes(
    admin: Person, signed: Checkpoint, now: datetime
) -> None:
    store, witness = "s3://bucket/log", "witness.example"
    Cosignature.objects.create(checkpoint=signed, witness=witness, line="x", at=now)
    Segment.objects.create(first=0, end=2, manifest_sha256=bytes(32), at=now)
    happen(now)
    size = checkpoint_log(now=now + EVERY + timedelta(seconds=1))
    assert size is not None
    # The copy of the newest one is late.
    CheckpointCopy.objects.create(checkpoint=signed, store=store, at=now)
    answer = admin.get("/admin/log/")
    log = answer.context["log"]
    lag = size - signed.size
    assert list(log["places"]) == [
        ("store", store, signed.size, lag),
        ("witness", witness, signed.size, lag),
    ]
    assert (log["archived"], log["unarchived"], log["state"]) == (2, size - 2, "good")
    text = answer.content.decode()
    for shown in (store, witness, "Verified just now", "0 – 1"):
        assert shown in text
    assert "admin/log/" in page(admin, "/admin/")


def test_RF_21_the_control_room_says_when_too_many_wait(
    admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "At 100,000 the registry refuses" not in page(admin, "/admin/log/")
    monkeypatch.setattr("approvals.views.log_status.MAX_WAITING_EVENTS", 1)
    assert "At 1 the registry refuses" in page(admin, "/admin/log/")
    assert load_shedding.MAX_WAITING_EVENTS == 100_000


def test_the_log_is_shown_to_admins_alone_and_does_nothing(alice: Person, admin: Person) -> None:
    assert alice.get("/admin/log/").status_code == 302
    assert admin.client.post("/admin/log/").status_code == 405


def test_SA_8_log_pages_distinguish_a_disabled_key_from_tampering(
    alice: Person, admin: Person, signed: Checkpoint, now: datetime
) -> None:
    key = Key.objects.get(purpose="audit")
    rotate_key(purpose="audit", actor=TESTER, now=now)
    Key.objects.filter(purpose="audit", state=Key.State.NEXT).update(active_from=now)
    disable_key(kid=key.kid, actor=TESTER, now=now)
    for who, path in ((alice, "/activity/"), (admin, "/admin/log/")):
        text = page(who, path)
        assert "Signed by a key that was disabled" in text
        assert "This is no sign of tampering" in text
        assert "does not match what was signed" not in text
    happen(now)
    checkpoint_log(now=now + EVERY)
    assert "Signed by a key that was disabled" not in page(alice)
    assert "Verified just now" in page(admin, "/admin/log/")
