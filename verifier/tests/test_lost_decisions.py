"""Decisions that never reached the log: each is recorded with its number, and delays no other."""

from datetime import datetime
from typing import Any

import pytest
from redis import Redis

from verifier.models import StreamCursor
from verifier.services.decision_stream_drain import count_waiting, drain
from verifier.tests.streams import (
    Verifier,
    assert_whole,
    decided,
    encoded,
    logged_decisions,
    losses,
    proved,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


def test_missing_numbers_are_recorded_and_later_events_taken_over(
    verifier: Verifier, redis: Redis, now: datetime
) -> None:
    verifier.number = 2
    first = verifier.write()
    drain(redis, now=now)
    verifier.number += 5
    second = verifier.write()
    third = verifier.write()
    assert drain(redis, now=now) == 3
    assert logged_decisions() == sorted([first, second, third])
    assert losses() == [
        {"reason": "missing", "epoch": 1, "shard": 0, "first": 1, "count": 2},
        {"reason": "missing", "epoch": 1, "shard": 0, "first": 4, "count": 5},
    ]
    assert_whole(now)


@pytest.mark.parametrize("base", [b"{", b'{"id": 1}', encoded({"id": "x"})])
def test_what_cannot_be_read_is_stated_and_holds_up_nothing(
    verifier: Verifier, redis: Redis, now: datetime, caplog: pytest.LogCaptureFixture, base: bytes
) -> None:
    before = verifier.write()
    verifier.write(base=base)
    after = verifier.write()
    assert drain(redis, now=now) == 3
    assert logged_decisions() == sorted([before, after])
    assert losses() == [{"reason": "unreadable", "epoch": 1, "shard": 0, "first": 2, "count": 1}]
    assert "cannot be read" in caplog.text
    assert count_waiting(redis)[0] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"o": "a"},
        {"e": "one", "n": 2, "o": "a"},
        {"e": 1, "n": "two", "o": "a"},
        {"e": 1, "n": 0, "o": "a"},
        {"e": -1, "n": 2, "o": "a"},
        {"e": 1, "n": 10**30, "o": "a"},
    ],
)
def test_an_entry_without_a_number_is_stated_and_moves_no_cursor(
    verifier: Verifier, redis: Redis, now: datetime, fields: dict[str, Any]
) -> None:
    before = verifier.write()
    verifier.put(**fields, **proved(b"{}"))
    after = verifier.write()
    assert drain(redis, now=now) == 3
    assert logged_decisions() == sorted([before, after])
    assert losses() == [{"reason": "unreadable", "epoch": 0, "shard": 0, "first": 0, "count": 1}]
    assert StreamCursor.objects.get().number == 2


def test_each_epoch_has_its_own_numbers(verifier: Verifier, redis: Redis, now: datetime) -> None:
    written = [verifier.write(), verifier.write()]
    drain(redis, now=now)
    written.append(verifier.write())
    verifier.epoch, verifier.number = 2, 0
    written += [verifier.write(), verifier.write()]
    assert drain(redis, now=now) == 3
    assert logged_decisions() == sorted(written)
    assert losses() == []
    assert set(StreamCursor.objects.values_list("epoch", "number")) == {(1, 3), (2, 2)}
    assert_whole(now)


def test_an_event_that_comes_twice_is_written_once_and_the_second_stated(
    verifier: Verifier, redis: Redis, now: datetime
) -> None:
    base = decided(verifier.place.grant)
    verifier.write(base=base)
    verifier.write("r", base=base)
    drain(redis, now=now)
    verifier.write("r", base=base)
    after = verifier.write()
    drain(redis, now=now)
    assert logged_decisions() == sorted([base["id"], after])
    assert [(loss["reason"], loss["first"]) for loss in losses()] == [
        ("repeated", 2),
        ("repeated", 3),
    ]
    assert_whole(now)


def test_numbers_given_twice_lose_nothing(verifier: Verifier, redis: Redis, now: datetime) -> None:
    """A promoted replica that lagged counts on from its own number, so numbers repeat."""
    written = [verifier.write() for _ in range(3)]
    drain(redis, now=now)
    verifier.number = 1
    written += [verifier.write(), verifier.write(), verifier.write()]
    assert drain(redis, now=now) == 3
    assert logged_decisions() == sorted(written)
    assert losses() == []
    assert_whole(now)
