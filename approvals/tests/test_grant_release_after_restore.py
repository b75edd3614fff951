"""Releasing grants after a restore: only if the store proves no use, and only as signed (SA-13)."""

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone, translation
from pytest_django.fixtures import Settings

from agentauth.protocol.approval_receipt import verify_receipt
from approvals.event_kind_words import kind_sentence
from approvals.models import Receipt
from approvals.services.grant_release_after_restore import judge_suspended_grants
from approvals.services.grants_unused_since_backup import ContraryEvents, PresentLog
from approvals.tests.cast import READ_CALENDAR, Person, drawn_on
from approvals.tests.database_rollback import close, restored, set_back
from audit import kinds
from audit.archive.segment_writing import archive_audit
from audit.checkpoints.log_breaks import log_store
from audit.checkpoints.signing import checkpoint_log
from audit.models import Event, LogBreak, QueueEntry
from audit.services import record, seal_audit
from kms.services import ensure_key, verification_keys
from registry.models import Agent, Grant, ServiceProvider
from registry.services.grants import resume_grant, revoke_grant, suspend_grant
from registry.tests.cast import TESTER, AgentClient, approved, issue
from verifier.models import StreamCursor

pytestmark = pytest.mark.django_db


@pytest.fixture
def outside(settings: Settings, tmp_path: Path, keys: None, now: datetime) -> Path:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)
    return tmp_path / "outside"


@pytest.fixture
def grant(
    outside: Path,
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
) -> Grant:
    return approved(agent, service_provider, now=now, capabilities=[READ_CALENDAR])


def says(kind: str, **ids: Any) -> None:
    with transaction.atomic():
        record(kind=kind, actor=TESTER, at=timezone.now(), **ids)


def refusal(row: LogBreak) -> str:
    """Why the one suspended grant is not released."""
    [found] = judge_suspended_grants(row, now=timezone.now()).grants
    return found.refusal


def sign_and_archive() -> None:
    """What the jobs do, without a closing."""
    seal_audit(now=timezone.now())
    checkpoint_log(now=timezone.now(), at_once=True)
    store = log_store()
    assert store is not None
    assert archive_audit(now=timezone.now(), store=store) is not None


def reviewed(admin: Person, row: LogBreak, *grants: Grant) -> Any:
    path = f"/restores/{row.name}/release/"
    page = admin.get(path)
    drawn = drawn_on(page) if b'name="drawn"' in page.content else ""
    ids = [str(each.pk) for each in grants]
    return admin.client.post(f"{path}review", {"grant": ids, "drawn": drawn})


def statement(admin: Person, row: LogBreak, page: Any, *grants: Grant) -> Any:
    """Press the button of `page`, a result of `reviewed`."""
    ids = ",".join(str(each.pk) for each in grants)
    drawn = drawn_on(page) if page.status_code == 200 else ""
    return admin.post(f"/restores/{row.name}/release/statement", {"grants": ids, "drawn": drawn})


def decide(admin: Person, row: LogBreak, asked: Any) -> Any:
    credential = admin.device.assertion(asked.json()["publicKey"])
    return admin.post(f"/restores/{row.name}/release/decide", {"credential": credential})


def test_SA_13_an_administrator_releases_a_grant_proved_unused(
    grant: Grant, admin: Person, agent: AgentClient
) -> None:
    row = restored()
    admin.sign_in()
    page = admin.get(f"/restores/{row.name}/release/").content.decode()
    assert "Proved unused since the backup" in page
    review = reviewed(admin, row, grant)
    assert b"Release with passkey" in review.content
    # Two grants of one agent at one provider have the same names.
    assert f'mono">{grant.pk}<'.encode() in review.content
    asked = statement(admin, row, review, grant)
    assert asked.status_code == 200, asked.content
    done = decide(admin, row, asked)
    assert done.status_code == 200, done.content
    grant.refresh_from_db()
    assert (grant.status, grant.suspension_cause, grant.version) == ("approved", "", 2)
    assert issue(agent, grant).status_code == 201
    keys = verification_keys(purpose="receipt", now=timezone.now())
    kept = Receipt.objects.get(kind="release")
    body = verify_receipt(
        kept.compact, keys=keys, expected_issuer="http://localhost:8000"
    ).statement.body
    event = Event.objects.get(kind=kinds.GRANT_RELEASED)
    assert (body["name"], body["grants"]) == (row.name, [{"id": str(grant.pk), "version": 2}])
    assert (event.data["proof_size"], event.data["proof_root"]) == (body["size"], body["root"])
    assert body["size"] == judge_suspended_grants(row, now=timezone.now()).anchor.size  # type: ignore[union-attr]
    assert event.actor_id == str(admin.human.pk)
    assert (
        b"No grant is waiting because of the restore"
        in admin.get(f"/restores/{row.name}/release/").content
    )


