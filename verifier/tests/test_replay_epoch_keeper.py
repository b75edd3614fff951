"""When an epoch of the replay cache begins: each rule of the keeper, on fake servers."""

import logging
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from django.db import OperationalError, connection
from django.utils import timezone
from pytest_django.fixtures import Settings

from audit.models import Event
from registry.models import SpentProof
from verifier.models import GrantLedger, Home
from verifier.services import replay_cache_lease, replay_epoch_keeper, replay_epochs
from verifier.services.replay_epoch_keeper import EpochKeeperThread, Keeper
from verifier.services.replay_epochs import LEASE_SECONDS, MARGIN_SECONDS, read_or_create_row
from verifier.stores.redis_probe import (
    EvictingServersError,
    OtherRegistryError,
    RedisProbe,
    ServersAwayError,
)
from verifier.tests.epoch_moves import Passing, begin, leave, move
from verifier.tests.scene import scene

pytestmark = pytest.mark.django_db
WAIT = LEASE_SECONDS + MARGIN_SECONDS


@dataclass
class FakeServers:
    """A `Probe` without servers. Counts open transactions when probed and when marked."""

    ids: frozenset[str] = frozenset({"one", "two"})
    epoch: int = 0
    trouble: ServersAwayError | None = None
    # What is wrong if they belong to another registry.
    owner: str = ""
    # Seconds by which each server's clock is ahead of the database's.
    ahead: list[float] = field(default_factory=lambda: [0.0, 0.0])
    marks: list[int] = field(default_factory=list)
    asked_in: set[int] = field(default_factory=set)
    marked_in: set[int] = field(default_factory=set)

    def run_ids(self) -> frozenset[str]:
        self._answer()
        return self.ids

    def times(self) -> list[datetime]:
        self._answer()
        _row, database_now = read_or_create_row()
        return [database_now + timedelta(seconds=each) for each in self.ahead]

    def claim(self) -> None:
        if self.owner:
            raise OtherRegistryError(self.owner)

    def mark(self, epoch: int) -> None:
        if self.trouble:
            raise self.trouble
        self.marked_in.add(len(connection.savepoint_ids))
        self.epoch = epoch
        self.marks.append(epoch)

    def is_marked(self, epoch: int) -> bool:
        self._answer()
        return self.epoch == epoch

    def _answer(self) -> None:
        self.asked_in.add(len(connection.savepoint_ids))
        if self.trouble:
            raise self.trouble


@pytest.fixture
def servers(settings: Settings) -> FakeServers:
    """Fake servers for the Redis that the settings name."""
    settings.REDIS_URL = "redis://127.0.0.1:1"
    return FakeServers()


@pytest.fixture
def one(time: Passing) -> Keeper:
    return Keeper(time)


def turns(one: Keeper, servers: FakeServers | None, time: Passing, seconds: int) -> Home:
    """Run a turn now and after each of the next `seconds`."""
    one.keep(servers, timezone.now())
    for _ in range(seconds):
        time.shift(1)
        one.keep(servers, timezone.now())
    return Home.objects.get()


def at(row: Home) -> tuple[int, str, str]:
    return row.epoch, row.kind, row.leaving_for


def reasons() -> list[str]:
    events = Event.objects.filter(kind__startswith="verifier.home").order_by("at", "pk")
    return [event.data["reason"] for event in events]


def used() -> None:
    """Spend a proof, so the registry is no longer fresh."""
    SpentProof.objects.create(digest=b"d" * 32, expires_at=timezone.now())


def in_redis(servers: FakeServers, time: Passing) -> None:
    """Put epoch 2 in Redis."""
    servers.epoch = 2
    move(time, "redis", servers.ids)
    time.shift(1)


# ---- the settings choose


