"""Continuing after a restore: lost acts do not count, and what had ended ends again (SA-13)."""

import uuid
from datetime import datetime
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from approvals.models import Challenge, Passkey, Recovery, SetupCode
from approvals.services.continue_after_restore import Continued, continue_after_restore
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import READ_CALENDAR, Person
from approvals.tests.recovering import path_of, ready_link
from audit import kinds
from audit.checkpoints.log_breaks import key_of_break
from audit.checkpoints.rollback_check import check_history
from audit.models import Event, LogBreak
from audit.stores import Store
from audit.stores.store_factory import store_at
from kms.models import Key
from kms.services import ensure_key, verification_keys
from registry.models import EnrolmentCode, Grant, ServiceProvider
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.log_keys import audit_vkeys
from registry.tests.cast import TESTER, AgentClient, approved, pending
from verifier.models import Home
from verifier.services import rollback_hold
from verifier.services.replay_epochs import read_or_create_row

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(settings: Settings, tmp_path: Path, keys: None) -> Store:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    return store_at(settings.AUDIT_STORE)


@pytest.fixture
def vouched(monkeypatch: pytest.MonkeyPatch) -> rollback_hold.HistoryComparison:
    """A process that knows nothing yet."""
    made = rollback_hold.HistoryComparison()
    monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", made)
    return made


def hold() -> None:
    rollback_hold.hold(read_or_create_row()[0], "It was set back.")


def go_on(*, undetected: bool = False) -> Continued:
    return continue_after_restore(
        operator="alice", undetected=undetected, actor=TESTER, now=timezone.now()
    )


def ended(store: Store, *endings: tuple[str, object]) -> None:
    """Endings that the lost history copied to the store."""
    body = {
        "version": 1,
        "first": 0,
        "end": 9,
        "endings": [[kind, str(each)] for kind, each in endings],
    }
    store.put_once("endings/00000000000000000009.json", canonical_json(body))


def test_SA_13_grants_wait_for_a_signature_and_requests_end(
    store: Store,
    alice: Person,
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
) -> None:
    grant = approved(agent, service_provider, now=now)
    asked = pending(agent, service_provider, now=now, capabilities=[READ_CALENDAR])
    hold()
    done = go_on()
    assert (done.suspended, done.withdrawn, done.ended_again) == (1, 1, 0)
    grant.refresh_from_db()
    asked.refresh_from_db()
    assert (grant.status, grant.suspension_cause, grant.version) == ("suspended", "restored", 2)
    assert grant.waits_for_signature(now)
    assert asked.status == Grant.Status.WITHDRAWN
    # Her session is over, and the page says what is lost.
    assert alice.get("/settings/").status_code == 302
    alice.sign_in()
    assert b"restored from a backup" in alice.get(f"/approvals/{grant.pk}/").content
    assert alice.approve(grant).status_code == 200
    grant.refresh_from_db()
    assert grant.status == Grant.Status.APPROVED


def test_SA_13_codes_and_links_that_may_have_been_used_end(
    store: Store, alice: Person, now: datetime
) -> None:
    create_enrolment_code(human=alice.human, actor=TESTER, now=now)
    create_setup_link(email="new@example.org", actor=TESTER, now=now)
    alice.post("/sign-in/options")
    assert Challenge.objects.exists()
    hold()
    go_on()
    assert not Challenge.objects.exists()
    assert not EnrolmentCode.objects.filter(used_at=None, expires_at__gt=timezone.now()).exists()
    assert not SetupCode.objects.filter(used_at=None, expires_at__gt=timezone.now()).exists()


def test_SA_13_a_recovery_that_may_have_been_cancelled_ends(
    store: Store, alice: Person, now: datetime
) -> None:
    link = ready_link(alice.human, now)
    hold()
    assert go_on().ended_again == 0
    assert not Recovery.objects.open(timezone.now()).exists()
    assert alice.get(path_of(link)).status_code == 410
    row, told = Recovery.objects.get(), Event.objects.get(kind=kinds.RECOVERY_CANCELLED)
    assert (told.human_id, told.data["recovery_id"]) == (row.human_id, str(row.pk))
    assert (row.cancelled_at, row.notice_due_at) == (told.at, told.at)