def test_SA_13_an_object_that_the_log_does_not_write_hides_no_proof(
    grant: Grant, outside: Path
) -> None:
    row = restored()
    (outside / "checkpoints/zzz").write_bytes(b"")
    assert refusal(row) == ""


def test_SA_13_only_staff_sees_or_releases_suspended_grants(grant: Grant, alice: Person) -> None:
    row = restored()
    alice.sign_in()
    path = f"/restores/{row.name}/release/"
    assert alice.get(path).status_code == 404
    review = reviewed(alice, row, grant)
    assert review.status_code == 404
    assert statement(alice, row, review, grant).status_code == 404
    assert alice.post(f"{path}decide", {"credential": {}}).status_code == 404


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        (kinds.DECISION_ALLOWED, "grant"),
        (kinds.CONFIRMATION_CONFIRMED, "grant"),
        (kinds.TOKEN_REVOKED, "grant"),
        (kinds.GRANT_VERSION_RAISED, "grant"),
        (kinds.AGENT_SUSPENDED, "agent"),
        (kinds.AGENT_KEY_ROTATED, "agent"),
        (kinds.AGENT_KEY_BARRED, "agent"),
        (kinds.HUMAN_RECOVERED, "human"),
        (kinds.HUMAN_SESSIONS_ENDED, "human"),
        (kinds.SERVICE_PROVIDER_ALLOWED_CHANGED, "service_provider"),
        (kinds.DECISIONS_LOST, "nothing"),
    ],
)
def test_SA_13_what_was_lost_speaks_against_a_release(
    grant: Grant, admin: Person, kind: str, about: str
) -> None:
    ids: dict[str, dict[str, Any]] = {
        "grant": {"grant_id": grant.pk, "agent_id": grant.agent_id},
        "agent": {"agent_id": grant.agent_id},
        "human": {"human_id": grant.agent.human_id},
        "service_provider": {"service_provider_id": grant.service_provider_id},
        "nothing": {},
    }
    row = restored(lambda: says(kind, **ids[about]))
    said = kind_sentence(kind, agent=grant.agent.name, service=grant.service_provider.name)
    assert kind in said
    assert refusal(row) == f"The lost log has this event after the backup: {said}."
    admin.sign_in()
    assert reviewed(admin, row, grant).status_code == 409


def test_SA_13_another_grants_payment_speaks_for_itself_alone(grant: Grant) -> None:
    other = {"grant_id": uuid.uuid4(), "agent_id": grant.agent_id, "human_id": grant.agent.human_id}
    row = restored(lambda: says(kinds.DECISION_ALLOWED, **other))
    assert refusal(row) == ""


def test_SA_13_a_log_that_was_not_closed_proves_nothing(grant: Grant, admin: Person) -> None:
    row = restored(lambda: says(kinds.CLOCK_OFF), end=sign_and_archive)
    assert "close_log" in refusal(row)
    admin.sign_in()
    assert reviewed(admin, row, grant).status_code == 409


def test_SA_13_a_closing_that_something_follows_proves_nothing(grant: Grant) -> None:
    def goes_on() -> None:
        close()
        says(kinds.CLOCK_OFF)
        sign_and_archive()

    assert "close_log" in refusal(restored(end=goes_on))


def test_SA_13_a_closing_that_did_not_come_to_its_end_proves_nothing(grant: Grant) -> None:
    def begins() -> None:
        says(kinds.HISTORY_CLOSED, data={"operator": "alice", "ended": False, "missing": 0})
        sign_and_archive()

    assert "close_log" in refusal(restored(end=begins))


def test_SA_13_a_missing_segment_is_named_and_nothing_is_released(
    grant: Grant, outside: Path
) -> None:
    row = restored()
    last = max((outside / "segments").iterdir())
    last.unlink()
    assert "The archive in the external store has 0 events, but the newest" in refusal(row)


