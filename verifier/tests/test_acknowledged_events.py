"""Decisions that verifiers answered and Redis lost are recorded once their epoch is over."""

from datetime import datetime
from threading import Thread

import pytest
from django.db import DatabaseError, connection, transaction
from redis import Redis

from tests.waiting import until
from verifier.models import Home, StreamCursor
from verifier.services.decision_stream_drain import _held_cursors, drain
from verifier.services.replay_epochs import read_or_create_row
from verifier.stores.acknowledged_events import AcknowledgedEvents
from verifier.tests.streams import Verifier, assert_whole, logged_decisions, losses
from verifier.tests.test_shared_commits import waits_for_a_lock

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


@pytest.fixture
def told(db: None) -> AcknowledgedEvents:
    read_or_create_row()
    return AcknowledgedEvents()


def next_epoch() -> None:
    Home.objects.update(epoch=2)


def test_RF_5_acknowledged_events_lost_with_redis_are_logged_by_count(
    verifier: Verifier, redis: Redis, told: AcknowledgedEvents, now: datetime
) -> None:
    written = [verifier.write(), verifier.write()]
    drain(redis, now=now)
    told.note(1, 0, 7)
    told.note(1, 0, 5)
    told.note(1, 3, 1)
    redis.flushall()
    next_epoch()
    told.save(before=2)
    assert drain(redis, now=now) == 2
    assert logged_decisions() == sorted(written)
    assert losses() == [
        {"reason": "forgotten", "epoch": 1, "shard": 3, "first": 1, "count": 1},
        {"reason": "forgotten", "epoch": 1, "shard": 0, "first": 3, "count": 5},
    ]
    assert drain(redis, now=now) == 0
    assert_whole(now)


def test_what_another_process_was_told_later_is_added(
    redis: Redis, told: AcknowledgedEvents, now: datetime
) -> None:
    next_epoch()
    for number in (4, 6, 2):
        told.note(1, 0, number)
        told.save(before=2)
        drain(redis, now=now)
    assert [(loss["first"], loss["count"]) for loss in losses()] == [(1, 4), (5, 2)]


def test_number_heard_during_a_write_is_written_next_time(told: AcknowledgedEvents) -> None:
    told.note(1, 0, 4)
    with transaction.atomic():
        told.save()
        # Heard too late for the transaction that is about to commit.
        told.note(1, 0, 6)
    assert StreamCursor.objects.get().told == 4
    told.save()
    assert StreamCursor.objects.get().told == 6


def test_what_waits_is_not_lost(
    verifier: Verifier, redis: Redis, told: AcknowledgedEvents, now: datetime
) -> None:
    """Holds even if the next epoch's events follow it, because both share a stream."""
    written = [verifier.write(), verifier.write()]
    told.note(1, 0, 2)
    next_epoch()
    told.save(before=2)
    verifier.epoch, verifier.number = 2, 0
    written.append(verifier.write())
    drain(redis, now=now)
    drain(redis, now=now)
    assert (logged_decisions(), losses()) == (sorted(written), [])


def test_loss_is_recorded_even_if_the_next_epoch_keeps_writing(
    verifier: Verifier, redis: Redis, told: AcknowledgedEvents, now: datetime
) -> None:
    told.note(1, 0, 1)
    next_epoch()
    told.save(before=2)
    verifier.epoch = 2
    verifier.write()
    drain(redis, now=now)
    assert [loss["epoch"] for loss in losses()] == [1]


def test_of_an_epoch_that_goes_on_nothing_is_stated(
    redis: Redis, told: AcknowledgedEvents, now: datetime
) -> None:
    told.note(1, 0, 3)
    told.save(before=1)
    assert not StreamCursor.objects.exists()
    # The process ends, so the row must tell another process.
    told.save()
    assert StreamCursor.objects.get().told == 3
    assert drain(redis, now=now) == 0
    assert losses() == []


@pytest.mark.postgres
def test_drainer_and_acknowledgement_writer_do_not_deadlock() -> None:
    """One inserts missing cursors, then locks existing ones; the other must not do the reverse."""
    there = StreamCursor.objects.create(epoch=1, shard=1)
    held: list[int] = []

    def drains() -> None:
        with transaction.atomic():
            held.extend(sorted(shard for _, shard in _held_cursors({(1, 1), (1, 2)})))
        connection.close()

    drainer = Thread(target=drains)
    with transaction.atomic():
        StreamCursor.objects.create(epoch=1, shard=2)
        drainer.start()
        until(waits_for_a_lock)
        StreamCursor.objects.filter(pk=there.pk).update(told=4)
    drainer.join(20)
    assert held == [1, 2]


def test_what_could_not_be_written_down_is_still_known(
    told: AcknowledgedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.note(1, 0, 3)

    def fails(*_: object, **__: object) -> None:
        raise DatabaseError

    with monkeypatch.context() as patch:
        patch.setattr(StreamCursor.objects, "bulk_create", fails)
        with pytest.raises(DatabaseError):
            told.save()
    told.save()
    assert StreamCursor.objects.get().told == 3


def test_what_was_written_down_in_a_transaction_that_failed_is_still_known(
    told: AcknowledgedEvents,
) -> None:
    told.note(1, 0, 3)
    with transaction.atomic():
        told.save()
        transaction.set_rollback(True)
    assert not StreamCursor.objects.exists()
    told.save()
    assert StreamCursor.objects.get().told == 3


def test_a_smaller_number_of_another_process_takes_nothing_back(told: AcknowledgedEvents) -> None:
    for number in (9, 3):
        told.note(1, 0, number)
        told.save()
    assert StreamCursor.objects.get().told == 9
