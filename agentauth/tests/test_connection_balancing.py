"""How the processes of a server tell each other which one has the fewest connections."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from agentauth.server import connection_balancing
from agentauth.server.connection_balancing import HEARD_SECONDS, Acceptor, ConnectionCounts


def test_each_of_the_most_processes_has_a_place_of_its_own() -> None:
    shared = ConnectionCounts(512)
    for place in range(1, 513):
        shared.report(place, place)
    assert shared.has_fewest(1, 1)
    assert not shared.has_fewest(65, 65)
    shared.report(65, 0)
    assert not shared.has_fewest(1, 1)


def test_connection_counts_are_shared_across_processes() -> None:
    shared = ConnectionCounts(32)
    if not (child := os.fork()):
        shared.report(2, 3)
        os._exit(0)
    os.waitpid(child, 0)
    assert shared.has_fewest(1, 3)
    assert not shared.has_fewest(1, 4)
    # A process is not compared with its own entry.
    assert shared.has_fewest(2, 4)


def test_single_process_always_has_the_fewest() -> None:
    assert ConnectionCounts(32).has_fewest(7, 500)


def test_who_left_or_was_not_heard_of_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ConnectionCounts(32)
    shared.report(1, 0)
    shared.report(2, 5)
    assert not shared.has_fewest(3, 1)
    shared.leave(1)
    assert shared.has_fewest(3, 5)
    assert not shared.has_fewest(3, 6)
    later = time.monotonic() + HEARD_SECONDS + 1
    monkeypatch.setattr("agentauth.server.connection_balancing.time.monotonic", lambda: later)
    assert shared.has_fewest(3, 6)


def test_a_place_is_used_again_after_many_processes() -> None:
    shared = ConnectionCounts(32)
    shared.report(3, 9)
    shared.report(3 + 64, 1)
    assert not shared.has_fewest(1, 2)
    assert shared.has_fewest(1, 1)


class Saying(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.write(b"here")
        transport.close()


def acceptor(listening: Any) -> Acceptor:
    return Acceptor(
        1,
        [listening],
        loop=asyncio.get_running_loop(),
        connection_factory=Saying,
        counts=lambda: 0,
        log=logging.getLogger(__name__),
    )


@pytest.mark.parametrize("family", ["inet", "inet6", "unix"])
def test_connections_come_in_by_whatever_socket_a_server_has(family: str, tmp_path: Path) -> None:
    kinds = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}
    address: Any = {
        "inet": ("127.0.0.1", 0),
        "inet6": ("::1", 0),
        "unix": str(tmp_path / "socket"),
    }[family]

    async def run() -> bytes:
        with socket.socket(kinds[family]) as listening, socket.socket(kinds[family]) as caller:
            listening.bind(address)
            made = acceptor(listening)
            made.listen(5)
            caller.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller, listening.getsockname())
            said = await asyncio.wait_for(loop.sock_recv(caller, 10), 5)
            await made.close()
            return said

    assert asyncio.run(run()) == b"here"


def test_a_door_that_cannot_take_in_closes_all_the_same() -> None:
    class Full(socket.socket):
        def accept(self) -> Any:
            raise OSError(errno.EMFILE, "too many open files")

    async def run() -> int:
        with Full(socket.AF_INET) as listening:
            listening.bind(("127.0.0.1", 0))
            made = acceptor(listening)
            made.listen(5)
            await made.close()
            return listening.fileno()

    assert asyncio.run(run()) == -1


def test_delayed_accept_after_closing_does_nothing() -> None:
    async def run() -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            made = acceptor(listening)
            made.listen(5)
            await made.close()
            # As it is called again after a moment.
            made._accept_if_least_loaded(listening, 0.002)

    asyncio.run(run())


def test_RF_19_many_who_come_at_once_wait_for_few_turns_of_a_busy_loop() -> None:
    many, here = 300, []

    class Here(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            here.append(transport)

    async def run() -> int:
        loop, turns = asyncio.get_running_loop(), 0
        with contextlib.ExitStack() as opened:
            listening = opened.enter_context(socket.socket())
            listening.bind(("127.0.0.1", 0))
            made = Acceptor(
                1,
                [listening],
                loop=loop,
                connection_factory=Here,
                counts=lambda: 0,
                log=logging.getLogger(__name__),
            )
            made.listen(many)
            for _ in range(many):
                caller = opened.enter_context(socket.socket())
                caller.setblocking(False)
                assert caller.connect_ex(listening.getsockname()) in {0, errno.EINPROGRESS}
            until = time.monotonic() + 10
            while len(here) < many and time.monotonic() < until:
                turns += 1
                await asyncio.sleep(0)
            await made.close()
            for each in here:
                each.abort()
        return turns

    turns = asyncio.run(run())
    assert len(here) == many
    assert turns < many / 3


@pytest.mark.parametrize("others", [0, 9])
def test_connection_waits_briefly_for_a_less_loaded_process(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = ConnectionCounts(32)
    shared.report(2, others)
    monkeypatch.setattr(connection_balancing, "_COUNTS", shared)

    async def run() -> float:
        loop = asyncio.get_running_loop()
        with socket.socket() as listening, socket.socket() as caller:
            listening.bind(("127.0.0.1", 0))
            made = Acceptor(
                1,
                [listening],
                loop=loop,
                connection_factory=Saying,
                counts=lambda: 5,
                log=logging.getLogger(__name__),
            )
            made.listen(5)
            caller.setblocking(False)
            began = loop.time()
            await loop.sock_connect(caller, listening.getsockname())
            assert await asyncio.wait_for(loop.sock_recv(caller, 10), 5) == b"here"
            took = loop.time() - began
            await made.close()
            return took

    # The other process never accepts: callers wait that moment at most, and not at all if it has
    # more connections.
    waits = []
    for _ in range(5):
        shared.report(2, others)
        waits.append(asyncio.run(run()))
    left = connection_balancing._YIELD_SECONDS
    assert (min(waits) >= left - 0.001) is (others == 0), waits