def test_SA_13_a_changed_archive_releases_nothing(grant: Grant, outside: Path) -> None:
    row = restored()
    for path in (outside / "objects").glob("*.lines.gz"):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes() + b"\0")
    assert "it was changed" in refusal(row)


def test_SA_13_a_checkpoint_that_was_changed_releases_nothing(grant: Grant, outside: Path) -> None:
    row = restored()
    last = max((outside / "checkpoints").iterdir())
    last.chmod(0o600)
    last.write_text(last.read_text().replace("\n\n", "\nx\n\n", 1))
    assert "is refused" in refusal(row)


def test_SA_13_decisions_missing_at_the_closing_release_nothing(grant: Grant) -> None:
    def told() -> None:
        StreamCursor.objects.create(epoch=1, shard=0, told=3, number=2)

    assert "Decisions were missing" in refusal(restored(told))


def test_SA_13_a_grant_its_person_had_suspended_is_not_released(grant: Grant) -> None:
    suspend_grant(grant=grant, actor=TESTER, now=timezone.now())
    assert "was not approved when" in refusal(restored())


def test_SA_13_a_grant_suspended_by_an_earlier_restore_waits(grant: Grant) -> None:
    restored(end=sign_and_archive)
    # No two restores happen in the same second.
    with time_machine.travel(timezone.now() + timedelta(seconds=2)):
        second = restored()
    assert "was not approved when" in refusal(second)


@pytest.mark.parametrize("sealed", [False, True])
def test_SA_13_the_proof_holds_before_and_after_numbering(grant: Grant, *, sealed: bool) -> None:
    row = restored()
    if sealed:
        seal_audit(now=timezone.now())
    assert refusal(row) == ""


def test_SA_13_a_grant_of_another_version_is_not_released(grant: Grant) -> None:
    row = restored()
    Grant.objects.filter(pk=grant.pk).update(version=9)
    assert "or it has changed since" in refusal(row)


def test_SA_13_an_archive_of_another_beginning_proves_nothing(grant: Grant) -> None:
    row = restored()
    row.root = bytes(32)
    assert "does not continue from the first" in refusal(row)


def test_SA_13_grant_its_user_revokes_before_the_release_stays_ended(
    grant: Grant, admin: Person
) -> None:
    row = restored()
    admin.sign_in()
    asked = statement(admin, row, reviewed(admin, row, grant), grant)
    grant.refresh_from_db()
    revoke_grant(grant=grant, actor=TESTER, now=timezone.now())
    assert decide(admin, row, asked).status_code == 409
    assert not Receipt.objects.filter(kind="release").exists()


def test_SA_13_an_event_that_is_missing_here_speaks_against_every_grant(grant: Grant) -> None:
    row = restored()
    QueueEntry.objects.create(event_id=uuid.uuid4())
    assert refusal(row) == f"The log has this event after the restore: {kinds.DECISIONS_LOST}."


def test_SA_13_event_in_the_second_of_the_restore_blocks_the_release(grant: Grant) -> None:
    row = restored()
    record(kind=kinds.AGENT_SUSPENDED, actor=TESTER, at=row.at, agent_id=grant.agent_id)
    assert refusal(row) == (
        f"The log has this event after the restore: Agent “{grant.agent.name}” was suspended "
        f"({kinds.AGENT_SUSPENDED})."
    )
    with translation.override("de"):
        assert refusal(row) == (
            f"Im Protokoll steht nach der Rücksicherung dieses Ereignis: Agent "
            f"„{grant.agent.name}“ wurde gesperrt ({kinds.AGENT_SUSPENDED})."
        )


@pytest.mark.parametrize(
    ("status", "cause"), [("approved", "restored"), ("suspended", "key_rotated")]
)
def test_SA_13_only_what_waits_because_of_the_restore_is_released(
    grant: Grant, now: datetime, status: str, cause: str
) -> None:
    grant.status, grant.suspension_cause = status, cause
    found = PresentLog(ContraryEvents(), {}).refusal(grant, now)
    assert found == "The restore did not suspend it."


def test_SA_13_two_lost_logs_prove_nothing(grant: Grant) -> None:
    row = restored()
    row.lost = ["20260101000000"]
    assert "More than one log was lost" in refusal(row)


