"""How long the keeper bears with Redis: with answers that come late, and where it is lost again and again. Nothing ends its thread."""

import logging
import threading
from dataclasses import dataclass, field
from datetime import datetime

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from verifier.models import Home
from verifier.services import keeper
from verifier.services.home import LEASE, LEASE_SECONDS, MARGIN_SECONDS
from verifier.services.keeper import BACK_SECONDS, CALM_SECONDS, Keeper, Keeping
from verifier.stores import probe
from verifier.stores.connection import DEADLINE_SECONDS
from verifier.stores.probe import ServersAwayError
from verifier.tests.moving import Passing, move
from verifier.tests.test_keeper import (
    FakeServers,
    at,
    in_redis,
    one,
    reasons,
    servers,
    turns,
    until_moved,
    used,
)

__all__ = ["one", "servers"]

pytestmark = pytest.mark.django_db
WAIT = LEASE_SECONDS + MARGIN_SECONDS
SLOW = DEADLINE_SECONDS + 0.001


# ---- answers that come late


def test_redis_that_answers_late_is_not_gone_to(one: Keeper, servers: FakeServers, time: Passing) -> None:
    used()
    servers.seconds = SLOW
    assert at(turns(one, servers, time, 2 * BACK_SECONDS)) == (1, "database", "")
    servers.seconds = 0
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (1, "database", "")
    servers.seconds = SLOW
    turns(one, servers, time, 0)
    servers.seconds = 0
    time.shift(1)
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (1, "database", "")
    assert at(turns(one, servers, time, 1)) == (1, "database", "redis")
    # Nor where it is late when the wait is over: nobody waits for all that is to be asked of it then.
    servers.seconds = SLOW
    assert at(turns(one, servers, time, WAIT)) == (2, "database", "")
    assert servers.marks == []
    assert reasons() == ["back", "away"]


@dataclass
class Held(FakeServers):
    """How many transactions are open, each within the one before, as it is asked anything; and as it is marked."""

    asked: set[int] = field(default_factory=set)
    marked_in: set[int] = field(default_factory=set)

    def mark(self, epoch: int) -> None:
        self.marked_in.add(len(connection.savepoint_ids))
        self.epoch = epoch

    def _answer(self) -> None:
        self.asked.add(len(connection.savepoint_ids))
        super()._answer()


def test_the_row_is_held_for_the_marks_alone(one: Keeper, time: Passing) -> None:
    """PostgreSQL ends a transaction that stands idle for long; but a marker that another's epoch might have is none to write."""
    servers = Held()
    outside = len(connection.savepoint_ids)
    turns(one, servers, time, 0)
    assert at(turns(one, servers, time, WAIT)) == (1, "redis", "")
    assert (servers.asked, servers.marked_in) == ({outside}, {outside + 1})


def test_servers_that_go_as_they_are_marked_are_not_moved_into(
    one: Keeper, servers: FakeServers, time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_epoch: int) -> None:
        raise ServersAwayError

    monkeypatch.setattr(servers, "mark", away)
    used()
    assert at(turns(one, servers, time, BACK_SECONDS)) == (1, "database", "redis")
    row = turns(one, servers, time, WAIT)
    assert (at(row), row.servers, row.back_after) == ((2, "database", ""), [], BACK_SECONDS)
    assert reasons() == ["back", "away"]


# ---- lost again and again


