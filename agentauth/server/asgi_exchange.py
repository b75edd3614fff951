"""One request and its answer, between connection and application: ASGI 3.0, where each is whole.

Why it replaces gunicorn's: docs/adr/0012-whole-requests-for-the-loop.md.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from gunicorn.asgi.protocol import _get_cached_date_header as date_line
from gunicorn.asgi.protocol import _get_cached_status_line as status_line

__all__ = ["Exchange", "Head"]

# As in gunicorn's own answers.
_SERVER: Final = b"Server: gunicorn/asgi\r\n"
_CLOSE: Final = b"Connection: close\r\n"


# Header lines whose values vary from call to call. A value that is not plain is left to the parser.
_VARYING: Final = re.compile(
    rb"\r\n(content-length|idempotency-key):[ \t]*([!-~]+)(?=\r\n)", re.IGNORECASE
)
_PLAIN: Final = {
    b"content-length": re.compile(rb"[0-9]{1,5}"),
    b"idempotency-key": re.compile(rb"[!-~]{1,255}"),
}


# The longest such value (255) and its CRLF.
_MOST_VARYING: Final = 257


class Head:
    """The head of a request: bytes `raw`, the body's `length`; `keeps`: the connection stays.

    A client that keeps its connection repeats the same head, except for the values of
    Content-Length and Idempotency-Key, so it is parsed once. In `scope["extensions"]`,
    `agentauth.head` is a dictionary where the application may cache what it derives from the head
    without these values.
    """

    __slots__ = ("_between", "_places", "keeps", "length", "raw", "scope", "version")

    def __init__(
        self,
        raw: bytes,
        length: int,
        scope: dict[str, Any],
        *,
        version: tuple[int, int],
        keeps: bool,
    ) -> None:
        self.raw, self.length, self.version, self.keeps = raw, length, version, keeps
        self.scope = scope | {"extensions": {"agentauth.head": {}}}
        # The bytes around the varying values, and each value's name and index among the headers.
        self._between: list[bytes] = []
        self._places: list[tuple[bytes, int]] = []
        begin, names = 0, [name for name, _ in scope["headers"]]
        for found in _VARYING.finditer(raw):
            name = found[1].lower()
            if names.count(name) == 1 and _PLAIN[name].fullmatch(found[2]):
                self._between.append(raw[begin : found.start(2)])
                self._places.append((name, names.index(name)))
                begin = found.end(2)
        self._between.append(raw[begin:])

    def of(self, data: bytes | bytearray) -> "Head | None":
        """The head of `data` if that is one request, the same but for these values; else None."""
        if len(data) == len(self.raw) + self.length and data.startswith(self.raw):
            return self
        at, length, headers = 0, self.length, list(self.scope["headers"])
        for before, (name, place) in zip(self._between, self._places, strict=False):
            begin = at + len(before)
            at = data.find(b"\r\n", begin, begin + _MOST_VARYING)
            if at < 0 or not data.startswith(before, begin - len(before)):
                return None
            value = bytes(data[begin:at])
            if not _PLAIN[name].fullmatch(value):
                return None
            headers[place] = (name, value)
            if name == b"content-length":
                length = int(value)
        end = at + len(self._between[-1])
        if len(data) != end + length or not data.startswith(self._between[-1], at):
            return None
        return self._with(bytes(data[:end]), length, headers)

    def _with(self, raw: bytes, length: int, headers: list[tuple[bytes, bytes]]) -> "Head":
        other = Head.__new__(Head)
        other.raw, other.length, other.version, other.keeps = raw, length, self.version, self.keeps
        other.scope = {**self.scope, "headers": headers}
        other._between, other._places = self._between, self._places  # noqa: SLF001 — its own kind
        return other


class Exchange:
    """The application's `receive` and `send`. Head and body of an answer are sent together."""

    __slots__ = (
        "_body",
        "_gone",
        "_head",
        "_may_keep",
        "_started",
        "_transport",
        "answered",
        "keeps",
    )

    def __init__(
        self,
        head: Head,
        body: bytes,
        transport: Any,
        *,
        may_keep: Callable[[], bool],
        gone: asyncio.Event,
    ) -> None:
        self._head, self._transport, self._may_keep, self._gone = head, transport, may_keep, gone
        self._body: bytes | None = body
        self._started: Mapping[str, Any] | None = None
        self.answered = False
        # Whether the answer keeps the connection. Set when it is sent: the process may begin to
        # stop before.
        self.keeps = False

    async def receive(self) -> Mapping[str, Any]:
        """The body, which is already here; after that, wait until the client is gone."""
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        """Take the head of the answer, then its whole body in one message.

        The caller makes the body as long as the head says. Raises RuntimeError for any other
        message.
        """
        started = self._started
        if started is None:
            if message["type"] != "http.response.start":
                raise RuntimeError("an answer must begin with its head")
            self._started = message
            return
        if self.answered or message["type"] != "http.response.body" or message.get("more_body"):
            raise RuntimeError("an answer must be one head and one body")
        if self._gone.is_set():
            self.answered = True
            return
        self.keeps = self._head.keeps and self._may_keep()
        head = _encode_head(
            self._head.version, started["status"], started["headers"], closes=not self.keeps
        )
        self.answered = True
        if self._head.scope["method"] == "HEAD":
            self._transport.write(head)
        else:
            self._transport.write(head + message["body"])


def _encode_head(
    version: tuple[int, int], status: int, headers: list[tuple[bytes, bytes]], *, closes: bool
) -> bytes:
    # The last two headers, request id and length, differ per answer. The others mostly repeat:
    # cached.
    alike, own = _kept_lines(tuple(headers[:-2])), _lines(headers[-2:])
    return b"".join(
        (
            status_line(version, status),
            alike,
            own,
            _SERVER,
            date_line(),
            _CLOSE if closes else b"",
            b"\r\n",
        )
    )


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        # A line end would let a value add headers. Show neither name nor value: either may be a
        # secret.
        raise ValueError("a header of an answer must not contain a line break")
    return lines


_kept_lines = lru_cache(maxsize=64)(_lines)
