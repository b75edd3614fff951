"""A person is deleted while a recovery that they take part in is used or ended (PostgreSQL).

Neither deadlocks.
"""

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


def start_in_order(row: Recovery, acts: list[Callable[[], object]]) -> list[Press]:
    """Start the acts in this order, each once the one before waits for the lock on `row`.

    This transaction holds it. Returns when all have ended.
    """
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
    human, new_browser, answers = alice.human, Person(client=browser()), list[int]()
    link = ready_link(human, now)
    options = new_browser.post(f"{path_of(link)}options").json()["publicKey"]
    credential = {"credential": new_browser.device.registration(options)}
    deletion, _use = start_in_order(
        Recovery.objects.get(),
        [
            lambda: delete_human(human=human, actor=TESTER, now=now),
            lambda: answers.append(
                new_browser.post(f"{path_of(link)}finish", credential).status_code
            ),
        ],
    )
    assert (deletion.refusal, answers) == ("", [410])
    assert Human.objects.get(pk=human.pk).status == "deleted"


def test_WR_15_administrator_deleted_while_resuming_is_refused(
    admin: Person, alice: Person, now: datetime
) -> None:
    """Resuming ends the recovery that `deleted_admin` began, so both acts lock its row."""
    suspended = alice.human
    other = registered("other@example.org", "Other", now=now, is_staff=True)
    suspend_human(human=suspended, actor=TESTER, now=now)
    row = begun(suspended, now, case="stolen", admin=other.human)
    path, deleted_admin, answers = f"/resume/human/{suspended.pk}/", other.human, list[int]()
    options = other.press_on(path).json()["publicKey"]
    credential = {"credential": other.device.assertion(options)}
    deletion, _resume = start_in_order(
        row,
        [
            lambda: delete_human(human=deleted_admin, actor=TESTER, now=now),
            lambda: answers.append(other.post(f"{path}decide", credential).status_code),
        ],
    )
    assert (deletion.refusal, answers) == ("", [400])
    assert Human.objects.get(pk=suspended.pk).status == "suspended"
