"""The epoch keeper on real servers that may evict keys or are lost, and verify's answers then."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from audit.models import Event
from tests import endpoint_modes, redis_servers
from tests.redis_servers import Server
from verifier.models import Home
from verifier.services.replay_epoch_keeper import Keeper
from verifier.services.replay_epochs import LEASE_SECONDS, MARGIN_SECONDS
from verifier.stores import redis_decisions
from verifier.stores.redis_probe import RedisProbe
from verifier.stores.redis_servers import Servers
from verifier.stores.redis_servers_for_threads import SyncServers
from verifier.tests.epoch_moves import Passing, unavailable, with_nonce
from verifier.tests.scene import LOOK, Scene, assert_refused, scene

pytestmark = [pytest.mark.redis, pytest.mark.django_db]
WAIT = LEASE_SECONDS + MARGIN_SECONDS
POLICY = "maxmemory-policy must be noeviction: it may forget spent proofs otherwise"


class Along(RedisProbe):
    """The servers' clocks follow the test's clock."""

    def times(self) -> list[datetime]:
        return [timezone.now() for _ in super().times()]


@pytest.fixture(params=redis_servers.PROGRAMS)
def server(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server with ample deadlines, whose clock is not checked."""
    for each in (Servers, SyncServers):
        monkeypatch.setitem(cast("dict[str, Any]", each.evaluate.__kwdefaults__), "deadline", 10.0)
    monkeypatch.setattr(redis_decisions, "APART_US", 10**15)
    with redis_servers.server(request.param) as running:
        settings.REDIS_URL = running.registry_url
        yield running


@pytest.fixture
def turn(server: Server, time: Passing) -> "Turn":
    return Turn(time)


class Turn:
    """Run a keeper for some turns, a second apart. Returns epoch, cache, and its target."""

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


def told_no(place: Scene, body: dict[str, Any]) -> dict[str, Any]:
    """`assert_refused`, with the event drained from Redis."""
    endpoint_modes.drain_redis_to_log()
    return assert_refused(replace(place, client=endpoint_modes.DrainingClient()), body)


def reasons() -> list[str]:
    events = Event.objects.filter(kind__startswith="verifier.home").order_by("at", "pk")
    return [event.data["reason"] for event in events]


def test_RF_5_servers_that_may_evict_from_the_start_are_not_begun_in(
    server: Server, turn: Turn, caplog: pytest.LogCaptureFixture
) -> None:
    policy(server, "volatile-lru")
    place = scene()
    assert turn(WAIT + 1) == (1, "database", "redis")
    assert POLICY in caplog.text
    unavailable(place, place.body(LOOK))
    policy(server, "noeviction")
    assert turn() == (1, "redis", "")
    assert place.ask(LOOK)["valid"]


def test_RF_5_servers_set_to_evict_stop_decisions_until_corrected(
    server: Server, turn: Turn, caplog: pytest.LogCaptureFixture
) -> None:
    place = scene()
    assert turn(WAIT + 1) == (1, "redis", "")
    spent = place.body(LOOK)
    assert place.ask(**spent)["valid"]
    policy(server, "allkeys-lru")
    assert turn() == (1, "redis", "redis")
    assert POLICY in caplog.text
    unavailable(place, place.body(LOOK))
    policy(server, "noeviction")
    assert turn(WAIT) == (2, "redis", "")
    assert told_no(place, spent)["error"] == "use_dpop_nonce"
    assert place.ask(**with_nonce(place))["valid"]
    assert reasons() == ["fresh", "as_planned", "evicting", "as_planned"]


def test_OP_6_losing_redis_costs_no_count_and_an_empty_one_replaces_it(
    server: Server, turn: Turn
) -> None:
    """Nothing is restored: no exact counter was in Redis, and the rest is of a past epoch."""
    place = scene(max_uses=4)
    assert turn(WAIT + 1) == (1, "redis", "")
    assert place.ask(LOOK)["valid"]
    spent = place.body(LOOK)
    assert place.ask(**spent)["valid"]
    server.kill()
    unavailable(place, place.body(LOOK))
    assert turn(30) == (1, "redis", "")
    unavailable(place, place.body(LOOK))
    # A new, empty server at the same address.
    server.start()
    assert turn() == (2, "redis", "")
    assert told_no(place, spent)["error"] == "use_dpop_nonce"
    assert place.ask(**with_nonce(place))["valid"]
    last = place.ask(**with_nonce(place))
    assert (last["valid"], last["limits"]["uses_remaining"]) == (True, 0)
    assert told_no(place, with_nonce(place))["reason"] == "max_uses"
