"""Ids are unique everywhere and rise within a process, across threads, forks and clock changes."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise

import pytest

from audit import new_ids
from audit.log.sequencer import sequence_until_empty
from audit.models import Event, Leaf
from audit.new_ids import MAX_SET_BACK_SECONDS, made_at, new_id, new_id_text
from audit.tests.conftest import MakeEvent

MANY = 5_000


def mint(count: int) -> list[str]:
    return [new_id_text() for _ in range(count)]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that stops the clock at nanoseconds after 2026-11-25, with a new id generator."""
    monkeypatch.setattr(new_ids, "_mint", new_ids._Mint())

    def at(nanoseconds: int) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: 1_795_564_800_000_000_000 + nanoseconds)

    return at


def test_ids_are_uuid7_and_tell_the_millisecond(set_clock: Callable[[int], None]) -> None:
    set_clock(1_999_999)
    made = new_id()
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made_at(made) == 1_795_564_800.001


def test_AU_11_ids_of_one_tick_rise_in_the_order_they_are_made(
    set_clock: Callable[[int], None],
) -> None:
    set_clock(0)
    made = mint(MANY)
    assert made == sorted(set(made))
    # All are within one tick of 244 ns, and none can be derived from the one before.
    assert len({each[:18] for each in made}) == 1
    assert len({int(later[24:], 16) - int(one[24:], 16) for one, later in pairwise(made)}) > 1


def test_ids_of_two_processes_sort_by_the_clock_below_a_millisecond(
    set_clock: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for microseconds in range(0, 1000, 10):
        set_clock(microseconds * 1000)
        one = new_id()
        monkeypatch.setattr(new_ids, "_mint", new_ids._Mint())
        set_clock(microseconds * 1000 + 500)
        assert new_id() > one


@pytest.mark.parametrize("seconds", [0.000001, 1, MAX_SET_BACK_SECONDS - 1])
def test_a_clock_that_steps_back_a_little_changes_no_order(
    set_clock: Callable[[int], None], seconds: float
) -> None:
    set_clock(0)
    before = mint(10)
    set_clock(-int(seconds * 1e9))
    after = mint(10)
    assert before + after == sorted({*before, *after})
    set_clock(1_000)
    assert new_id_text() > after[-1]


def test_a_clock_that_steps_back_far_is_followed(set_clock: Callable[[int], None]) -> None:
    """A moment in 2090 must not keep a process minting ids of 2090."""
    set_clock(int(64 * 365 * 86_400 * 1e9))
    new_id()
    set_clock(0)
    assert made_at(new_id()) == 1_795_564_800.0


def test_AU_11_threads_never_share_an_id_and_each_sees_its_own_rise() -> None:
    made: list[list[str]] = []
    gate = threading.Barrier(8)

    def run() -> None:
        gate.wait()
        made.append(mint(MANY))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each == sorted(each) for each in made)
    assert len({one for each in made for one in each}) == 8 * MANY


def test_forked_processes_continue_the_parents_ids_and_share_none(
    set_clock: Callable[[int], None],
) -> None:
    """Like workers forked from a master that has minted ids; the clock stands still for all."""
    set_clock(0)
    before = mint(10)
    made = [_in_a_child(500) for _ in range(4)]
    own = mint(500)
    assert all(each == sorted(each) and each[0] > before[-1] for each in [*made, own])
    every = [one for each in [before, own, *made] for one in each]
    assert len(set(every)) == len(every)


def test_child_with_a_stopped_clock_continues_past_the_parent(
    set_clock: Callable[[int], None],
) -> None:
    set_clock(0)
    child = new_ids._Mint()
    # Forked before the parent minted anything.
    child.begin_anew()
    last = child.next()
    child.begin_anew()
    assert child.next() >> new_ids._RANDOM_BITS > last >> new_ids._RANDOM_BITS


def test_a_child_forked_while_a_thread_mints_can_mint() -> None:
    with new_ids._mint._lock:
        assert len(_in_a_child(3)) == 3


def _in_a_child(count: int) -> list[str]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        # No code of the test runner may run here, and a child blocked on a lock must end.
        signal.alarm(30)
        try:
            os.write(writing, "\n".join(mint(count)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text.split("\n")


@pytest.mark.django_db
def test_AU_11_one_requests_events_keep_their_order_in_the_log(
    make_event: MakeEvent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: at)
    acts = [make_event(data={"n": number}).pk for number in range(40)]
    sequence_until_empty(now=now)
    assert list(Leaf.objects.order_by("leaf_index").values_list("event_id", flat=True)) == acts
    assert list(Event.objects.order_by("id").values_list("pk", flat=True)) == acts
