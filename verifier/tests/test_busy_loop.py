"""An event loop busy with signatures must not make Redis look unavailable."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import redis_servers
from tests.fault_proxy import fault_proxy
from verifier.stores import redis_client
from verifier.stores.lua_scripts import Code
from verifier.stores.redis_client import GRACE_SECONDS, Node, RedisAwayError, RedisConnection
from verifier.stores.redis_servers import Servers
from verifier.tests.calls import begin, on_loop, use


@pytest.mark.redis
def test_a_calls_time_begins_when_it_leaves() -> None:
    """The loop delays sending by 2.5 times the deadline; then the network takes half of it."""
    with redis_servers.server() as server, fault_proxy(server.port) as proxy:
        on_loop(server.registry_url, begin)

        async def work(servers: Servers) -> None:
            await use(servers, uuid.uuid4())
            proxy.delay_seconds, proxy.mode = 0.03, "delay"
            call = asyncio.create_task(use(servers, uuid.uuid4(), deadline=0.12))
            await asyncio.sleep(0)
            block = time.sleep
            block(0.3)
            assert (await call).code is Code.OK

        on_loop(f"redis://127.0.0.1:{proxy.port}", work)


class _Alarm(SimpleNamespace):
    at: float
    ring: Callable[[], None]

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.at = float("inf")


class _Loop:
    """Its clock stands still during a turn, as uvloop's does; `clock` is the true time."""

    def __init__(self) -> None:
        self.now = self.clock = 100.0
        self._soon: list[Callable[[], None]] = []
        self._alarms: list[_Alarm] = []
        self._futures = asyncio.new_event_loop()

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[[], None]) -> None:
        self._soon.append(call)

    def call_at(self, at: float, ring: Callable[[], None]) -> _Alarm:
        self._alarms.append(_Alarm(at=at, ring=ring))
        return self._alarms[-1]

    def create_future(self) -> asyncio.Future[Any]:
        return self._futures.create_future()

    def turn(self, *, lasts: float = 0) -> None:
        """Run the scheduled callbacks after `lasts` seconds."""
        self.clock += lasts
        calls, self._soon = self._soon, []
        for call in calls:
            call()
        self.now = self.clock

    def wait(self, seconds: float) -> None:
        """Pass time in which only timers fire."""
        end = self.clock + seconds
        while due := [each for each in self._alarms if each.at <= end]:
            first = min(due, key=_Alarm.when)
            self._alarms.remove(first)
            self.now = self.clock = max(self.clock, first.at)
            first.ring()
        self.now = self.clock = end

    def close(self) -> None:
        self._futures.close()


class _Transport:
    """Buffers up to `high` bytes until the end of the turn."""

    high = 65536

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_given_up = False

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write(self, data: bytes) -> None:
        assert len(data) > self.high, "it would leave at the end of the turn only"
        self.sent.append(data)

    def abort(self) -> None:
        self.is_given_up = True


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Loop]:
    made = _Loop()
    monkeypatch.setattr(redis_client, "monotonic", lambda: made.clock)
    monkeypatch.setattr("asyncio.get_running_loop", lambda: made)
    yield made
    made.close()


@pytest.fixture
def transport() -> _Transport:
    return _Transport()


@pytest.fixture
def line(loop: _Loop, transport: _Transport) -> RedisConnection:
    made = RedisConnection(cast("Node", SimpleNamespace(line_lost=lambda *_, **__: None)))
    made.connection_made(cast("asyncio.Transport", transport))
    return made


def test_RF_19_a_turn_that_takes_long_takes_nothing_of_a_calls_time(
    loop: _Loop, line: RedisConnection, transport: _Transport
) -> None:
    asked = line.ask(b"first", loop.now + 0.1)
    loop.turn(lasts=0.3)
    assert transport.sent == [b"first"]
    loop.wait(0.09)
    assert not transport.is_given_up
    line.data_received(b"+OK\r\n")
    assert asked.result() == b"OK"


def test_RF_19_what_has_left_is_overdue_in_its_time(
    loop: _Loop, line: RedisConnection, transport: _Transport
) -> None:
    asked = line.ask(b"first", loop.now + 0.1)
    loop.turn(lasts=0.3)
    loop.wait(0.11 + GRACE_SECONDS)
    assert transport.is_given_up
    assert isinstance(asked.exception(), RedisAwayError)


def test_RF_19_what_has_not_left_is_not_overdue(
    loop: _Loop, line: RedisConnection, transport: _Transport
) -> None:
    line.ask(b"first", loop.now + 0.1)
    loop.turn()
    line.data_received(b"+OK\r\n")
    # The first call's timer is still set and fires before the second call is sent.
    asked = line.ask(b"second", loop.now + 0.05)
    loop.wait(0.2)
    assert not transport.is_given_up
    loop.turn()
    assert transport.sent == [b"first", b"second"]
    line.data_received(b"+OK\r\n")
    assert asked.result() == b"OK"
