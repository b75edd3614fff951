"""What the keeper does about real servers that may throw keys away, answer late, or are gone for good; and what verify answers then."""

from collections.abc import Iterator
from datetime import datetime
from time import monotonic, sleep
from typing import Any, cast

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from audit.models import Event
from tests import redis_servers
from tests.fault_proxy import fault_proxy
from tests.redis_servers import Server
from verifier.models import Home
from verifier.services.home import LEASE_SECONDS, MARGIN_SECONDS
from verifier.services.keeper import AWAY_SECONDS, BACK_SECONDS, Keeper
from verifier.stores import light, probe
from verifier.stores.connection import Servers
from verifier.stores.probe import RedisProbe
from verifier.stores.sync_connection import SyncServers
from verifier.tests.moving import Passing, unavailable, with_nonce
from verifier.tests.scene import LOOK, refused, scene

pytestmark = [pytest.mark.redis, pytest.mark.django_db]
WAIT = LEASE_SECONDS + MARGIN_SECONDS
POLICY = "maxmemory-policy must be noeviction: it may forget spent proofs otherwise"


class Along(RedisProbe):
    """The servers' clocks come along where the test's time goes."""

    def times(self) -> list[datetime]:
        return [timezone.now() for _ in super().times()]


@pytest.fixture(params=redis_servers.PROGRAMS)
def server(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """One that has all the time it needs, and whose clock is nobody's business here."""
    for each in (Servers, SyncServers):
        monkeypatch.setitem(cast("dict[str, Any]", each.evaluate.__kwdefaults__), "deadline", 10.0)
    monkeypatch.setattr(light, "APART_US", 10**15)
    monkeypatch.setattr(probe, "DEADLINE_SECONDS", 10.0)
    with redis_servers.server(request.param) as running:
        settings.REDIS_URL = running.url
        yield running


@pytest.fixture
def turn(server: Server, time: Passing) -> "Turn":
    return Turn(time)


class Turn:
    """Turns of one keeper, a second apart: how long, and where the home is then."""

    def __init__(self, time: Passing) -> None:
        self.time, self.keeper, self.probe = time, Keeper(time), Along()

    def __call__(self, seconds: int = 0) -> tuple[int, str, str]:
        for _ in range(seconds + 1):
            self.time.shift(1)
            self.keeper.keep(self.probe, timezone.now())
        row = Home.objects.get()
        return row.epoch, row.kind, row.leaving_for


def policy(server: Server, name: str) -> None:
    server.client().config_set("maxmemory-policy", name)


def reasons() -> list[str]:
    events = Event.objects.filter(kind__startswith="verifier.home").order_by("at", "pk")
    return [event.data["reason"] for event in events]


def test_RF_5_servers_that_may_evict_from_the_start_are_not_gone_to(
    server: Server, turn: Turn, caplog: pytest.LogCaptureFixture
) -> None:
    """What an operator forgot to set costs him Redis, and not every decision."""
    policy(server, "volatile-lru")
    place = scene()
    assert turn(BACK_SECONDS + WAIT) == (1, "database", "")
    assert POLICY in caplog.text
    assert place.ask(LOOK)["valid"]
    policy(server, "noeviction")
    # Something was used by now: it goes after half a minute, and comes to be the second epoch.
    assert turn(BACK_SECONDS) == (1, "database", "redis")
    assert turn(WAIT) == (2, "redis", "")
    assert place.ask(**with_nonce(place))["valid"]


def test_RF_5_servers_that_may_evict_from_now_on_are_left_at_once_and_gone_back_to_later(
    server: Server, turn: Turn, caplog: pytest.LogCaptureFixture
) -> None:
    place = scene()
    turn()
    assert turn(WAIT) == (1, "redis", "")
    assert place.ask(LOOK)["valid"]
    policy(server, "allkeys-lru")
    assert turn() == (1, "redis", "database")
    assert POLICY in caplog.text
    assert turn(WAIT) == (2, "database", "")
    assert place.ask(**with_nonce(place))["valid"]
    assert turn(BACK_SECONDS) == (2, "database", "")
    policy(server, "noeviction")
    assert turn(BACK_SECONDS - 1) == (2, "database", "")
    assert turn() == (2, "database", "redis")
    # And once more on the way there.
    policy(server, "volatile-ttl")
    assert turn(WAIT) == (3, "database", "")
    policy(server, "noeviction")
    assert turn(2 * BACK_SECONDS) == (3, "database", "redis")
    assert turn(WAIT) == (4, "redis", "")
    assert place.ask(**with_nonce(place, 4))["valid"]
    assert reasons()[2:] == ["evicting", "as_planned", "back", "evicting", "back", "as_planned"]


def test_OP_6_redis_lost_for_good_costs_no_count_and_an_empty_one_in_its_place_is_moved_into(
    server: Server, turn: Turn
) -> None:
    """Nothing is restored: what must be exact was never there, and what was there belongs to an epoch that is over."""
    place = scene(max_uses=5)
    turn()
    assert turn(WAIT) == (1, "redis", "")
    assert place.ask(LOOK)["valid"]
    spent = place.body(LOOK)
    assert place.ask(**spent)["valid"]
    server.kill()
    unavailable(place, place.body(LOOK))
    assert turn(AWAY_SECONDS) == (1, "redis", "database")
    assert turn(WAIT) == (2, "database", "")
    assert refused(place, spent)["error"] == "use_dpop_nonce"
    assert place.ask(**with_nonce(place))["valid"]
    # It never comes back, and nobody waits for it.
    assert turn(10 * BACK_SECONDS) == (2, "database", "")
    assert place.ask(**with_nonce(place))["valid"]
    # Another one, empty, at its address.
    server.start()
    assert turn(BACK_SECONDS) == (2, "database", "redis")
    assert turn(WAIT) == (3, "redis", "")
    last = place.ask(**with_nonce(place, 3))
    assert (last["valid"], last["limits"]["uses_remaining"]) == (True, 0)
    assert refused(place, with_nonce(place, 3))["reason"] == "max_uses"


def test_EN_7_servers_that_answer_late_are_left_and_not_gone_to(
    server: Server, turn: Turn, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each decision would miss them. They answer everything a keeper asks, and long before it calls them away."""
    monkeypatch.setattr(probe, "DEADLINE_SECONDS", 0.15)
    with fault_proxy(server.port) as proxy:
        settings.REDIS_URL = f"redis://127.0.0.1:{proxy.port}"
        turn()
        assert turn(WAIT) == (1, "redis", "")
        proxy.delay_seconds, proxy.mode = 0.1, "delay"
        assert turn(AWAY_SECONDS - 1) == (1, "redis", "")
        assert turn() == (1, "redis", "database")
        assert turn(WAIT) == (2, "database", "")
        for _ in range(2):
            turn.time.shift(BACK_SECONDS)
            assert turn() == (2, "database", "")
        proxy.mode = "pass"
        turn()
        turn.time.shift(BACK_SECONDS)
        assert turn() == (2, "database", "redis")
        # Nor are they begun in: what is asked of them then would take long.
        proxy.mode = "delay"
        assert turn(WAIT) == (3, "database", "")
    assert reasons()[2:] == ["away", "as_planned", "back", "away"]


def ports(node: Server) -> set[int]:
    """Where the primaries are, by what a node says."""
    return {primary[1] for _first, _last, primary, *_ in node.client().execute_command("CLUSTER SLOTS")}


def test_EN_7_one_server_of_a_cluster_that_answers_late_is_enough(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "DEADLINE_SECONDS", 0.5)
    with redis_servers.cluster() as cluster, fault_proxy(cluster.nodes[-1].port) as proxy:
        # From now on all name the proxy in its place.
        cluster.nodes[-1].client().config_set("cluster-announce-port", proxy.port)
        until = monotonic() + 20
        while not all(proxy.port in ports(node) for node in cluster.nodes):
            assert monotonic() < until
            sleep(0.05)
        settings.REDIS_URL = ",".join([cluster.nodes[0].url, f"127.0.0.1:{cluster.nodes[1].port}"])
        asked = RedisProbe()
        assert asked.in_time()
        proxy.delay_seconds, proxy.mode = 0.3, "delay"
        assert not asked.in_time()
        proxy.mode = "pass"
        assert asked.in_time()


def test_how_long_connecting_takes_is_not_how_long_an_answer_takes(
    server: Server, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "DEADLINE_SECONDS", 0.5)
    with fault_proxy(server.port) as proxy:
        settings.REDIS_URL = f"redis://127.0.0.1:{proxy.port}"
        proxy.delay_seconds, proxy.mode = 0.1, "delay"
        began = monotonic()
        assert RedisProbe().in_time()
        assert monotonic() - began > 0.5
