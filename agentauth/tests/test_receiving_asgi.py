"""One connection of the verifier's server, on a transport that only writes down what is done to it."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from agentauth import incoming
from agentauth.receiving_asgi import Connection, Worker

# It sets up the environment of the server that reads it: not of this process.
with patch.dict(os.environ):
    from agentauth import verifier_server

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


class Line(asyncio.Transport):
    """Takes everything, and has sent it at once unless `unsent` says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: list[str] = []
        self.unsent = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.acts.append(bytes(data)[9:12].decode())

    def write_eof(self) -> None:
        self.acts.append("end")

    def close(self) -> None:
        self.acts.append("close")

    def abort(self) -> None:
        self.acts.append("abort")

    def pause_reading(self) -> None:
        self.acts.append("pause")

    def resume_reading(self) -> None:
        self.acts.append("resume")


class Scene:
    """A worker whose application answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.answered = 0
        config = Config()
        for name in vars(verifier_server):
            if name.startswith("limit_") or name in {"header_map", "http_parser", "keepalive"}:
                config.set(name, getattr(verifier_server, name))
        self.worker = Worker(1, os.getppid(), [], None, 30, config, Logger(config))
        self.worker.tmp.close()
        self.worker.loop = asyncio.get_running_loop()
        self.worker.max_requests = sys.maxsize
        self.worker.worker_connections = 2
        self.worker.asgi = self._application

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"x"})
        self.answered += 1

    def connect(self, sent: bytes = b"") -> tuple[Connection, Line]:
        connection, line = Connection(self.worker), Line()
        connection.connection_made(line)
        if sent:
            connection.data_received(sent)
        return connection, line

    async def answer(self) -> None:
        self.may_answer.set()
        for _ in range(10):
            await asyncio.sleep(0)


def look(connection: Connection, after: float) -> None:
    connection.look(time.monotonic() + after, float("inf"))


async def whoever_is_answered_is_not_waited_for() -> None:
    scene = Scene()
    connection, _ = scene.connect(GET)
    assert not scene.worker.waiting
    await scene.answer()
    assert connection in scene.worker.waiting
    connection.connection_lost(None)
    assert not scene.worker.waiting
    assert (scene.worker.held, scene.worker.nr_conns) == (0, 0)


async def a_kept_connection_has_its_time_from_the_first_byte_of_the_next_request() -> None:
    scene = Scene()
    connection, line = scene.connect(GET)
    await scene.answer()
    # It may be idle for longer than a head may take ...
    look(connection, incoming.REQUEST_SECONDS)
    assert line.acts == ["200"]
    # ... and was, when the next request began.
    connection.incoming.begun -= verifier_server.keepalive - 1
    connection.data_received(GET[:5])
    look(connection, incoming.HEAD_SECONDS - 1)
    assert line.acts == ["200"]
    look(connection, incoming.HEAD_SECONDS + 1)
    assert line.acts == ["200", "408", "end"]


async def what_comes_behind_waits_outside_until_the_answer_is_given() -> None:
    scene = Scene()
    connection, line = scene.connect(GET)
    connection.data_received(GET * 3000)
    assert line.acts == ["pause"]
    await scene.answer()
    assert line.acts[:3] == ["pause", "200", "resume"]
    connection.connection_lost(None)


async def a_refusal_is_read_past_for_two_seconds() -> None:
    connection, line = Scene().connect(b"nonsense\n\n")
    assert line.acts[0] == "400"
    assert line.acts[-1] == "end"
    connection.data_received(b"more")
    look(connection, incoming.LINGER_SECONDS - 1)
    assert line.acts[-1] == "end"
    look(connection, incoming.LINGER_SECONDS + 1)
    assert line.acts[-1] == "abort"


async def whoever_takes_the_answer_slowly_has_longer() -> None:
    connection, line = Scene().connect(b"nonsense\n\n")
    line.unsent = 5
    look(connection, incoming.LINGER_SECONDS + 1)
    assert line.acts[-1] == "end"
    look(connection, incoming.REQUEST_SECONDS + 1)
    assert line.acts[-1] == "abort"


async def hanging_up_ends_the_farewell() -> None:
    connection, _ = Scene().connect(b"nonsense\n\n")
    assert connection.eof_received() is False
    scene = Scene()
    connection, line = scene.connect(GET)
    scene.worker.alive = False
    await scene.answer()
    # A process that stops keeps no connection.
    assert line.acts == ["200", "end"]
    assert connection.eof_received() is False


async def those_that_have_their_answer_make_room_first() -> None:
    scene = Scene()
    _, first = scene.connect(b"GET / ")
    _, second = scene.connect(b"nonsense\n\n")
    _, third = scene.connect()
    assert (first.acts, second.acts[-1], third.acts) == ([], "abort", [])


async def of_those_without_one_the_first_makes_room() -> None:
    scene = Scene()
    _, first = scene.connect(b"GET / ")
    _, second = scene.connect(b"GET / ")
    _, third = scene.connect()
    assert (first.acts, second.acts, third.acts) == (["abort"], [], [])


async def a_parser_that_wants_more_than_was_taken_for_whole_ends_the_connection() -> None:
    scene = Scene()
    with patch.object(incoming, "_FRAMING", re.compile(rb"(never)")):
        connection, line = scene.connect(POST)
        connection.data_received(b"GET /")
        await scene.answer()
    assert line.acts == ["200", "end"]


async def an_answer_that_waits_for_room_ends_with_its_connection() -> None:
    scene = Scene()
    connection, line = scene.connect(GET)
    connection.pause_writing()
    assert connection in scene.worker.stuck
    connection.resume_writing()
    assert not scene.worker.stuck
    connection.pause_writing()
    await scene.answer()
    assert (line.acts, scene.answered) == (["200"], 0)
    connection.connection_lost(None)
    assert not scene.worker.stuck
    await scene.answer()
    assert scene.answered == 1


async def what_was_sent_is_let_go_with_its_connection() -> None:
    scene = Scene()
    connection, _ = scene.connect(POST)
    assert scene.worker.held == len(POST)
    connection.connection_lost(None)
    assert (scene.worker.held, scene.worker.nr_conns, scene.worker.waiting) == (0, 0, {})


STORIES: list[Callable[[], Awaitable[None]]] = [
    whoever_is_answered_is_not_waited_for,
    a_kept_connection_has_its_time_from_the_first_byte_of_the_next_request,
    what_comes_behind_waits_outside_until_the_answer_is_given,
    a_refusal_is_read_past_for_two_seconds,
    whoever_takes_the_answer_slowly_has_longer,
    hanging_up_ends_the_farewell,
    those_that_have_their_answer_make_room_first,
    of_those_without_one_the_first_makes_room,
    a_parser_that_wants_more_than_was_taken_for_whole_ends_the_connection,
    an_answer_that_waits_for_room_ends_with_its_connection,
    what_was_sent_is_let_go_with_its_connection,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_DJ_7_a_connection(story: Callable[[], Any]) -> None:
    asyncio.run(story())
