"""Things created during a suspension, recovery or deletion end too (PostgreSQL): no deadlock."""

import json
from collections.abc import Callable
from datetime import datetime
from functools import partial

import pytest
from django.db import transaction
from django.utils import timezone

from approvals.models import Recovery, SetupCode
from approvals.services import human_suspension_and_erasure
from approvals.services.destructive_actions import end_for_good, preview
from approvals.services.human_suspension_and_erasure import (
    change_role,
    delete_human,
    suspend_human,
)
from approvals.tests.cast import Person, browser, registered
from approvals.tests.recovering import begun, path_of, ready_link
from approvals.tests.test_ending_races import Press, at_once
from audit.models import Event
from audit.tests.waiting import wait_for_lock_waiters
from registry.models import EnrolmentCode, Human
from registry.roles import Role
from registry.services.enrolment_codes import create_enrolment_code
from registry.tests.cast import TESTER

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]
ENDS: list[Callable[..., None]] = [suspend_human, delete_human]
# These do not begin by locking the administrators, and with them the user.
ENDS += [partial(end, even_last_owner=True) for end in ENDS]


@pytest.fixture
def second(admin: Person, keys: None, now: datetime) -> Person:
    """A second administrator, after the first in lock order."""
    return registered("second@example.org", "Second", now=now, is_staff=True)


def in_this_order(human: Human, *acts: Callable[[], object]) -> list[str]:
    """Each waits for the user's row, which another transaction holds; then they proceed in order.

    Returns their refusals.
    """
    presses = list[Press]()
    with transaction.atomic():
        Human.objects.select_for_update(no_key=True).get(pk=human.pk)
        for act in acts:
            presses.append(Press(act))
            wait_for_lock_waiters(len(presses))
    for press in presses:
        press.join()
    return [press.refusal for press in presses]


def posting(person: Person, path: str, into: list[int], **fields: str) -> Callable[[], object]:
    """A press after the passkey's signature; appends its status to the list."""
    signed = fields | {"verification": json.dumps(person.verification(path))}
    return lambda: into.append(person.client.post(path, signed).status_code)


@pytest.mark.parametrize(
    "end", ENDS, ids=["suspended", "deleted", "suspended-last", "deleted-last"]
)
def test_WR_15_invitation_made_while_its_admin_is_ended_ends(
    end: Callable[..., None], admin: Person, second: Person, now: datetime
) -> None:
    human, answers = second.human, list[int]()
    invite = posting(second, "/admin/invite/", answers, email="mallory@example.org")
    refusals = in_this_order(human, invite, partial(end, human=human, actor=TESTER, now=now))
    assert (answers, refusals) == ([200], ["", ""])
    assert not SetupCode.objects.filter(email="mallory@example.org", expires_at__gt=now).exists()
    assert not Human.objects.get(pk=human.pk).is_active


