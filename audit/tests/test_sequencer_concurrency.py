"""Concurrent sequencers and recorders, each on its own connection: one chain, no gap, no fork."""

import threading
from collections.abc import Callable
from datetime import datetime

import pytest
from django.db import connection, transaction

from audit.log.sequencer import sequence_pending, sequence_until_empty
from audit.models import Event, Head, Leaf, QueueEntry
from audit.services import record_many
from audit.tests.conftest import MakeEvent
from audit.tests.test_record_many import entry
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db(transaction=True)


def _together(*acts: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 — handed to the test below
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[act]) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_AU_11_of_two_sequencers_at_once_one_numbers_each_event(
    make_event: MakeEvent, now: datetime
) -> None:
    for _ in range(40):
        make_event()
    numbered: list[int] = []
    gate = threading.Barrier(4)

    def sequence() -> None:
        gate.wait()
        numbered.extend(sequence_pending(now=now, batch=5) for _ in range(12))

    _together(*[sequence] * 4)
    sequence_until_empty(now=now)
    assert sum(numbered) <= 40
    assert Leaf.objects.count() == 40
    assert verify_log().ok


def test_concurrently_recorded_events_are_numbered_in_one_sequence(
    make_event: MakeEvent, now: datetime
) -> None:
    def record() -> None:
        for _ in range(15):
            make_event()

    def sequence() -> None:
        while Event.objects.count() < 30:
            sequence_pending(now=now)

    _together(record, record, sequence, sequence)
    sequence_until_empty(now=now)
    assert not QueueEntry.objects.exists()
    verdict = verify_log()
    assert (verdict.ok, verdict.tree_size) == (True, 30)


def test_AU_11_immediate_and_queued_numbering_make_one_sequence(
    make_event: MakeEvent, now: datetime
) -> None:
    make_event()
    sequence_until_empty(now=now)

    def record() -> None:
        for _ in range(15):
            make_event()

    def many() -> None:
        for _ in range(15):
            with transaction.atomic():
                record_many([entry(), entry()], now=now)

    def sequence() -> None:
        while Event.objects.count() < 76:
            sequence_pending(now=now, batch=3)

    _together(record, many, many, sequence)
    sequence_until_empty(now=now)
    assert not QueueEntry.objects.exists()
    verdict = verify_log()
    assert (verdict.ok, verdict.tree_size) == (True, 76)


@pytest.mark.postgres
def test_writer_that_finds_the_head_locked_does_not_wait(
    make_event: MakeEvent, now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    make_event()
    sequence_until_empty(now=now)

    def write() -> None:
        with transaction.atomic():
            record_many([entry()], now=now)

    with transaction.atomic():
        Head.objects.select_for_update().get()
        _together(write)
        assert QueueEntry.objects.count() == 1
    # Finding the lock held is not logged as a failure.
    assert not caplog.records
    assert sequence_until_empty(now=now) == 1
    assert verify_log().ok
