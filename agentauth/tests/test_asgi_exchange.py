"""One request and its answer: what is parsed once, and what an application must not send."""

import asyncio
from typing import Any

import pytest

from agentauth.server.asgi_exchange import Exchange, Head

RAW = b"POST /v1/verify HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
BODY = {"type": "http.response.body", "body": b"ok"}


class Wire:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)


def head(method: str = "POST", version: tuple[int, int] = (1, 1)) -> Head:
    headers = [(b"host", b"a"), (b"content-length", b"2")]
    return Head(
        RAW, 2, {"type": "http", "method": method, "headers": headers}, version=version, keeps=True
    )


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
    assert known.of(RAW + b"{}") is known
    for other in (
        RAW,
        RAW + b"{",
        RAW + b"{}x",
        RAW.replace(b"Host: a", b"Host: b") + b"{}",
        RAW.replace(b": 2", b": 3") + b"{}",
        b" " + RAW + b"{}",
    ):
        assert known.of(other) is None, other


NAMED = b"POST /v1/verify HTTP/1.1\r\nIdempotency-Key: one\r\nHost: a\r\nContent-Length:  2\r\n\r\n"


def named(raw: bytes = NAMED, **lines: bytes) -> Head:
    headers = [(b"idempotency-key", b"one"), (b"host", b"a"), (b"content-length", b"2")]
    headers = [(name, lines.get(name.decode(), value)) for name, value in headers]
    return Head(
        raw, 2, {"type": "http", "method": "POST", "headers": headers}, version=(1, 1), keeps=True
    )


def test_DJ_7_head_is_parsed_once_for_any_later_key_and_length() -> None:
    known = named()
    known.scope["extensions"]["agentauth.head"]["endpoint"] = 1
    for key, body in ((b"another-one", b"{}"), (b"x" * 255, b""), (b"!,~", b"{}" * 40_000)):
        raw = NAMED.replace(b"one", key).replace(b"  2", b"  %d" % len(body))
        other = known.of(raw + body)
        assert other is not None
        assert (other.raw, other.length, other.keeps) == (raw, len(body), True)
        length = b"%d" % len(body)
        assert other.scope["headers"] == [
            (b"idempotency-key", key),
            (b"host", b"a"),
            (b"content-length", length),
        ]
        assert other.scope["extensions"]["agentauth.head"] == {"endpoint": 1}
        again = other.of(NAMED + b"{}")
        assert again is not None
        assert (again.raw, again.scope) == (NAMED, known.scope)


@pytest.mark.parametrize(
    "data",
    [
        # Not the body's length.
        NAMED.replace(b"  2", b"  3") + b"{}",
        NAMED + b"{}x",
        NAMED + b"{",
        # A form the full parser must judge.
        NAMED.replace(b"  2", b"  02x") + b"{}",
        NAMED.replace(b"  2", b"  +2") + b"{}",
        NAMED.replace(b"  2", b"   2") + b"{}",
        NAMED.replace(b"  2", b"  ") + b"{}",
        NAMED.replace(b"  2", b"  000002") + b"{}",
        NAMED.replace(b"one", b"") + b"{}",
        NAMED.replace(b"one", b"on e") + b"{}",
        NAMED.replace(b"one", b"one ") + b"{}",
        NAMED.replace(b"one", b"on\te") + b"{}",
        NAMED.replace(b"one", b"on\xe9") + b"{}",
        NAMED.replace(b"one", b"on\x7f") + b"{}",
        NAMED.replace(b"one", b"on\ne") + b"{}",
        NAMED.replace(b"one", b"on\re") + b"{}",
        NAMED.replace(b"one", b"x" * 256) + b"{}",
        NAMED.replace(b"one", b"one\r\nX: y") + b"{}",
        NAMED.replace(b"one\r\n", b"one\n") + b"{}",
        NAMED.replace(b"Host: a", b"Host: b") + b"{}",
        NAMED.replace(b"Idempotency-Key", b"idempotency-key") + b"{}",
        NAMED.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n") + b"{}",
        # An extra line, exactly as long as the body would be.
        NAMED.replace(b"  2\r\n\r\n", b"  8\r\nX: y\r\n\r\n") + b"{}",
    ],
)
def test_DJ_7_whatever_else_differs_is_parsed_again(data: bytes) -> None:
    assert named().of(data) is None


def test_DJ_7_a_value_that_is_not_plain_varies_not() -> None:
    for known in (
        named(NAMED.replace(b"one", b"on e"), **{"idempotency-key": b"on e"}),
        # Twice: the application must see both.
        Head(
            NAMED.replace(b"Host: a", b"Idempotency-Key: two"),
            2,
            {
                "method": "POST",
                "headers": [(b"idempotency-key", b"one"), (b"idempotency-key", b"two")],
            },
            version=(1, 1),
            keeps=True,
        ),
    ):
        assert known.of(known.raw + b"{}") is known
        for value, other in ((b"on e", b"ot her"), (b"two", b"three"), (b"one", b"three")):
            assert (
                value not in known.raw or known.of(known.raw.replace(value, other) + b"{}") is None
            )


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


def test_answer_states_connection_close_and_uses_the_request_version() -> None:
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
