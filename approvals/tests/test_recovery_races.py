"""A recovery is used or ended while an administrator is deleted (PostgreSQL): no deadlock."""

from collections.abc import Callable
from datetime import datetime

import pytest
from django.db import transaction

from approvals.models import Recovery
from approvals.services.human_suspension_and_erasure import delete_human, suspend_human
from approvals.tests.cast import Person, browser, registered
from approvals.tests.recovering import begun, path_of, ready_link
from approvals.tests.test_ending_races import Press
from audit.tests.waiting import wait_for_lock_waiters
from registry.models import Human
from registry.tests.cast import TESTER

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def in_this_order(row: Recovery, acts: list[Callable[[], object]]) -> list[Press]:
    """Start the acts in this order; each waits for the recovery, held by another transaction."""
    presses = []
    with transaction.atomic():
        Recovery.objects.select_for_update().get(pk=row.pk)
        for act in acts:
            presses.append(Press(act))
            wait_for_lock_waiters(len(presses))
    for press in presses:
        press.join()
    return presses


def test_WR_15_a_link_that_is_used_during_a_deletion_is_refused(
    admin: Person, alice: Person, now: datetime
) -> None:
    human, anew, answers = alice.human, Person(client=browser()), list[int]()
    link = ready_link(human, now)
    options = anew.post(f"{path_of(link)}options").json()["publicKey"]
    credential = {"credential": anew.device.registration(options)}
    deletion, _use = in_this_order(
        Recovery.objects.get(),
        [
            lambda: delete_human(human=human, actor=TESTER, now=now),
            lambda: answers.append(anew.post(f"{path_of(link)}finish", credential).status_code),
        ],
    )
    assert (deletion.refusal, answers) == ("", [410])
    assert Human.objects.get(pk=human.pk).status == "deleted"


def test_WR_15_administrator_deleted_while_resuming_is_refused(
    admin: Person, alice: Person, now: datetime
) -> None:
    human, other = alice.human, registered("other@example.org", "Other", now=now, is_staff=True)
    suspend_human(human=human, actor=TESTER, now=now)
    row = begun(human, now, case="stolen", admin=other.human)
    path, who, answers = f"/resume/human/{human.pk}/", other.human, list[int]()
    options = other.press_on(path).json()["publicKey"]
    credential = {"credential": other.device.assertion(options)}
    deletion, _resume = in_this_order(
        row,
        [
            lambda: delete_human(human=who, actor=TESTER, now=now),
            lambda: answers.append(other.post(f"{path}decide", credential).status_code),
        ],
    )
    assert (deletion.refusal, answers) == ("", [400])
    assert Human.objects.get(pk=human.pk).status == "suspended"