def test_SA_13_what_had_ended_ends_again_people_first(
    store: Store, alice: Person, bob: Person, admin: Person, agent: AgentClient,
    service_provider: ServiceProvider, now: datetime,
) -> None:  # fmt: skip
    grant = approved(agent, service_provider, now=now)
    token = Key.objects.get(purpose="token")
    passkey = Passkey.objects.get(human=bob.human)
    bobs, admins = bob.human, admin.human
    ended(
        store,
        (kinds.GRANT_REVOKED, grant.pk),
        (kinds.PASSKEY_REMOVED, passkey.pk),
        (kinds.SERVICE_PROVIDER_SUSPENDED, service_provider.pk),
        (kinds.AGENT_SUSPENDED, agent.agent().pk),
        (kinds.KEY_DISABLED, token.kid),
        # The backup's last administrator, and a user the backup does not know.
        (kinds.HUMAN_DELETED, admins.pk),
        (kinds.HUMAN_DELETED, uuid.uuid4()),
    )
    hold()
    assert go_on().ended_again == 6
    grant.refresh_from_db()
    service_provider.refresh_from_db()
    admins.refresh_from_db()
    token.refresh_from_db()
    assert (grant.status, service_provider.status, token.state) == (
        "revoked",
        "suspended",
        "disabled",
    )
    assert (admins.status, admins.name) == ("deleted", "Deleted human")
    assert not Passkey.objects.filter(human__in=[bobs, admins]).exists()
    # Neither may resume what the other may have suspended.
    assert (agent.agent().admin_holds, agent.agent().owner_holds) == (True, True)
    # The deletion comes first.
    order = list(Event.objects.order_by("id").values_list("kind", flat=True))
    assert order.index(kinds.HUMAN_DELETED) < order.index(kinds.GRANT_REVOKED)


def test_SA_13_an_ending_of_a_kind_that_is_not_known_stops_it(store: Store) -> None:
    ended(store, ("registry.something.ended", uuid.uuid4()))
    hold()
    with pytest.raises(InvalidStateError, match="cannot be ended again"):
        go_on()
    assert Home.objects.get().held_at is not None
    assert not LogBreak.objects.exists()


def test_SA_13_the_log_has_a_new_name_and_a_key_that_signs_at_once(
    store: Store, now: datetime
) -> None:
    before = ensure_key(purpose="audit", actor=TESTER, now=now)
    epoch = read_or_create_row()[0].epoch
    hold()
    done = go_on()
    row = Home.objects.get()
    assert (row.history, row.held_at, row.leaving_for) == (done.log, None, "database")
    assert row.epoch >= int(now.timestamp()) > epoch
    assert store.get(key_of_break(done.log)) is not None
    key = Key.objects.get(purpose="audit", state=Key.State.ACTIVE)
    assert key.kid != before.kid
    assert set(verification_keys(purpose="audit", now=timezone.now())) == {before.kid, key.kid}
    [old], [new] = (
        [each for each in audit_vkeys() if each.startswith(f"localhost:8000/v1/audit{name}+")]
        for name in ("", f"/{done.log}")
    )
    assert old != new
    event = Event.objects.get(kind=kinds.HISTORY_CONTINUED)
    assert (event.data["operator"], event.data["because"]) == ("alice", "It was set back.")


def test_SA_13_nothing_is_continued_that_is_not_held_unless_it_is_said(store: Store) -> None:
    with pytest.raises(InvalidStateError, match="The database is not held"):
        go_on()
    assert go_on(undetected=True).log
    with pytest.raises(InvalidStateError, match="The log has continued as"):
        go_on()


def test_SA_13_nothing_continues_before_the_set_back_check_is_done(
    store: Store, vouched: rollback_hold.HistoryComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_mark: object) -> None:
        raise TemporarilyUnavailableError

    monkeypatch.setattr(rollback_hold, "check_history", away)
    with pytest.raises(
        TemporarilyUnavailableError, match="Nothing was done: the database was started"
    ):
        go_on()
    assert go_on(undetected=True).log


def test_SA_13_an_operator_continues_despite_a_record_from_the_future(
    store: Store, vouched: rollback_hold.HistoryComparison
) -> None:
    """Only a database that knows the log could tell that the object is not ours."""
    store.put_once(key_of_break("20991231235959"), b"{}")
    assert "The log 20991231235959 was started after a restore" in str(
        read_or_create_row()[0].held_because
    )
    done = go_on()
    assert done.log == "20991231235960"
    row = LogBreak.objects.get()
    assert (row.lost, row.signed, row.archived) == (["20991231235959"], 0, 0)
    check_history(None)
