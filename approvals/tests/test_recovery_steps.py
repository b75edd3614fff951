"""Each step of a recovery rechecks what the previous step relied on (WR-15)."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from agentauth.protocol.errors import (
    AgentAuthError,
    ExpiredError,
    InvalidRequestError,
    InvalidStateError,
)
from approvals.models import Passkey, Recovery
from approvals.services.recovery import (
    RECOVERY_LIFE,
    begin_recovery,
    confirm_recovery,
    find_by_link,
    finish_recovery,
)
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import Person, registered
from approvals.tests.recovering import DAY, begun, link_of
from registry.models import Human
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db
SESSION = "a"


@pytest.fixture
def row(alice: Person, admin: Person, now: datetime) -> Recovery:
    begun_row = begun(alice.human, now - 2 * DAY, admin=admin.human)
    link_of(begun_row, now)
    begun_row.refresh_from_db()
    return begun_row


def finish(row: Recovery, credential: object, now: datetime) -> None:
    finish_recovery(recovery=row, credential=credential, session_key=SESSION, actor=TESTER, now=now)


def no_administrator(_row: Recovery) -> None:
    """As release 3 suspends, without ending recoveries."""
    Human.objects.filter(is_staff=True).update(status=Human.Status.SUSPENDED)


def suspended(row: Recovery) -> None:
    Human.objects.filter(pk=row.human_id).update(status=Human.Status.SUSPENDED)


def test_WR_15_a_recovery_is_of_a_known_case(alice: Person, now: datetime) -> None:
    with pytest.raises(InvalidRequestError, match="lost or stolen"):
        begun(alice.human, now, case="other")


@pytest.mark.parametrize(("case", "waits"), [("lost", DAY), ("stolen", timedelta())])
def test_WR_15_a_recovery_lives_for_a_week_after_its_wait(
    alice: Person, now: datetime, case: str, waits: timedelta
) -> None:
    if case == "stolen":
        Human.objects.filter(pk=alice.human.pk).update(status=Human.Status.SUSPENDED)
    human = Human.objects.get()
    assert begun(human, now, case=case).expires_at == now + waits + RECOVERY_LIFE


def test_WR_15_second_admin_can_confirm_only_for_an_active_account(
    alice: Person, now: datetime
) -> None:
    row = begun(alice.human, now)
    suspended(row)
    second = registered("second@example.org", "Sue Second", now=now, is_staff=True)
    with pytest.raises(InvalidStateError, match="Only an active account"):
        confirm_recovery(recovery=row, admin=second.human, actor=TESTER, now=now)


@pytest.mark.parametrize("change", [no_administrator, suspended])
def test_WR_15_what_ended_since_the_link_was_made_asks_for_no_passkey(
    row: Recovery, now: datetime, change: Callable[[Recovery], None]
) -> None:
    change(row)
    with pytest.raises(InvalidStateError):
        begin_recovery(recovery=row, session_key=SESSION, now=now)


@pytest.mark.parametrize(
    ("change", "later", "error"),
    [
        (no_administrator, timedelta(), InvalidStateError),
        (suspended, timedelta(), InvalidStateError),
        (lambda _row: None, timedelta(minutes=1), ExpiredError),
    ],
)
def test_WR_15_recovery_that_ends_before_registration_adds_no_passkey(
    row: Recovery,
    now: datetime,
    change: Callable[[Recovery], None],
    later: timedelta,
    error: type[AgentAuthError],
) -> None:
    asked = now + timedelta(minutes=14)
    row = find_by_link(bytes(row.link_digest or b""), now=asked)
    options = begin_recovery(recovery=row, session_key=SESSION, now=asked)
    credential = Authenticator().registration(options)
    before = set(Passkey.objects.values_list("pk", flat=True))
    change(row)
    with pytest.raises(error):
        finish(row, credential, asked + later)
    assert set(Passkey.objects.values_list("pk", flat=True)) == before


def test_WR_15_link_ends_with_its_recovery(alice: Person, now: datetime) -> None:
    """After that no seal is checked or renewed, so none may be required."""
    soon = timedelta(minutes=5)
    row = begun(alice.human, now - DAY - RECOVERY_LIFE + soon)
    link_of(row, now)
    digest = bytes(Recovery.objects.get().link_digest or b"")
    assert find_by_link(digest, now=now) == row
    with pytest.raises(ExpiredError):
        find_by_link(digest, now=now + soon)
