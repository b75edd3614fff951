"""One request and its answer: what is read once, and what an application may not send."""

import asyncio
from typing import Any

import pytest

from agentauth.exchange import Exchange, Head

RAW = b"POST /v1/verify HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
BODY = {"type": "http.response.body", "body": b"ok"}


class Wire:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)


def head(method: str = "POST", version: tuple[int, int] = (1, 1)) -> Head:
    return Head(RAW, 2, {"type": "http", "method": method}, version=version, keeps=True)


def exchanged(
    *messages: Any, at: Head | None = None, closes: bool = False, gone: bool = False
) -> list[bytes]:
    async def run() -> list[bytes]:
        wire, left = Wire(), asyncio.Event()
        if gone:
            left.set()
        exchange = Exchange(at or head(), b"{}", wire, may_keep=lambda: not closes, gone=left)
        for message in messages:
            await exchange.send(message)
        assert exchange.answered
        assert exchange.keeps == (not closes and not gone)
        return wire.sent

    return asyncio.run(run())


def test_DJ_7_a_head_begins_only_what_is_its_bytes_and_as_long_as_it_says() -> None:
    known = head()
    assert known.begins(RAW + b"{}")
    for other in (
        RAW,
        RAW + b"{",
        RAW + b"{}x",
        RAW.replace(b"Host: a", b"Host: b") + b"{}",
        RAW.replace(b": 2", b": 3") + b"{}x",
        b" " + RAW + b"{}",
    ):
        assert not known.begins(other), other


def test_each_head_has_room_of_its_own_for_what_is_made_of_it() -> None:
    one, other = head(), head()
    one.scope["extensions"]["agentauth.head"]["endpoint"] = 1
    assert other.scope["extensions"] == {"agentauth.head": {}}


def test_an_answer_is_one_write() -> None:
    (sent,) = exchanged(START, BODY)
    lines, _, body = sent.partition(b"\r\n\r\n")
    first, *rest = lines.split(b"\r\n")
    assert (first, body) == (b"HTTP/1.1 200 OK", b"ok")
    assert rest[:2] == [b"content-length: 2", b"Server: gunicorn/asgi"]
    assert rest[2].startswith(b"Date: ")
    assert len(rest) == 3


def test_an_answer_says_what_the_connection_becomes_and_has_the_version_of_the_request() -> None:
    (sent,) = exchanged(START, BODY, at=head(version=(1, 0)), closes=True)
    assert sent.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in sent


def test_to_head_only_a_head_is_answered() -> None:
    (sent,) = exchanged(START, BODY, at=head("HEAD"))
    assert sent.endswith(b"\r\n\r\n")
    assert b"content-length: 2\r\n" in sent


def test_nothing_is_written_to_whom_is_gone() -> None:
    assert exchanged(START, BODY, gone=True) == []


@pytest.mark.parametrize(
    "messages",
    [
        [BODY],
        [START, START],
        [START, BODY, BODY],
        [START, BODY | {"more_body": True}],
        [{"type": "http.response.informational", "status": 103, "headers": []}],
        [START | {"headers": [(b"x-a", b"1\r\nx-b: 2")]}, BODY],
        [START | {"headers": [(b"x-a", b"1\nx-b: 2")]}, BODY],
        [START | {"headers": [(b"x-a\r", b"1")]}, BODY],
    ],
)
def test_DJ_6_any_other_answer_is_a_defect(messages: list[Any]) -> None:
    with pytest.raises((RuntimeError, ValueError)) as raised:
        exchanged(*messages)
    assert "x-b" not in str(raised.value)


def test_the_body_is_given_once_and_then_the_end() -> None:
    async def run() -> list[Any]:
        gone = asyncio.Event()
        exchange = Exchange(head(), b"{}", Wire(), may_keep=lambda: True, gone=gone)
        first = await exchange.receive()
        waiting = asyncio.create_task(exchange.receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        gone.set()
        return [first, await waiting]

    assert asyncio.run(run()) == [
        {"type": "http.request", "body": b"{}", "more_body": False},
        {"type": "http.disconnect"},
    ]