def test_WR_15_an_end_that_never_finds_all_of_it_ends_nothing(
    admin: Person, second: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(human_suspension_and_erasure, "_TRIES", 1)
    human, answers = second.human, list[int]()
    invite = posting(second, "/admin/invite/", answers, email="zoe@example.org")
    suspend = partial(suspend_human, human=human, actor=TESTER, now=now)
    assert in_this_order(human, invite, suspend) == ["", "temporarily_unavailable"]
    assert human.status == Human.objects.get(pk=human.pk).status == "active"
    assert not Event.objects.filter(kind="registry.human.suspended").exists()


@pytest.mark.parametrize(
    "end", ENDS, ids=["suspended", "deleted", "suspended-last", "deleted-last"]
)
def test_WR_15_enrolment_code_made_while_its_user_is_ended_ends(
    end: Callable[..., None], alice: Person, admin: Person, now: datetime
) -> None:
    human, answers = alice.human, list[int]()
    make = posting(alice, "/settings/enrolment-codes", answers)
    refusals = in_this_order(human, make, partial(end, human=human, actor=TESTER, now=now))
    assert (answers, refusals) == ([200], ["", ""])
    assert not EnrolmentCode.objects.filter(expires_at__gt=timezone.now()).exists()


def test_WR_15_operator_enrolment_code_made_during_suspension_ends(
    alice: Person, admin: Person, now: datetime
) -> None:
    human = alice.human
    make = partial(create_enrolment_code, human=human, actor=TESTER, now=now)
    suspend = partial(suspend_human, human=human, actor=TESTER, now=now)
    assert in_this_order(human, make, suspend) == ["", ""]
    assert not EnrolmentCode.objects.filter(expires_at__gt=timezone.now()).exists()
    assert in_this_order(human, make) == ["invalid_state"]


def test_WR_15_an_enrolment_code_that_is_made_during_a_recovery_ends(
    alice: Person, keys: None, now: datetime
) -> None:
    human, anew, answers = alice.human, Person(client=browser()), list[int]()
    link = ready_link(human, now)
    options = anew.post(f"{path_of(link)}options").json()["publicKey"]
    credential = {"credential": anew.device.registration(options)}
    refusals = in_this_order(
        human,
        posting(alice, "/settings/enrolment-codes", answers),
        lambda: answers.append(anew.post(f"{path_of(link)}finish", credential).status_code),
    )
    assert (answers, refusals) == ([200, 200], ["", ""])
    assert not EnrolmentCode.objects.filter(expires_at__gt=timezone.now()).exists()


def test_WR_15_recovery_decided_during_a_suspension_is_cancelled(
    alice: Person, admin: Person, second: Person, now: datetime
) -> None:
    """Even if a second administrator decides now, holding it, waiting for the suspension's row."""
    row, human, answers = begun(alice.human, now), second.human, list[int]()
    path = f"/recoveries/{row.pk}/confirm"
    refusals = in_this_order(
        human,
        posting(second, path, answers),
        partial(suspend_human, human=human, actor=TESTER, now=now),
        posting(admin, path, answers),
    )
    row.refresh_from_db()
    assert (answers, refusals) == ([302, 409], ["", "", ""])
    assert row.confirmed_by_id == human.pk
    assert row.cancelled_at is not None
    assert Event.objects.filter(kind="approvals.recovery.cancelled").count() == 1


def test_WR_15_recovery_begun_during_a_suspension_is_cancelled(
    alice: Person, admin: Person, now: datetime
) -> None:
    human, answers = alice.human, list[int]()
    start = posting(admin, f"/recoveries/{human.pk}/lost", answers)
    refusals = in_this_order(
        human, start, partial(suspend_human, human=human, actor=TESTER, now=now)
    )
    assert (answers, refusals) == ([302], ["", ""])
    assert Recovery.objects.get().cancelled_at is not None


def test_WR_15_operator_recovery_begun_during_suspension_is_cancelled(
    alice: Person, admin: Person, now: datetime
) -> None:
    human = alice.human
    suspend = partial(suspend_human, human=human, actor=TESTER, now=now)
    assert in_this_order(human, lambda: begun(human, now), suspend) == ["", ""]
    assert Recovery.objects.get().cancelled_at is not None


def test_WR_15_recovery_begun_during_a_resumption_stops_it(
    alice: Person, admin: Person, now: datetime
) -> None:
    human, answers = alice.human, list[int]()
    suspend_human(human=human, actor=TESTER, now=now)
    path = f"/resume/human/{human.pk}/"
    credential = {"credential": admin.device.assertion(admin.press_on(path).json()["publicKey"])}
    in_this_order(
        human,
        lambda: begun(human, now, case="stolen"),
        lambda: answers.append(admin.post(f"{path}decide", credential).status_code),
    )
    assert (answers, Human.objects.get(pk=human.pk).status) == ([409], "suspended")
    assert Recovery.objects.get().cancelled_at is None


def test_WR_15_recovery_begun_during_a_deletion_stops_the_deletion(
    alice: Person, admin: Person, now: datetime
) -> None:
    human, who = alice.human, admin.human
    shown = preview("human", [human.pk], human=who, party="administrator", now=now).shown
    delete = partial(
        end_for_good,
        "human",
        [human.pk],
        shown=shown,
        human=who,
        party="administrator",
        actor=TESTER,
        now=now,
    )
    assert in_this_order(human, lambda: begun(human, now), delete) == ["", "grant_changed"]
    assert Human.objects.get(pk=human.pk).status == "active"


def test_SA_1_users_are_locked_in_one_order_for_every_actor(
    admin: Person, second: Person, now: datetime
) -> None:
    """Two administrators who create codes for each other queue without a deadlock."""
    first, other, answers = admin.human, second.human, list[int]()
    press = posting(admin, "/admin/enrolment-code/", answers, human=str(other.pk))
    with transaction.atomic():
        Human.objects.select_for_update(no_key=True).get(pk=first.pk)
        waiting = Press(press)
        wait_for_lock_waiters()
        assert Human.objects.select_for_update(no_key=True, nowait=True).get(pk=other.pk).is_active
    waiting.join()
    assert answers == [200]


def test_SA_1_a_resumption_locks_people_in_that_order(
    admin: Person, second: Person, now: datetime
) -> None:
    answers = list[int]()
    suspend_human(human=second.human, actor=TESTER, now=now)
    other = Human.objects.get(email="second@example.org")
    path = f"/resume/human/{other.pk}/"
    credential = {"credential": admin.device.assertion(admin.press_on(path).json()["publicKey"])}
    with transaction.atomic():
        Human.objects.select_for_update(no_key=True).get(pk=admin.human.pk)
        waiting = Press(lambda: answers.append(admin.post(f"{path}decide", credential).status_code))
        wait_for_lock_waiters()
        assert Human.objects.select_for_update(no_key=True, nowait=True).get(pk=other.pk)
    waiting.join()
    assert answers == [200]


LOWERED: Callable[..., None] = partial(change_role, role=Role.AUDITOR)


def owners() -> list[Human]:
    people = Human.objects.filter(status=Human.Status.ACTIVE)
    return [human for human in people if human.role is Role.OWNER]


@pytest.mark.parametrize(
    "ends",
    [(LOWERED, LOWERED), (LOWERED, suspend_human), (suspend_human, suspend_human)],
    ids=["lowered", "lowered-suspended", "suspended"],
)
def test_SA_8_of_two_owners_who_end_each_other_one_stays(
    ends: tuple[Callable[..., None], ...], admin: Person, second: Person, now: datetime
) -> None:
    people = (second.human, admin.human)
    refusals = at_once(
        *(
            partial(end, human=human, actor=TESTER, now=now)
            for end, human in zip(ends, people, strict=True)
        )
    )
    assert sorted(refusals) == ["", "invalid_state"]
    assert len(owners()) == 1


def test_SA_8_of_two_owners_who_press_the_later_one_is_told(admin: Person, second: Person) -> None:
    answers = list[int]()
    lowered = {"role": "auditor", "shown_role": "owner"}
    presses = [
        posting(by, f"/admin/humans/{other.human.pk}/role/", answers, **lowered)
        for by, other in ((admin, second), (second, admin))
    ]
    assert at_once(*presses) == ["", ""]
    # The form again, with the refusal.
    assert sorted(answers) == [200, 302]
    assert len(owners()) == 1
