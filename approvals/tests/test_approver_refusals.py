"""What a person who does not decide by a rule may not do, and who decides in their place."""

import hashlib
from datetime import datetime
from typing import Any

import pytest

from agentauth.protocol.errors import NotFoundError
from approvals.models import Challenge, Receipt
from approvals.services.human_suspension_and_erasure import delete_human, suspend_human
from approvals.sessions import stored_key
from approvals.tests.cast import Person, browser, registered
from approvals.tests.test_pages import asking
from registry.models import ApproverGroup, Grant, GroupMember
from registry.services.approvers import add_member, create_group, create_rule, remove_member
from registry.services.decision_routing import route_now
from registry.tests.cast import TESTER, assert_refused
from registry.tests.written_rows import write
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import confirm

__all__ = ["asking"]
pytestmark = pytest.mark.django_db


@pytest.fixture
def finance(bob: Person, now: datetime) -> ApproverGroup:
    """Bob's group, to which a rule sends everything."""
    group = create_group(name="Finance", wait_minutes=15, next_group=None, actor=TESTER, now=now)
    add_member(group=group, human=bob.human, actor=TESTER, now=now)
    create_rule(name="All", group=group, actor=TESTER, now=now)
    return group


def test_a_suspended_member_decides_nothing(
    admin: Person, bob: Person, finance: ApproverGroup, reading: Grant, now: datetime
) -> None:
    suspend_human(human=bob.human, actor=TESTER, now=now)
    assert set(route_now(reading, now).deciders) == {str(admin.human.pk)}


def test_a_suspended_owner_confirms_nothing(alice: Person, asking: Confirmation) -> None:
    human, now = alice.human, asking.created_at
    suspend_human(human=human, actor=TESTER, now=now)
    with pytest.raises(NotFoundError):
        confirm(confirmation=asking, human=human, actor=TESTER, now=now)
    asking.refresh_from_db()
    assert asking.status == "pending"


@pytest.mark.parametrize("columns", [{"admin_role": "approver"}, {"is_staff": True}])
def test_DJ_17_who_wrote_themselves_a_role_decides_nothing(
    admin: Person,
    bob: Person,
    finance: ApproverGroup,
    reading: Grant,
    now: datetime,
    columns: dict[str, Any],
) -> None:
    """What no group decides goes to the administrators."""
    remove_member(member=GroupMember.objects.get(), actor=TESTER, now=now)
    write(bob.human, **columns)
    assert set(route_now(reading, now).deciders) == {str(admin.human.pk)}
    assert bob.get(f"/approvals/{reading.pk}/").status_code == 404


def test_anothers_page_token_tells_a_stranger_nothing(
    bob: Person, finance: ApproverGroup, reading: Grant, now: datetime
) -> None:
    drawn = bob.drawn(reading)
    eve = registered("eve@example.org", "Eve", now=now)
    for act in ("review", "statement"):
        assert_refused(eve.ask(reading, act, drawn=drawn), 404, "not_found")


def test_a_denial_by_a_deleted_approver_leaves_no_text(
    bob: Person, finance: ApproverGroup, reading: Grant, now: datetime
) -> None:
    """No grant rests on it, unlike on an approval."""
    assert bob.deny(reading, "Not now").status_code == 200
    delete_human(human=bob.human, actor=TESTER, now=now)
    assert Receipt.objects.get().compact == ""


def test_a_statement_moved_to_another_session_signs_nothing(alice: Person, reading: Grant) -> None:
    options = alice.statement(reading).json()["publicKey"]
    alice.sign_in(browser())
    key = stored_key(str(alice.client.session.session_key))
    moved = hashlib.sha256(key.encode()).digest()
    assert Challenge.objects.filter(purpose="approval").update(session=moved) == 1
    assert_refused(alice.decide(reading, options), 400, "invalid_assertion")
