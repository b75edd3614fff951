"""Payments of one agent at one service provider are serialised, whichever grant each uses."""

import threading
from dataclasses import replace

import pytest
from django.db import connection, transaction

from tests.waiting import until
from verifier.models import GrantLedger
from verifier.stores import database_decisions
from verifier.stores.database_decisions import DecisionRequest, decide_one
from verifier.stores.group_commit import decide_all
from verifier.tests.scene import PAY, Scene, scene
from verifier.tests.test_counters_outlive import asked_again, budget
from verifier.tests.test_shared_commits import waits_for_a_lock
from verifier.tests.test_store_contract import payment, words
from verifier.tests.test_two_grants import second

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

MONTH = budget("10.00", "month")


class Payment(threading.Thread):
    """A payment that pauses between its debit and its commit until told to go on."""

    def __init__(self, place: Scene, value: str, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._call = payment(place, value)
        self._debited, self._go = threading.Event(), threading.Event()
        self.told = ""
        patch.setattr(database_decisions, "fault_point", self._stand_still)

    def _stand_still(self, name: str) -> None:
        if name == "verify.after_debit" and threading.current_thread() is self:
            self._debited.set()
            self._go.wait(20)

    def run(self) -> None:
        self.told = words(decide_one(self._call))
        connection.close()

    def begin(self) -> None:
        self.start()
        assert self._debited.wait(20)

    def end(self) -> None:
        self._go.set()
        self.join(20)


def begun_beside(place: Scene, value: str) -> tuple[threading.Thread, list[str]]:
    """A payment in a thread that has not started yet, and the list that receives its answer."""
    told: list[str] = []
    call = payment(place, value)

    def pays() -> None:
        told.append(words(decide_one(call)))
        connection.close()

    return threading.Thread(target=pays), told


def paid_meanwhile(under_way: Payment, place: Scene, value: str) -> str:
    """The answer to a payment that starts while another one is pending, and ends after it."""
    other, told = begun_beside(place, value)
    other.start()
    until(lambda: bool(told) or waits_for_a_lock())
    under_way.end()
    other.join(20)
    assert under_way.told == "yes"
    return told[0]


@pytest.mark.parametrize("used", [False, True], ids=["its first use", "used before"])
def test_EN_18_a_payment_waits_for_the_first_use_of_another_grant(
    monkeypatch: pytest.MonkeyPatch, *, used: bool
) -> None:
    place = scene(PAY, budgets=[MONTH])
    other = replace(place, grant=second(place, PAY, budgets=[MONTH]))
    if used:
        assert words(decide_one(payment(other, "1.00"))) == "yes"
    under_way = Payment(place, "6.00", monkeypatch)
    under_way.begin()
    assert paid_meanwhile(under_way, other, "5.00") == "budget"
    assert words(decide_one(payment(other, "3.00"))) == "yes"


def test_payment_under_way_at_revocation_counts_for_the_next_grant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = scene(PAY, budgets=[MONTH])
    under_way = Payment(place, "6.00", monkeypatch)
    under_way.begin()
    # Neither the revocation nor the approval waits for it.
    again = asked_again(place, PAY, budgets=[MONTH])
    assert paid_meanwhile(under_way, again, "5.00") == "budget"
    assert words(decide_one(payment(again, "4.00"))) == "yes"


def test_EN_18_payments_under_two_grants_in_one_commit_see_each_other() -> None:
    place = scene(PAY, budgets=[MONTH])
    other = replace(place, grant=second(place, PAY, budgets=[MONTH]))
    told = decide_all(
        [DecisionRequest(payment(each, "4.00")) for each in (place, other, place, other)]
    )
    assert [words(each) for each in told] == ["yes", "yes", "budget", "budget"]


def test_EN_18_other_agents_and_service_providers_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, others = scene(PAY, budgets=[MONTH]), scene(PAY, budgets=[MONTH])
    there = replace(place, provider=others.provider, secret=others.secret)
    elsewhere = replace(there, grant=second(there, PAY, budgets=[MONTH]))
    under_way = Payment(place, "6.00", monkeypatch)
    under_way.begin()
    for each in (others, elsewhere):
        assert words(decide_one(payment(each, "10.00"))) == "yes"
    under_way.end()
    assert GrantLedger.objects.count() == 3


def test_uses_counted_by_jobs_during_a_payment_are_not_lost() -> None:
    """The jobs lock rows of counters, but take no queue."""
    place = scene(PAY, budgets=[MONTH])
    assert words(decide_one(payment(place, "1.00"))) == "yes"
    paying, told = begun_beside(place, "2.00")
    with transaction.atomic():
        GrantLedger.objects.select_for_update().get(grant=place.grant)
        paying.start()
        until(waits_for_a_lock)
        GrantLedger.objects.filter(grant=place.grant).update(uses=5)
    paying.join(20)
    assert (told, GrantLedger.objects.get(grant=place.grant).uses) == (["yes"], 6)


def test_a_first_use_that_waits_for_the_jobs_holds_no_row_that_they_want() -> None:
    """The jobs insert the row of a grant's first use, then lock all rows they count in."""
    place = scene(PAY, budgets=[MONTH])
    assert words(decide_one(payment(place, "1.00"))) == "yes"
    other = replace(place, grant=second(place, PAY, budgets=[MONTH]))
    paying, told = begun_beside(other, "2.00")
    with transaction.atomic():
        GrantLedger.objects.create(grant=other.grant)
        paying.start()
        until(waits_for_a_lock)
        assert len(GrantLedger.objects.select_for_update(nowait=True)) == 2
        GrantLedger.objects.filter(grant=other.grant).update(uses=5)
    paying.join(20)
    assert told == ["yes"]
    assert GrantLedger.objects.get(grant=other.grant).uses == 6
