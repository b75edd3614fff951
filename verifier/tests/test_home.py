"""The row of the replay cache: leases that expire, and moves that wait for them."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import time_machine
from django.db import OperationalError, connection
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.models import Event
from registry.services.settings_agreement import Halt
from verifier.models import Home
from verifier.services import replay_cache_lease, replay_epochs
from verifier.services.replay_cache_lease import Lease
from verifier.services.replay_epochs import LEASE_SECONDS, MARGIN_SECONDS, read_or_create_row
from verifier.services.replay_epochs import database_clock as true_database_clock
from verifier.tests.epoch_moves import Passing, begin, leave, unavailable, with_nonce
from verifier.tests.scene import LOOK, SYSTEM, scene

pytestmark = pytest.mark.django_db


# ---- the row


def test_the_migration_makes_the_row_and_a_missing_one_is_made_again(time: Passing) -> None:
    Home.objects.all().delete()
    row, database_now = read_or_create_row()
    assert (row.epoch, row.kind, row.servers, row.leaving_at) == (1, "database", [], None)
    assert row.began_at == database_now == timezone.now()
    time.shift(10)
    again, later = read_or_create_row()
    assert (again.began_at, later) == (row.began_at, timezone.now())


def test_a_look_is_one_query(django_assert_num_queries: Any) -> None:
    read_or_create_row()
    with django_assert_num_queries(1):
        read_or_create_row()


def test_the_time_is_the_databases_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_epochs, "database_clock", true_database_clock)
    before = timezone.now()
    first, second = read_or_create_row()[1], read_or_create_row()[1]
    # Also within one transaction, where PostgreSQL's now() stands still.
    assert before - timedelta(seconds=5) < first < second < timezone.now() + timedelta(seconds=5)
    with time_machine.travel(timezone.now() + timedelta(seconds=6)):
        lease = Lease()
        # SQLite uses this host's clock, so there is nothing to compare.
        if connection.vendor == "postgresql":
            with pytest.raises(TemporarilyUnavailableError, match="clock"):
                lease.current()
        else:
            assert lease.current().number == 1


# ---- the lease


def test_a_process_looks_at_most_once_a_second(
    time: Passing, django_assert_num_queries: Any
) -> None:
    read_or_create_row()
    with django_assert_num_queries(1):
        for _ in range(10):
            replay_cache_lease.LEASE.current()
            time.shift(0.1)
    time.shift(0.1)
    with django_assert_num_queries(1):
        replay_cache_lease.LEASE.current()


def away(*_args: object) -> Any:
    raise OperationalError("connection to database.internal failed")


def test_a_lease_lapses_five_seconds_after_its_last_look(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replay_cache_lease.LEASE.current().number == 1
    monkeypatch.setattr(replay_epochs, "read_row", away)
    time.shift(LEASE_SECONDS)
    assert replay_cache_lease.LEASE.last_epoch().number == 1
    time.shift(0.001)
    with pytest.raises(TemporarilyUnavailableError):
        replay_cache_lease.LEASE.last_epoch()
    with pytest.raises(TemporarilyUnavailableError):
        Lease(time).last_epoch()


def test_a_host_that_was_halted_decides_nothing_until_it_has_looked_again(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock stood still with the host; the wall clock was corrected."""
    assert replay_cache_lease.LEASE.current().number == 1
    awake = timezone.now().timestamp()
    with monkeypatch.context() as patch:
        patch.setattr(replay_epochs, "read_row", away)
        patch.setattr(replay_cache_lease, "wall", lambda: awake + LEASE_SECONDS + 0.1)
        for asked in (
            replay_cache_lease.LEASE.last_epoch,
            replay_cache_lease.LEASE.clock_off,
            replay_cache_lease.LEASE.current,
        ):
            with pytest.raises((TemporarilyUnavailableError, OperationalError)):
                asked()
        # A correction smaller than the allowed clock error.
        patch.setattr(replay_cache_lease, "wall", lambda: awake - 4.9)
        assert replay_cache_lease.LEASE.last_epoch().number == 1
    assert replay_cache_lease.LEASE.current().number == 1


