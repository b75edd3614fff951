"""One connection of the verifier's server, on a transport that records each call."""

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

from agentauth.server import request_framing
from agentauth.server.loop_worker import Connection, Worker

# gunicorn's configuration changes the environment, which must not leak into this process.
with patch.dict(os.environ):
    from agentauth.server import verifier_gunicorn

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


class Line(asyncio.Transport):
    """Accepts everything, and has sent it at once unless `unsent` says otherwise."""

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
    """A worker whose application answers when told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.answered = 0
        config = Config()
        for name in vars(verifier_gunicorn):
            if name.startswith("limit_") or name in {"header_map", "http_parser", "keepalive"}:
                config.set(name, getattr(verifier_gunicorn, name))
        self.worker = Worker(1, os.getppid(), [], None, 30, config, Logger(config))
        self.worker.tmp.close()
        self.worker.loop = asyncio.get_running_loop()
        self.worker.max_requests = sys.maxsize
        self.worker.worker_connections = 2
        self.worker.asgi = self._application
        self.worker.acceptor = self.worker.create_acceptor()
        self.asked: list[tuple[str, bytes]] = []
        # How often a head was parsed.
        self.read = 0

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        made = scope["extensions"]["agentauth.head"]
        self.read += "made" not in made
        made["made"] = True
        self.asked.append(
            (dict(scope["headers"]).get(b"x-a", b"").decode(), (await receive())["body"])
        )
        await self.may_answer.wait()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}
        )
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
    look(connection, request_framing.REQUEST_SECONDS)
    assert line.acts == ["200"]
    # ... and was, when the next request began.
    connection.incoming.begun -= verifier_gunicorn.keepalive - 1
    connection.data_received(GET[:5])
    look(connection, request_framing.HEAD_SECONDS - 1)
    assert line.acts == ["200"]
    look(connection, request_framing.HEAD_SECONDS + 1)
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
    look(connection, request_framing.LINGER_SECONDS - 1)
    assert line.acts[-1] == "end"
    look(connection, request_framing.LINGER_SECONDS + 1)
    assert line.acts[-1] == "abort"


async def whoever_takes_the_answer_slowly_has_longer() -> None:
    connection, line = Scene().connect(b"nonsense\n\n")
    line.unsent = 5
    look(connection, request_framing.LINGER_SECONDS + 1)
    assert line.acts[-1] == "end"
    look(connection, request_framing.REQUEST_SECONDS + 1)
    assert line.acts[-1] == "abort"


async def hanging_up_ends_the_farewell() -> None:
    connection, _ = Scene().connect(b"nonsense\n\n")
    assert connection.eof_received() is False
    scene = Scene()
    connection, line = scene.connect(GET)
    scene.worker.alive = False
    await scene.answer()
    # A stopping process keeps no connection.
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
    with patch.object(request_framing, "_FRAMING", re.compile(rb"(never)")):
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
    assert line.acts == ["200"]
    assert connection.is_answering
    connection.connection_lost(None)
    assert not scene.worker.stuck
    await scene.answer()
    assert connection._task.done()


async def what_was_sent_is_let_go_with_its_connection() -> None:
    scene = Scene()
    connection, _ = scene.connect(POST)
    assert scene.worker.held == len(POST)
    connection.connection_lost(None)
    assert (scene.worker.held, scene.worker.nr_conns, scene.worker.waiting) == (0, 0, {})


async def a_head_that_comes_again_is_read_once() -> None:
    scene = Scene()
    connection, line = scene.connect(POST + b"12345")
    await scene.answer()
    for body in (b"abcde", b"fghij"):
        connection.data_received(POST + body)
        await scene.answer()
    assert (scene.read, scene.asked) == (1, [("", b"12345"), ("", b"abcde"), ("", b"fghij")])
    assert line.acts == ["200", "200", "200"]
    assert (scene.worker.held, connection in scene.worker.waiting) == (0, True)


async def another_head_is_read_and_so_is_the_first_after_it_but_for_its_length() -> None:
    scene = Scene()
    other = POST.replace(b"Host: a", b"Host: a\r\nX-A: b")
    connection, _ = scene.connect(POST + b"12345")
    await scene.answer()
    for sent in (other + b"abcde", POST + b"fghij", POST.replace(b": 5", b": 3") + b"klm"):
        connection.data_received(sent)
        await scene.answer()
    assert scene.asked == [("", b"12345"), ("b", b"abcde"), ("", b"fghij"), ("", b"klm")]
    assert scene.read == 3


async def the_same_head_may_come_in_pieces_or_with_the_next_request_behind_it() -> None:
    scene = Scene()
    connection, line = scene.connect(POST + b"12345")
    await scene.answer()
    for piece in (POST[:20], POST[20:], b"ab", b"cde"):
        connection.data_received(piece)
    await scene.answer()
    connection.data_received(POST + b"fghij" + POST + b"klmno" + POST[:9])
    await scene.answer()
    assert [body for _, body in scene.asked] == [b"12345", b"abcde", b"fghij", b"klmno"]
    assert bytes(connection.incoming.data) == POST[:9]
    assert line.acts == ["200"] * 4


async def a_long_head_is_not_held_for_as_long_as_its_connection_idles() -> None:
    scene = Scene()
    long = POST.replace(b"Host: a", b"Host: a\r\nX-A: " + b"b" * 8_192)
    connection, _ = scene.connect(long + b"12345")
    await scene.answer()
    connection.data_received(long + b"abcde")
    await scene.answer()
    assert [body for _, body in scene.asked] == [b"12345", b"abcde"]
    assert scene.read == 2
    assert connection._head is None


async def a_head_that_ends_its_connection_is_not_kept() -> None:
    scene = Scene()
    connection, line = scene.connect(
        POST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"12345"
    )
    await scene.answer()
    assert connection.lingers
    connection.data_received(POST + b"12345")
    await scene.answer()
    assert (len(scene.asked), line.acts) == (1, ["200", "end"])


async def what_the_application_does_wrong_is_500_and_ends_the_connection() -> None:
    scene = Scene()

    async def wrong(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"x"})

    async def nothing(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    for application in (wrong, nothing):
        scene.worker.asgi = application
        connection, line = scene.connect(GET)
        await scene.answer()
        assert connection.lingers
        assert line.acts[0] == "500"
        connection.connection_lost(None)


async def who_is_answered_while_the_process_begins_to_stop_is_told_to_go() -> None:
    scene = Scene()
    connection, line = scene.connect(GET)
    await asyncio.sleep(0)
    scene.worker.alive = False
    await scene.answer()
    assert line.acts == ["200", "end"]
    assert connection.lingers


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
    a_head_that_comes_again_is_read_once,
    another_head_is_read_and_so_is_the_first_after_it_but_for_its_length,
    the_same_head_may_come_in_pieces_or_with_the_next_request_behind_it,
    a_long_head_is_not_held_for_as_long_as_its_connection_idles,
    a_head_that_ends_its_connection_is_not_kept,
    what_the_application_does_wrong_is_500_and_ends_the_connection,
    who_is_answered_while_the_process_begins_to_stop_is_told_to_go,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_DJ_7_a_connection(story: Callable[[], Any]) -> None:
    asyncio.run(story())
