"""When the home moves: each rule of the keeper, with servers that are told how to fail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from audit.models import Event
from registry.models import SpentProof
from verifier.models import GrantLedger, Home
from verifier.services import keeper
from verifier.services.home import LEASE_SECONDS, MARGIN_SECONDS, look
from verifier.services.keeper import AWAY_SECONDS, BACK_SECONDS, CALM_SECONDS, Keeper
from verifier.stores.connection import DEADLINE_SECONDS
from verifier.stores.probe import RedisProbe, ServersAwayError
from verifier.tests.moving import Passing, begin, leave, move
from verifier.tests.scene import scene

pytestmark = pytest.mark.django_db
WAIT = LEASE_SECONDS + MARGIN_SECONDS


@dataclass
class FakeServers:
    """A `Probe` of no server at all."""

    ids: frozenset[str] = frozenset({"one", "two"})
    epoch: int = 0
    are_away: bool = False
    # By how many seconds each one's clock is ahead of the database's.
    ahead: list[float] = field(default_factory=lambda: [0.0, 0.0])
    marks: list[int] = field(default_factory=list)
    # How long each takes for a call.
    seconds: float = 0.0
    # How long an answer that does not come is waited for.
    hang: Callable[[], None] = lambda: None

    def run_ids(self) -> frozenset[str]:
        self._answer()
        return self.ids

    def in_time(self) -> bool:
        self._answer()
        return self.seconds <= DEADLINE_SECONDS

    def times(self) -> list[datetime]:
        self._answer()
        _row, database_now = look()
        return [database_now + timedelta(seconds=each) for each in self.ahead]

    def mark(self, epoch: int) -> None:
        self._answer()
        self.epoch = epoch
        self.marks.append(epoch)

    def marked(self, epoch: int) -> bool:
        self._answer()
        return self.epoch == epoch

    def marked_later(self, epoch: int) -> bool:
        self._answer()
        return self.epoch > epoch

    def _answer(self) -> None:
        if self.are_away:
            self.hang()
            raise ServersAwayError


@pytest.fixture
def servers() -> FakeServers:
    return FakeServers()


@pytest.fixture
def one(time: Passing) -> Keeper:
    return Keeper(time)


def turns(one: Keeper, servers: FakeServers | None, time: Passing, seconds: int) -> Home:
    """A turn now and after each of the next `seconds`."""
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
    """Some proof was spent: not a fresh registry."""
    SpentProof.objects.create(digest=b"d" * 32, expires_at=timezone.now())


def in_redis(servers: FakeServers, time: Passing) -> None:
    """Epoch 2 is in Redis."""
    servers.epoch = 2
    move(time, "redis", servers.ids)
    time.shift(1)


# ---- to Redis


def test_a_fresh_registry_goes_to_redis_at_once(one: Keeper, servers: FakeServers, time: Passing) -> None:
    assert at(turns(one, servers, time, 0)) == (1, "database", "redis")
    assert at(turns(one, servers, time, WAIT - 1)) == (1, "database", "redis")
    row = turns(one, servers, time, 1)
    # Still the first epoch: nothing was used that could come back, so no proof needs a nonce.
    assert at(row) == (1, "redis", "")
    assert set(row.servers) == servers.ids
    assert servers.marks == [1]
    assert reasons() == ["fresh", "as_planned"]
    # And there it stays.
    assert at(turns(one, servers, time, 60)) == (1, "redis", "")


@pytest.mark.parametrize("trace", ["proof", "rate"])
def test_what_was_used_before_the_first_move_ends_makes_a_second_epoch(
    one: Keeper, servers: FakeServers, time: Passing, trace: str
) -> None:
    turns(one, servers, time, 0)
    if trace == "proof":
        used()
    else:
        GrantLedger.objects.create(grant=scene().grant)
    assert at(turns(one, servers, time, WAIT)) == (2, "redis", "")
    assert servers.marks == [2]


def test_servers_of_a_later_epoch_are_not_gone_to(one: Keeper, servers: FakeServers, time: Passing) -> None:
    """Another registry's, or ours from before its database was restored: each attempt would stop everybody."""
    servers.epoch = 7
    assert at(turns(one, servers, time, 60)) == (1, "database", "")
    servers.epoch = 0
    assert at(turns(one, servers, time, WAIT + 1)) == (1, "redis", "")


