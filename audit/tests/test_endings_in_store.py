"""Endings are outside before the checkpoint that covers them, and contain only ids (SA-13)."""

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Final

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.encoding import canonical_json
from audit import kinds
from audit.checkpoints.checkpoint_copies import ContradictedError
from audit.checkpoints.endings_in_store import ENDINGS, Ending, read_endings
from audit.checkpoints.signing import EVERY, EVERY_ENDING, checkpoint_log
from audit.log.event_inserts import KINDS
from audit.log.sequencer import sequence_until_empty
from audit.stores import Store
from audit.stores.store_factory import store_at
from audit.tests import proving
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db
_BODY = {
    "version": 1,
    "first": 0,
    "end": 6,
    "endings": [[kinds.GRANT_REVOKED, str(uuid.UUID(int=2))]],
}
PERSON, GRANT, PASSKEY = (uuid.UUID(int=number) for number in (1, 2, 3))

# All kinds except ENDINGS, by the reason why a restore need not repeat them. Add each new kind here
# or there.
NOT_REPEATED: Final[Mapping[str, frozenset[str]]] = {
    "It takes no right away.": frozenset({
        kinds.REQUEST_REFUSED, kinds.REFUSALS_SUPPRESSED, kinds.STORE_MOVED,
        kinds.SETTINGS_RECORDED,
        kinds.ROWS_SEALED, kinds.SEALS_DEMANDED,
        kinds.KEY_PUBLISHED, kinds.KEY_ACTIVATED, kinds.KEY_CERTIFIED,
        kinds.HUMAN_CREATED, kinds.HUMAN_RESUMED, kinds.HUMAN_CHANGED, kinds.HUMAN_ERASED,
        kinds.SERVICE_PROVIDER_CREATED, kinds.SERVICE_PROVIDER_RESUMED,
        kinds.CATALOGUE_PROPOSED, kinds.CATALOGUE_REFUSED, kinds.LOGO_PROPOSED,
        kinds.ENROLMENT_CODE_CREATED, kinds.SETUP_CODE_CREATED, kinds.PASSKEY_CREATED,
        kinds.PASSKEY_RENAMED,
        kinds.AGENT_REGISTERED, kinds.AGENT_RESUMED,
        kinds.GRANT_REQUESTED, kinds.GRANT_APPROVED, kinds.GRANT_RESUMED, kinds.GRANT_RELEASED,
        kinds.GRANT_RENEWAL_REQUESTED,
        kinds.TOKEN_ISSUED, kinds.DECISION_DENIED, kinds.DECISION_REPEATED,
        kinds.DECISION_REHEARSED,
        kinds.PRESENCE_BEGUN, kinds.HOME_LEFT, kinds.HOME_BEGAN, kinds.CLOCK_OFF,
        kinds.HISTORY_CONTINUED, kinds.HISTORY_CLOSED, kinds.BREAK_SIGNED,
        kinds.HUMAN_SIGNED_IN, kinds.HUMAN_VERIFIED, kinds.RECOVERY_BEGUN, kinds.RECOVERY_CONFIRMED,
        kinds.RECOVERY_NOTICE_SENT, kinds.RECOVERY_NOTICE_FAILED, kinds.HUMAN_EXPORTED,
        kinds.SECOND_STEP_TAKEN, kinds.CHANNEL_ADDED, kinds.CHANNEL_CHANGED, kinds.CHANNEL_REMOVED,
        kinds.NOTIFICATION_RETRIED,
        kinds.APPROVER_ADDED, kinds.ABSENCE_SET, kinds.REQUEST_ROUTED, kinds.REQUEST_PASSED_ON,
    }),
    "Continuing after a restore ends sessions, codes, links, recoveries and requests.": frozenset({
        kinds.RECOVERY_CANCELLED, kinds.HUMAN_SESSIONS_ENDED, kinds.HUMAN_SIGNED_OUT,
        kinds.PRESENCE_ENDED, kinds.ENROLMENT_CODE_FAILED,
        kinds.AGENT_CLAIMED, kinds.AGENT_CLAIM_RENEWED, kinds.AGENT_CLAIM_FAILED,
        kinds.INVITATION_ERASED,
        kinds.GRANT_DENIED, kinds.GRANT_WITHDRAWN,
    }),
    "Each approved grant waits for its person, and has a version that earlier tokens and"
    " confirmations do not have.": frozenset({
        kinds.GRANT_VERSION_RAISED, kinds.GRANT_RENEWED, kinds.TOKEN_REVOKED,
        kinds.DECISION_ALLOWED, kinds.DECISIONS_LOST,
        kinds.CONFIRMATION_REQUESTED, kinds.CONFIRMATION_CONFIRMED, kinds.CONFIRMATION_DENIED,
        kinds.CONFIRMATION_EXPIRED,
    }),
    "Groups and rules are as they were at the backup. An administrator checks them before anyone"
    " signs (docs/restore.md).": frozenset({
        kinds.APPROVER_GROUP_CREATED, kinds.APPROVER_GROUP_CHANGED, kinds.APPROVER_GROUP_REMOVED,
        kinds.APPROVAL_RULE_CREATED, kinds.APPROVAL_RULE_MOVED, kinds.APPROVAL_RULE_ENDED,
    }),
    "Logos are as they were at the backup. A logo gives no permission, and an administrator changes"
    " it again (docs/restore.md).": frozenset({kinds.LOGO_APPROVED, kinds.LOGO_REMOVED}),
    "Its row says when it ends.": frozenset({
        kinds.AGENT_EXPIRED, kinds.AGENT_DELETED, kinds.GRANT_EXPIRED,
    }),
    "Each passkey that it removed has an event of its own.": frozenset({kinds.HUMAN_RECOVERED}),
    "It changes terms, which each person sees again before they sign; the agent or an operator"
    " repeats the change.": frozenset({
        kinds.AGENT_MANIFEST_RENEWED, kinds.AGENT_MANIFEST_CHANGED,
        kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED, kinds.SERVICE_PROVIDER_ALLOWED_CHANGED,
        kinds.CATALOGUE_APPROVED,
    }),
}  # fmt: skip