def test_a_fresh_registry_begins_in_redis_once_every_lease_has_run_out(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    assert at(turns(one, servers, time, WAIT - 1)) == (1, "database", "redis")
    time.shift(1)
    row = turns(one, servers, time, 0)
    # In the first epoch no earlier proof exists, so no proof needs a nonce.
    assert at(row) == (1, "redis", "")
    assert set(row.servers) == servers.ids
    assert servers.marks == [1]
    assert reasons() == ["fresh", "as_planned"]
    # It stays there.
    assert at(turns(one, servers, time, 60)) == (1, "redis", "")


def test_a_fresh_registry_without_redis_stays_in_the_database(one: Keeper, time: Passing) -> None:
    assert at(turns(one, None, time, 60)) == (1, "database", "")
    assert reasons() == []


@pytest.mark.parametrize("trace", ["proof", "rate"])
def test_what_was_used_before_a_move_makes_a_second_epoch(
    one: Keeper, servers: FakeServers, time: Passing, trace: str
) -> None:
    if trace == "proof":
        used()
    else:
        GrantLedger.objects.create(grant=scene().grant)
    assert at(turns(one, servers, time, WAIT - 1)) == (1, "database", "redis")
    assert at(turns(one, servers, time, 1)) == (2, "redis", "")
    assert servers.marks == [2]


def test_a_process_that_contradicts_the_row_keeps_nothing(
    one: Keeper, servers: FakeServers, time: Passing, settings: Settings
) -> None:
    settings.REDIS_URL, url = "", settings.REDIS_URL
    move(time)
    settings.REDIS_URL = url
    assert at(turns(one, servers, time, 60)) == (2, "database", "")
    halt = replay_cache_lease.halt_of(read_or_create_row()[0])
    assert halt is not None
    assert "--move-to redis" in halt.reason
    assert leave("redis")
    turns(one, servers, time, WAIT)
    settings.REDIS_URL = ""
    halt = replay_cache_lease.halt_of(read_or_create_row()[0])
    assert halt is not None
    assert "--move-to database" in halt.reason
    servers.epoch = 0
    assert at(turns(one, None, time, 60)) == (3, "redis", "")


def test_servers_of_a_later_epoch_are_not_begun_in(
    one: Keeper, servers: FakeServers, time: Passing, caplog: pytest.LogCaptureFixture
) -> None:
    """Such servers belong to another registry, or to ours before its database was restored."""
    servers.trouble = ServersAwayError("Redis has the mark of a later epoch, 7: empty it.")
    assert at(turns(one, servers, time, 60)) == (1, "database", "redis")
    # Logged once.
    assert caplog.text.count("later epoch, 7") == 1
    servers.trouble = None
    assert at(turns(one, servers, time, 0)) == (1, "redis", "")


def test_no_epoch_begins_in_another_registrys_redis(
    one: Keeper, servers: FakeServers, time: Passing, caplog: pytest.LogCaptureFixture
) -> None:
    servers.owner = "Redis belongs to the registry https://other.example"
    assert at(turns(one, servers, time, 60)) == (1, "database", "redis")
    assert servers.marks == []
    assert caplog.text.count("belongs to the registry") == 1
    servers.owner = ""
    assert at(turns(one, servers, time, 0)) == (1, "redis", "")
    # In the running epoch too: a Redis that an earlier release used gets its name there.
    servers.owner = "Redis belongs to the registry https://other.example"
    turns(one, servers, time, 1)
    assert caplog.text.count("belongs to the registry") == 2
    servers.ids = frozenset({"three"})
    assert at(turns(one, servers, time, 1)) == (1, "redis", "")


# ---- Redis that may have forgotten


def test_EN_7_redis_that_does_not_answer_is_waited_for(
    one: Keeper, servers: FakeServers, time: Passing, caplog: pytest.LogCaptureFixture
) -> None:
    """Another cache does not know the spent proofs, and a database takes a tenth of the load."""
    in_redis(servers, time)
    servers.trouble = ServersAwayError("it does not answer")
    assert at(turns(one, servers, time, 600)) == (2, "redis", "")
    assert caplog.text.count("it does not answer") == 1
    # The same servers return with all their data.
    servers.trouble = None
    assert at(turns(one, servers, time, 0)) == (2, "redis", "")
    assert reasons() == ["test", "test"]


def test_RF_5_restarted_server_counts_as_another_server(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    assert at(turns(one, servers, time, 5)) == (2, "redis", "")
    # One of two is new. It has the marker, as a promoted replica would.
    servers.ids = frozenset({"one", "three"})
    row = turns(one, servers, time, 0)
    assert at(row) == (3, "redis", "")
    assert set(row.servers) == {"one", "three"}
    assert servers.marks == [3]
    assert reasons()[2:] == ["another_server"]
    # This process continues at once.
    assert replay_cache_lease.LEASE.last_epoch().number == 3


def test_a_server_that_only_went_is_none_that_may_have_forgotten(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    servers.ids = frozenset({"one"})
    assert at(turns(one, servers, time, 5)) == (2, "redis", "")


def test_RF_5_a_marker_that_is_gone_says_that_something_was_forgotten(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    servers.epoch = 0
    assert at(turns(one, servers, time, 0)) == (3, "redis", "")
    assert reasons()[2:] == ["forgotten"]


@pytest.mark.parametrize("ahead", [[6.0, 0.0], [0.0, -6.0]])
def test_RF_5_a_clock_of_redis_that_is_wrong_ends_its_epoch(
    ahead: list[float], one: Keeper, servers: FakeServers, time: Passing
) -> None:
    """A fast clock has expired spent proofs too early, even if it is right again later."""
    in_redis(servers, time)
    servers.ahead = [4.0, -4.0]
    assert at(turns(one, servers, time, 5)) == (2, "redis", "")
    servers.ahead = ahead
    assert at(turns(one, servers, time, 60)) == (2, "redis", "redis")
    servers.ahead = [0.0, 0.0]
    assert at(turns(one, servers, time, 0)) == (3, "redis", "")
    assert reasons()[2:] == ["clock", "as_planned"]


def test_a_clock_of_this_host_says_nothing_of_redis(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    time.set_ahead(60)
    assert at(turns(one, servers, time, 5)) == (2, "redis", "")


def test_RF_5_servers_that_may_evict_end_their_epoch(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    servers.trouble = EvictingServersError("it may evict")
    assert at(turns(one, servers, time, 60)) == (2, "redis", "redis")
    servers.trouble = None
    assert at(turns(one, servers, time, 0)) == (3, "redis", "")
    assert reasons()[2:] == ["evicting", "as_planned"]


def test_servers_that_go_as_they_are_marked_are_marked_later(
    one: Keeper, servers: FakeServers, time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_redis(servers, time)
    servers.ids = frozenset({"three"})
    with monkeypatch.context() as patch:

        def away(_epoch: int) -> None:
            raise ServersAwayError("away")

        patch.setattr(servers, "mark", away)
        assert at(turns(one, servers, time, 5)) == (2, "redis", "")
    assert at(turns(one, servers, time, 0)) == (3, "redis", "")


# ---- together


def test_a_keeper_waits_from_when_it_saw_the_cache_being_left(one: Keeper, time: Passing) -> None:
    """Others may see the row later than the time it states, because its commit may take long."""
    used()
    assert leave()
    time.shift(4)
    assert at(turns(one, None, time, WAIT - 1)) == (1, "database", "database")
    assert at(turns(one, None, time, 1)) == (2, "database", "")
    assert reasons() == ["test", "as_planned"]


def test_a_keeper_waits_anew_for_each_leaving(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    """Also for one of the same epoch: an unused epoch 1 begins again, and may then be left."""
    assert at(turns(one, servers, time, WAIT)) == (1, "redis", "")
    time.shift(30)
    assert leave("redis")
    assert at(turns(one, servers, time, WAIT // 2)) == (1, "redis", "redis")
    time.shift(1)
    Home.objects.update(leaving_at=timezone.now())
    assert at(turns(one, servers, time, WAIT - 1)) == (1, "redis", "redis")
    assert at(turns(one, servers, time, 1)) == (2, "redis", "")


def test_RF_5_a_database_that_was_hours_ahead_delays_no_epoch(one: Keeper, time: Passing) -> None:
    """What it wrote as the time of leaving is in the future once its clock is right."""
    used()
    assert leave()
    Home.objects.update(leaving_at=timezone.now() + timedelta(hours=3))
    assert at(turns(one, None, time, WAIT - 1)) == (1, "database", "database")
    row = turns(one, None, time, 1)
    assert at(row) == (2, "database", "")
    assert row.began_at == timezone.now()


def test_the_row_is_held_for_the_marks_alone(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    """Otherwise PostgreSQL ends the transaction as idle while slow servers are probed."""
    outside = len(connection.savepoint_ids)
    assert at(turns(one, servers, time, WAIT)) == (1, "redis", "")
    assert (servers.asked_in, servers.marked_in) == ({outside}, {outside + 1})


def test_of_several_keepers_one_makes_each_step(servers: FakeServers, time: Passing) -> None:
    keepers = [Keeper(time) for _ in range(3)]
    for number in range(20):
        if number == 10:
            servers.ids = frozenset({"three"})
        for each in keepers:
            each.keep(servers, timezone.now())
        time.shift(1)
    assert at(Home.objects.get()) == (2, "redis", "")
    assert reasons() == ["fresh", "as_planned", "another_server"]
    # One marker each: a second one, written later, would vouch for servers that forgot proofs.
    assert servers.marks == [1, 2]


@pytest.mark.parametrize("how", ["planned", "forgotten"])
def test_a_keeper_that_comes_late_writes_no_marker(
    how: str, one: Keeper, servers: FakeServers, time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_redis(servers, time)
    if how == "planned":
        assert leave("redis")
        turns(one, servers, time, WAIT - 1)
        time.shift(1)
    servers.epoch = 0
    # Another process begins the epoch between this keeper's read and its step.
    seen = read_or_create_row()
    if how == "planned":
        assert begin(servers.ids)
    else:
        assert at(turns(Keeper(time), servers, time, 0)) == (3, "redis", "")
        servers.epoch = 0
        servers.marks.clear()
    monkeypatch.setattr(replay_epochs, "read_or_create_row", lambda: seen)
    one.keep(servers, timezone.now())
    assert servers.marks == []
    assert at(Home.objects.get()) == (3, "redis", "")


# ---- the process


def test_a_turn_of_this_process_asks_what_redis_url_names(
    time: Passing, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[object] = []
    monkeypatch.setattr(
        replay_epoch_keeper.KEEPER, "keep", lambda probe, _now: turned.append(probe)
    )
    for settings.REDIS_URL in ("", "redis://127.0.0.1:1"):
        replay_epoch_keeper.keep_home(now=timezone.now())
    assert turned[0] is None
    assert isinstance(turned[1], RedisProbe)


def test_no_unforeseen_error_ends_the_thread_and_it_is_logged_once(
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
        def save(self, *, before: int | None = None) -> None:
            pass

    monkeypatch.setattr(replay_epoch_keeper, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(replay_epoch_keeper, "keep_home", turn)
    monkeypatch.setattr(replay_epoch_keeper, "ACKNOWLEDGED", Silent())
    monkeypatch.setattr(replay_cache_lease.LEASE, "last_epoch", lambda: SimpleNamespace(number=1))
    keeping = EpochKeeperThread()
    keeping.start()
    assert turned.wait(10)
    keeping.stop()
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [str(record.exc_info[1]) for record in said if record.exc_info] == ["one", "three"]