def test_one_that_was_used_goes_once_redis_has_answered_for_half_a_minute(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    used()
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (1, "database", "")
    servers.are_away = True
    turns(one, servers, time, 1)
    servers.are_away = False
    time.shift(1)
    # From here it counts anew.
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (1, "database", "")
    assert at(turns(one, servers, time, 1)) == (1, "database", "redis")
    assert at(turns(one, servers, time, WAIT)) == (2, "redis", "")
    assert reasons() == ["back", "as_planned"]


def test_after_a_later_epoch_in_the_database_it_waits_as_well(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    move(time)
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (2, "database", "")
    # As an operator does: what was answered before this epoch does not count for it.
    move(time)
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (3, "database", "")
    assert at(turns(one, servers, time, 1)) == (3, "database", "redis")


def test_redis_that_does_not_answer_is_not_gone_to(one: Keeper, servers: FakeServers, time: Passing) -> None:
    servers.are_away = True
    assert at(turns(one, servers, time, 60)) == (1, "database", "")


def test_redis_that_does_not_answer_when_the_wait_is_over_is_not_waited_for(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    turns(one, servers, time, WAIT - 1)
    servers.are_away = True
    row = turns(one, servers, time, 1)
    assert (at(row), row.servers) == ((1, "database", ""), [])
    assert reasons() == ["fresh", "away"]


# ---- away from Redis


@pytest.mark.parametrize(
    ("what", "trouble", "well"),
    [("are_away", True, False), ("seconds", DEADLINE_SECONDS + 0.001, DEADLINE_SECONDS)],
)
def test_EN_7_two_seconds_without_an_answer_are_enough(
    one: Keeper,
    servers: FakeServers,
    time: Passing,
    caplog: pytest.LogCaptureFixture,
    what: str,
    trouble: object,
    well: object,
) -> None:
    in_redis(servers, time)
    setattr(servers, what, trouble)
    assert at(turns(one, servers, time, AWAY_SECONDS - 1)) == (2, "redis", "")
    # One that comes in time is enough.
    setattr(servers, what, well)
    turns(one, servers, time, 1)
    setattr(servers, what, trouble)
    time.shift(1)
    assert at(turns(one, servers, time, AWAY_SECONDS - 1)) == (2, "redis", "")
    assert at(turns(one, servers, time, 1)) == (2, "redis", "database")
    assert ("0.05 s" in caplog.text) is (what == "seconds")
    assert at(turns(one, servers, time, WAIT)) == (3, "database", "")
    assert reasons() == ["test", "test", "away", "as_planned"]


def test_a_server_that_hangs_is_away_for_as_long_as_it_was_waited_for(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    turns(one, servers, time, 1)
    servers.are_away, servers.hang = True, lambda: time.shift(AWAY_SECONDS)
    assert at(turns(one, servers, time, 0)) == (2, "redis", "database")


def test_RF_5_a_server_that_was_started_anew_is_another(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    assert at(turns(one, servers, time, 5)) == (2, "redis", "")
    # One of two; and it has the marker, as a replica that took over would.
    servers.ids = frozenset({"one", "three"})
    assert at(turns(one, servers, time, 0)) == (2, "redis", "redis")
    row = turns(one, servers, time, WAIT)
    assert at(row) == (3, "redis", "")
    assert set(row.servers) == {"one", "three"}
    assert servers.marks == [3]
    assert reasons()[-2:] == ["another_server", "as_planned"]


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
    assert at(turns(one, servers, time, 0)) == (2, "redis", "redis")
    assert at(turns(one, servers, time, WAIT)) == (3, "redis", "")
    assert reasons()[-2:] == ["forgotten", "as_planned"]


def test_without_a_redis_url_the_home_is_the_database(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    assert at(turns(one, None, time, 0)) == (2, "redis", "database")
    assert at(turns(one, None, time, WAIT)) == (3, "database", "")
    assert at(turns(one, None, time, 60)) == (3, "database", "")
    # Left for Redis, and nobody here knows where that is.
    assert leave("redis")
    assert at(turns(one, None, time, WAIT)) == (4, "database", "")
    assert reasons()[2:] == ["not_configured", "as_planned", "test", "not_configured"]


@pytest.mark.parametrize("ahead", [[6.0, 0.0], [0.0, -6.0]])
def test_RF_5_a_clock_of_redis_that_is_wrong_ends_its_epoch_and_is_not_gone_back_to(
    ahead: list[float], one: Keeper, servers: FakeServers, time: Passing
) -> None:
    """By a clock that ran ahead it has forgotten what was spent, also once it is right again."""
    in_redis(servers, time)
    servers.ahead = [4.0, -4.0]
    assert at(turns(one, servers, time, 5)) == (2, "redis", "")
    servers.ahead = ahead
    assert at(turns(one, servers, time, 0)) == (2, "redis", "database")
    servers.ahead = [0.0, 0.0]
    assert at(turns(one, servers, time, WAIT)) == (3, "database", "")
    servers.ahead = ahead
    assert at(turns(one, servers, time, BACK_SECONDS + 5)) == (3, "database", "")
    servers.ahead = [0.0, 0.0]
    time.shift(1)
    assert at(turns(one, servers, time, BACK_SECONDS - 1)) == (3, "database", "")
    assert at(turns(one, servers, time, 1)) == (3, "database", "redis")
    servers.ahead = ahead
    assert at(turns(one, servers, time, WAIT)) == (4, "database", "")
    assert reasons()[2:] == ["clock", "as_planned", "back", "clock"]


def test_a_clock_of_this_host_says_nothing_of_redis(one: Keeper, servers: FakeServers, time: Passing) -> None:
    in_redis(servers, time)
    time.set_ahead(60)
    assert at(turns(one, servers, time, 5)) == (2, "redis", "")


def until_moved(keepers: list[Keeper], probes: Sequence[FakeServers | None], time: Passing, kind: str) -> int:
    """After how many seconds of turns of all of them the home is there."""
    for seconds in range(2000):
        row = Home.objects.get()
        if (row.kind, row.leaving_for) == (kind, ""):
            return seconds
        for each, probe in zip(keepers, probes, strict=True):
            each.keep(probe, timezone.now())
        time.shift(1)
    raise AssertionError("it never moved")


def test_one_that_alone_cannot_reach_redis_moves_everybody_less_and_less(
    servers: FakeServers, time: Passing
) -> None:
    in_redis(servers, time)
    lonely = FakeServers(are_away=True)
    waits = []
    for _ in range(7):
        # Whoever remembered the last time is not there any more.
        keepers = [Keeper(time), Keeper(time)]
        until_moved(keepers, [servers, lonely], time, "database")
        waits.append(until_moved(keepers, [servers, lonely], time, "redis") - WAIT)
    assert [round(each, -1) for each in waits] == [30, 60, 120, 240, 480, 600, 600]
    # Nobody was lost for long enough: the next time is as the first.
    turns(keepers[0], servers, time, CALM_SECONDS)
    until_moved(keepers, [servers, lonely], time, "database")
    assert round(until_moved(keepers, [servers, lonely], time, "redis") - WAIT, -1) == 30


def test_redis_that_is_lost_on_the_way_there_is_waited_for_longer_as_well(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    move(time)
    for wait in (BACK_SECONDS, BACK_SECONDS, 2 * BACK_SECONDS):
        assert at(turns(one, servers, time, wait))[1:] == ("database", "redis")
        servers.are_away = True
        assert at(turns(one, servers, time, WAIT))[1:] == ("database", "")
        servers.are_away = False
        time.shift(1)
    # Somebody saw to it.
    move(time)
    assert at(turns(one, servers, time, BACK_SECONDS))[1:] == ("database", "redis")


# ---- together


def test_a_keeper_waits_from_when_it_saw_the_home_being_left(
    one: Keeper, servers: FakeServers, time: Passing
) -> None:
    """The row may say an earlier time than others could read it: the commit may have taken long."""
    assert leave()
    time.shift(4)
    assert at(turns(one, servers, time, WAIT - 1)) == (1, "database", "database")
    assert at(turns(one, servers, time, 1)) == (1, "database", "")
    assert reasons() == ["test", "as_planned"]


def test_of_several_keepers_one_makes_each_step(servers: FakeServers, time: Passing) -> None:
    keepers = [Keeper(time) for _ in range(3)]
    for _ in range(20):
        for each in keepers:
            each.keep(servers, timezone.now())
        time.shift(1)
    assert at(Home.objects.get()) == (1, "redis", "")
    assert reasons() == ["fresh", "as_planned"]
    # One marker: a second, written later, would call servers whole that had forgotten.
    assert servers.marks == [1]


def test_a_keeper_that_comes_late_writes_no_marker(
    one: Keeper, servers: FakeServers, time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns(one, servers, time, WAIT - 1)
    time.shift(1)
    # Between its look and its step another began the epoch.
    seen = look()
    assert begin("redis", servers.ids)
    monkeypatch.setattr(keeper, "look", lambda: seen)
    one.keep(servers, timezone.now())
    assert servers.marks == []
    assert at(Home.objects.get()) == (2, "redis", "")


def test_a_turn_of_this_process_asks_what_redis_url_names(
    time: Passing, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[object] = []
    monkeypatch.setattr(keeper.KEEPER, "keep", lambda probe, _now: turned.append(probe))
    for settings.REDIS_URL in ("", "redis://127.0.0.1:1"):
        keeper.keep_home(now=timezone.now())
    assert turned[0] is None
    assert isinstance(turned[1], RedisProbe)