def test_SA_13_only_the_latest_restore_releases(grant: Grant) -> None:
    row = restored()
    LogBreak.objects.create(name="99990101000000", previous=row.name, size=row.size, root=row.root,
                            signed=row.signed, archived=row.archived, lost=[],
                            at=row.at)  # fmt: skip
    assert refusal(row) == "Another restore came after this one."


def test_SA_13_without_a_store_nothing_is_released(grant: Grant, settings: Settings) -> None:
    row = restored()
    settings.AUDIT_STORE = ""
    assert "AUDIT_STORE is not set" in refusal(row)


def test_SA_13_no_grant_is_chosen_on_a_page_that_changed(grant: Grant, admin: Person) -> None:
    row = restored()
    admin.sign_in()
    path = f"/restores/{row.name}/release/"
    drawn = admin.drawn_at(path)
    Agent.objects.update(name="Another name")
    answer = admin.client.post(f"{path}review", {"grant": [str(grant.pk)], "drawn": drawn})
    assert answer.status_code == 409
    assert not Event.objects.filter(kind=kinds.SECOND_STEP_TAKEN).exists()


def test_SA_13_a_release_needs_the_second_step_for_these_grants(
    grant: Grant,
    admin: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    other = approved(agent, service_provider, now=now)
    row = restored()
    admin.sign_in()
    both = reviewed(admin, row, grant, other)
    one = reviewed(admin, row, grant)
    # The later step is for one grant: the page of both cannot sign it.
    assert statement(admin, row, both, grant, other).json()["error"] == "confirmation_required"
    assert statement(admin, row, one, grant, other).json()["error"] == "grant_changed"
    assert statement(admin, row, one, grant).status_code == 200
    assert statement(admin, row, one, grant).json()["error"] == "confirmation_required"


def held_by_an_admin(grant: Grant) -> None:
    suspend_grant(grant=grant, actor=TESTER, now=timezone.now(), by_admin=True)


def held_and_let_go(grant: Grant) -> None:
    held_by_an_admin(grant)
    resume_grant(grant=grant, actor=TESTER, now=timezone.now(), by_admin=True)


def key_rotated(grant: Grant) -> None:
    says(kinds.AGENT_KEY_ROTATED, agent_id=grant.agent_id)


def paid(grant: Grant) -> None:
    """A decision waiting in Redis reached the log."""
    says(kinds.DECISION_ALLOWED, grant_id=grant.pk)


@pytest.mark.parametrize("moves", [held_by_an_admin, held_and_let_go, key_rotated, paid])
@pytest.mark.parametrize("sealed", [False, True])
def test_SA_13_a_grant_that_moved_before_the_signature_stays_suspended(
    grant: Grant, admin: Person, moves: Callable[[Grant], None], *, sealed: bool
) -> None:
    row = restored()
    admin.sign_in()
    asked = statement(admin, row, reviewed(admin, row, grant), grant)
    assert asked.status_code == 200
    grant.refresh_from_db()
    moves(grant)
    if sealed:
        seal_audit(now=timezone.now())
    assert decide(admin, row, asked).status_code == 409
    grant.refresh_from_db()
    assert grant.status == Grant.Status.SUSPENDED
    assert not Receipt.objects.filter(kind="release").exists()
    # Nor on a second request.
    assert reviewed(admin, row, grant).status_code == 409


def test_SA_13_a_release_is_not_signed_twice_and_not_for_another_grant(
    grant: Grant, admin: Person
) -> None:
    row = restored()
    admin.sign_in()
    stranger = Grant(pk=uuid.uuid4())
    assert reviewed(admin, row, stranger).status_code == 409
    for chosen in ([], [Grant(pk=uuid.uuid4()) for _ in range(101)]):
        assert "Choose 1 to 100" in reviewed(admin, row, *chosen).json()["error_description"]
    asked = statement(admin, row, reviewed(admin, row, grant), grant)
    assert decide(admin, row, asked).status_code == 200
    late = reviewed(admin, row, grant)
    assert late.status_code == 409
    assert "is no longer suspended by the restore" in late.json()["error_description"]


def test_SA_13_what_a_backup_holds_is_not_lost(grant: Grant) -> None:
    says(kinds.DECISION_ALLOWED, grant_id=grant.pk)
    with set_back():
        pass
    assert refusal(restored()) == ""