def test_RF_12_clock_set_back_stops_decisions_until_the_next_check(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its clock, an expired token would be valid, with a proof that no cache remembers."""
    assert replay_cache_lease.LEASE.current().number == 1
    former = timezone.now().timestamp() - 180
    with monkeypatch.context() as patch:
        patch.setattr(replay_epochs, "read_row", away)
        patch.setattr(replay_cache_lease, "wall", lambda: former)
        for asked in (
            replay_cache_lease.LEASE.last_epoch,
            replay_cache_lease.LEASE.clock_off,
            replay_cache_lease.LEASE.current,
        ):
            with pytest.raises((TemporarilyUnavailableError, OperationalError)):
                asked()
    assert replay_cache_lease.LEASE.current().number == 1


def test_a_home_that_cannot_be_looked_at_is_503(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    body = place.body(LOOK)
    monkeypatch.setattr(replay_epochs, "read_row", away)
    unavailable(place, body)


def test_the_lease_counts_from_when_the_look_began(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: Callable[[], tuple[Home, datetime]] = replay_epochs.read_row

    def four_seconds() -> tuple[Home, datetime]:
        seen = slow()
        time.shift(4)
        return seen

    monkeypatch.setattr(replay_epochs, "read_row", four_seconds)
    assert replay_cache_lease.LEASE.current().number == 1
    time.shift(1)
    assert replay_cache_lease.LEASE.last_epoch().number == 1
    time.shift(0.001)
    with pytest.raises(TemporarilyUnavailableError):
        replay_cache_lease.LEASE.last_epoch()


def test_an_older_look_does_not_replace_a_younger(time: Passing) -> None:
    row, database_now = read_or_create_row()
    replay_cache_lease.LEASE.renew(row, database_now, time())
    row.epoch = 7
    replay_cache_lease.LEASE.renew(row, database_now, time() - 1)
    assert replay_cache_lease.LEASE.last_epoch().number == 1
    replay_cache_lease.LEASE.renew(row, database_now, time() + 1)
    assert replay_cache_lease.LEASE.last_epoch().number == 7


def test_one_thread_looks_and_the_others_go_on_or_wait(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_or_create_row()
    asked, answer, looks = threading.Event(), threading.Event(), Counter[str]()

    def slowly() -> tuple[Home, datetime]:
        looks["all"] += 1
        asked.set()
        assert answer.wait(10)
        return seen

    monkeypatch.setattr(replay_epochs, "read_row", slowly)
    with ThreadPoolExecutor(3) as pool:
        # Nothing is cached yet, so all three wait for one read.
        first = [pool.submit(replay_cache_lease.LEASE.current) for _ in range(3)]
        assert asked.wait(10)
        assert not any(each.done() for each in first)
        answer.set()
        assert [each.result().number for each in first] == [1, 1, 1]
        assert looks["all"] == 1
        time.shift(2)
        asked.clear()
        answer.clear()
        looking = pool.submit(replay_cache_lease.LEASE.current)
        assert asked.wait(10)
        assert pool.submit(replay_cache_lease.LEASE.current).result(3).number == 1
        assert not looking.done()
        answer.set()
        assert (looking.result().number, looks["all"]) == (1, 2)


@pytest.mark.parametrize(("ahead", "right"), [(6, False), (5, True), (-5, True), (-6, False)])
def test_a_host_whose_clock_is_off_by_six_seconds_does_not_decide(
    time: Passing, ahead: int, *, right: bool
) -> None:
    place = scene()
    body = place.body(LOOK)
    time.set_ahead(ahead)
    if right:
        assert place.ask(**body)["valid"]
    else:
        unavailable(place, body)
        # Decides again once the clock is right and was compared.
        time.set_ahead(0)
        time.shift(1.1)
        assert place.ask(**body)["valid"]


def test_a_slow_look_does_not_make_a_clock_wrong(time: Passing) -> None:
    """The read returns the database's time of its start, and both clocks have run since."""
    seen = read_or_create_row()
    time.set_ahead(2)
    began = time()
    time.shift(4)
    replay_cache_lease.LEASE.renew(*seen, began)
    assert replay_cache_lease.LEASE.last_epoch().number == 1


# ---- leaving and beginning


def test_no_decision_is_made_while_the_home_is_being_left(time: Passing) -> None:
    place = scene()
    body = place.body(LOOK)
    assert leave()
    unavailable(place, body)
    time.shift(LEASE_SECONDS + MARGIN_SECONDS)
    unavailable(place, body)
    assert begin()
    time.shift(1.1)
    assert place.ask(**with_nonce(place))["valid"]


def test_the_row_says_which_epoch_began_and_that_none_is_left(time: Passing) -> None:
    names: Any = {"reason": "test", "actor": SYSTEM, "now": timezone.now()}
    assert not replay_epochs.end_epoch(epoch=2, for_kind="redis", **names)
    assert leave()
    assert begin(frozenset({"b", "a"}))
    row = Home.objects.get()
    assert (row.epoch, row.kind, row.servers, row.began_at) == (
        2,
        "database",
        ["a", "b"],
        timezone.now(),
    )
    assert (row.leaving_at, row.leaving_for) == (None, "")


def test_an_epoch_begins_by_the_later_of_the_two_clocks(time: Passing) -> None:
    """So that the careful time ends too early by neither."""
    assert leave()
    time.set_ahead(5)
    assert begin()
    assert Home.objects.get().began_at == timezone.now()
    time.set_ahead(-5)
    assert leave()
    assert begin()
    assert Home.objects.get().began_at == timezone.now() + timedelta(seconds=5)


@pytest.mark.parametrize("ahead", [6, 600, -6])
def test_RF_5_nothing_begins_while_the_databases_clock_is_not_this_hosts(
    time: Passing, ahead: int
) -> None:
    """Otherwise the epoch would begin in the past or future once that clock is right again."""
    assert leave()
    time.shift(LEASE_SECONDS + MARGIN_SECONDS + 1000)
    time.set_ahead(ahead)
    assert not begin()
    assert Home.objects.get().leaving_at is not None
    time.set_ahead(0)
    assert begin()


def test_a_move_is_two_events_and_the_second_of_two_writes_none(time: Passing) -> None:
    assert leave("redis")
    assert not leave("redis")
    time.shift(LEASE_SECONDS + MARGIN_SECONDS)
    assert begin()
    assert not begin()
    told = Event.objects.filter(kind__startswith="verifier.home").order_by("at")
    assert [(each.kind, each.data) for each in told] == [
        ("verifier.home.left", {"epoch": 1, "kind": "redis", "reason": "test"}),
        ("verifier.home.began", {"epoch": 2, "kind": "redis", "reason": "test"}),
    ]
    # Rates count as used up from then on: auditors find the moment in the log.
    assert told[1].at == Home.objects.get().began_at


def test_halt_that_ends_during_the_check_still_refuses_the_caller() -> None:
    """Another thread reads the row between two steps of this one."""
    halted = SimpleNamespace(halt=Halt("This process may not act.", "reason", passes=True))

    class Looks(Lease):
        reads: ClassVar[list[Any]] = [SimpleNamespace(halt=None), halted, halted]

        @property
        def _last(self) -> Any:
            return self.reads.pop()

        @_last.setter
        def _last(self, last: object) -> None:
            pass

    with pytest.raises(TemporarilyUnavailableError, match="may not act"):
        Looks().check_halt()


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_leaves_and_one_begins(time: Passing) -> None:
    def at_once(step: Callable[[], bool]) -> int:
        barrier = threading.Barrier(4)

        def one() -> bool:
            try:
                barrier.wait(10)
                return step()
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            return sum(each.result() for each in [pool.submit(one) for _ in range(4)])

    now = timezone.now()
    read_or_create_row()
    for epoch in (1, 2, 3):
        names: Any = {"epoch": epoch, "reason": "test", "actor": SYSTEM, "now": now}
        assert at_once(partial(replay_epochs.end_epoch, for_kind="database", **names)) == 1
        time.shift(6)
        assert at_once(begin) == 1
    assert Home.objects.get().epoch == 4
    assert Event.objects.filter(kind__startswith="verifier.home").count() == 6