def test_two_processes_whose_redis_is_not_the_same_move_everybody_less_and_less(
    servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    probes = [servers, FakeServers(ids=frozenset({"three"}))]
    waits = []
    for _ in range(3):
        keepers = [Keeper(time), Keeper(time)]
        until_moved(keepers, probes, time, "database")
        waits.append(until_moved(keepers, probes, time, "redis") - WAIT)
    assert [round(each, -1) for each in waits] == [60, 120, 240]
    # At first, of one that was never lost, straight to what may have forgotten.
    assert reasons()[2:6] == ["another_server", "as_planned", "another_server", "as_planned"]


@pytest.mark.parametrize("how", ["another_server", "forgotten"])
def test_RF_5_redis_that_forgets_again_and_again_is_left_for_the_database(
    how: str, one: Keeper, servers: FakeServers, time: Passing
) -> None:
    crashes = iter(range(10))

    def crash() -> None:
        servers.epoch = 0
        if how == "another_server":
            servers.ids = frozenset({f"started {next(crashes)}"})
        time.shift(1)

    in_redis(servers, time)
    # One that was calm goes straight on, however often.
    for epoch in (2, 3):
        turns(one, servers, time, 1)
        time.shift(CALM_SECONDS)
        crash()
        assert at(turns(one, servers, time, 0)) == (epoch, "redis", "redis")
        assert at(turns(one, servers, time, WAIT)) == (epoch + 1, "redis", "")
    for epoch, wait in ((4, 60), (6, 120)):
        turns(one, servers, time, 15)
        crash()
        assert at(turns(one, servers, time, 0)) == (epoch, "redis", "database")
        # Whoever remembered is not there any more.
        one = Keeper(time)
        assert at(turns(one, servers, time, WAIT)) == (epoch + 1, "database", "")
        assert at(turns(one, servers, time, wait - 1)) == (epoch + 1, "database", "")
        assert at(turns(one, servers, time, 1)) == (epoch + 1, "database", "redis")
        assert at(turns(one, servers, time, WAIT)) == (epoch + 2, "redis", "")
    assert reasons()[2:] == [how, "as_planned"] * 2 + [how, "as_planned", "back", "as_planned"] * 2


def test_a_job_without_a_redis_url_moves_everybody_less_and_less(servers: FakeServers, time: Passing) -> None:
    in_redis(servers, time)
    waits = []
    for _ in range(3):
        keepers = [Keeper(time), Keeper(time)]
        until_moved(keepers, [None, servers], time, "database")
        waits.append(until_moved(keepers, [None, servers], time, "redis") - WAIT)
    assert [round(each, -1) for each in waits] == [30, 60, 120]


def test_one_that_knows_no_redis_where_the_way_there_ends_is_a_loss_as_well(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    move(time)
    for wait in (BACK_SECONDS, BACK_SECONDS, 2 * BACK_SECONDS):
        assert at(turns(one, servers, time, wait - 1))[1:] == ("database", "")
        assert at(turns(one, servers, time, 1))[1:] == ("database", "redis")
        assert at(turns(one, None, time, WAIT))[1:] == ("database", "")
        time.shift(1)


def test_nor_is_a_fresh_registry_moved_at_once_again_and_again(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    turns(one, servers, time, 0)
    assert at(turns(one, None, time, WAIT)) == (1, "database", "")
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (1, "database", "")
    assert at(turns(one, servers, time, 1 + WAIT)) == (1, "redis", "")


@pytest.mark.parametrize(
    ("answers", "lags", "expected"),
    [(0.05, 0, True), (0.06, 0, False), (0.1, 0.03, True), (0.1, 0.02, False)],
)
def test_what_a_busy_process_is_late_by_is_not_the_server_s(
    answers: float, lags: float, expected: bool, time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask() -> None:
        asked.append(time())
        time.shift(answers)

    monkeypatch.setattr(probe, "monotonic", time)
    monkeypatch.setattr(probe, "sleep", lambda seconds: time.shift(seconds + lags))
    assert probe._is_in_time(ask) is expected
    assert len(asked) == (1 if expected else probe.TRIES)


# ---- the thread


def test_nothing_that_nobody_foresaw_ends_the_thread_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    troubles: list[Exception | None] = [
        ValueError("one"),
        KeyError("two"),
        None,
        OperationalError(),
        ValueError("three"),
    ]
    turned = threading.Event()

    def turn(*, now: datetime) -> None:
        assert now <= timezone.now()
        if not troubles:
            turned.set()
        elif trouble := troubles.pop(0):
            raise trouble

    class Silent:
        def write_down(self, *, before: int | None = None) -> None:
            pass

    monkeypatch.setattr(keeper, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(keeper, "keep_home", turn)
    monkeypatch.setattr(keeper, "TOLD", Silent())
    monkeypatch.setattr(LEASE, "held", Home)
    keeping = Keeping()
    keeping.start()
    assert turned.wait(10)
    keeping.stop()
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [str(record.exc_info[1]) for record in said if record.exc_info] == ["one", "three"]