@pytest.fixture
def store(signing: None, settings: Settings, tmp_path: Path) -> Store:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    return store_at(settings.AUDIT_STORE)


def test_of_each_kind_of_event_it_is_decided_whether_a_restore_repeats_it() -> None:
    """A new kind belongs in ENDINGS, with the id of what ended, or here, with a reason."""
    decided = [*ENDINGS, *chain.from_iterable(NOT_REPEATED.values())]
    assert sorted(decided) == sorted(KINDS)


def test_SA_13_what_ended_is_outside_within_seconds_and_in_order(
    store: Store, now: datetime, make_event: MakeEvent
) -> None:
    proving.grow(3, now=now)
    checkpoint_log(now=now)
    assert list(read_endings(store, "", after=0)) == []
    make_event(kind=kinds.GRANT_REVOKED, grant_id=GRANT, human_id=PERSON)
    make_event(
        kind=kinds.PASSKEY_REMOVED,
        human_id=PERSON,
        data={"passkey_id": str(PASSKEY)},
        personal={"name": "Alice"},
    )
    make_event(kind=kinds.HUMAN_DELETED, human_id=PERSON)
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now + EVERY_ENDING - timedelta(seconds=1)) is None
    assert checkpoint_log(now=now + EVERY_ENDING) == 6
    ended = [
        Ending(kinds.GRANT_REVOKED, str(GRANT)),
        Ending(kinds.PASSKEY_REMOVED, str(PASSKEY)),
        Ending(kinds.HUMAN_DELETED, str(PERSON)),
    ]
    assert list(read_endings(store, "", after=3)) == ended
    assert list(read_endings(store, "", after=6)) == []
    [key] = store.keys("endings/")
    written = store.get(key)
    assert written is not None
    assert json.loads(written)["endings"] == [list(each) for each in ended]
    assert b"Alice" not in written
    # Without an ending, the next checkpoint waits for the full minute.
    proving.grow(1, now=now)
    assert checkpoint_log(now=now + 2 * EVERY_ENDING) is None
    assert checkpoint_log(now=now + EVERY_ENDING + EVERY) == 7


def test_SA_13_what_is_not_named_as_the_log_names_it_ends_nothing(
    store: Store, tmp_path: Path
) -> None:
    store.put_once("endings/00000000000000000006.json", canonical_json(_BODY))
    (tmp_path / "outside/endings/notes.txt").write_bytes(b"")
    assert list(read_endings(store, "", after=0)) == [Ending(kinds.GRANT_REVOKED, str(GRANT))]


@pytest.mark.parametrize(
    "written", [b"", b"{}", b'{"end":1,"endings":[["a"]],"first":0,"version":1}']
)
def test_SA_13_what_does_not_say_what_ended_is_not_passed_over(
    store: Store, written: bytes
) -> None:
    store.put_once("endings/00000000000000000006.json", written)
    with pytest.raises(ContradictedError, match="does not say what ended"):
        list(read_endings(store, "", after=0))


def test_SA_13_what_ended_before_there_was_a_store_is_outside_too(
    store: Store, now: datetime, make_event: MakeEvent, settings: Settings
) -> None:
    uri, settings.AUDIT_STORE = settings.AUDIT_STORE, ""
    make_event(kind=kinds.HUMAN_DELETED, human_id=PERSON)
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now) == 1
    proving.grow(1, now=now)
    assert checkpoint_log(now=now + EVERY) == 2
    settings.AUDIT_STORE = uri
    proving.grow(1, now=now)
    assert checkpoint_log(now=now + 2 * EVERY) == 3
    assert list(read_endings(store, "", after=0)) == [Ending(kinds.HUMAN_DELETED, str(PERSON))]


def test_SA_13_suspension_by_its_owner_is_not_repeated_after_a_restore(
    store: Store, now: datetime, make_event: MakeEvent
) -> None:
    """The owner may resume it without an administrator, so it takes no right away for good."""
    make_event(kind=kinds.GRANT_SUSPENDED, grant_id=GRANT, human_id=PERSON)
    by_admin = uuid.UUID(int=4)
    make_event(kind=kinds.GRANT_SUSPENDED, grant_id=by_admin, data={"by_admin": True})
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now) == 2
    assert list(read_endings(store, "", after=0)) == [Ending(kinds.GRANT_SUSPENDED, str(by_admin))]
