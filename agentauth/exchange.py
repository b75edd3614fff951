"""One request and its answer, between a connection and the application: ASGI 3.0, where each is whole.

Why it stands in gunicorn's place: docs/adr/0012-whole-requests-for-the-loop.md.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from gunicorn.asgi.protocol import _get_cached_date_header as date_line
from gunicorn.asgi.protocol import _get_cached_status_line as status_line

__all__ = ["Exchange", "Head"]

# What gunicorn's own answers say.
_SERVER: Final = b"Server: gunicorn/asgi\r\n"
_CLOSE: Final = b"Connection: close\r\n"


class Head:
    """What the head of a request says: `raw` are its bytes, `length` is the body's, `keeps` whether the connection stays.

    A client that keeps its connection sends the same head again and again; it is read once. In the `extensions` of
    `scope`, `agentauth.head` is a dictionary where the application may keep what it made of the head.
    """

    __slots__ = ("keeps", "length", "raw", "scope", "version")

    def __init__(
        self, raw: bytes, length: int, scope: dict[str, Any], *, version: tuple[int, int], keeps: bool
    ) -> None:
        self.raw, self.length, self.version, self.keeps = raw, length, version, keeps
        self.scope = scope | {"extensions": {"agentauth.head": {}}}

    def begins(self, data: bytes | bytearray) -> bool:
        """Whether these bytes are a whole request under this head, and no more."""
        return len(data) == len(self.raw) + self.length and data.startswith(self.raw)


class Exchange:
    """What the application is given to `receive` and to `send`. Its answer is written at once, head and body together."""

    __slots__ = ("_body", "_gone", "_head", "_may_keep", "_started", "_transport", "answered", "keeps")

    def __init__(
        self, head: Head, body: bytes, transport: Any, *, may_keep: Callable[[], bool], gone: asyncio.Event
    ) -> None:
        self._head, self._transport, self._may_keep, self._gone = head, transport, may_keep, gone
        self._body: bytes | None = body
        self._started: Mapping[str, Any] | None = None
        self.answered = False
        # What the answer said of the connection. A process may begin to stop while it is made.
        self.keeps = False

    async def receive(self) -> Mapping[str, Any]:
        """The body, which is here; then nothing, until whoever asked is gone."""
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        """First an answer's head, then its body, which is to be as long as the head says. Raises RuntimeError otherwise."""
        started = self._started
        if started is None:
            if message["type"] != "http.response.start":
                raise RuntimeError("an answer begins with its head")
            self._started = message
            return
        if self.answered or message["type"] != "http.response.body" or message.get("more_body"):
            raise RuntimeError("an answer is one head and one body")
        if self._gone.is_set():
            self.answered = True
            return
        self.keeps = self._head.keeps and self._may_keep()
        head = _written(self._head.version, started["status"], started["headers"], closes=not self.keeps)
        self.answered = True
        if self._head.scope["method"] == "HEAD":
            self._transport.write(head)
        else:
            self._transport.write(head + message["body"])


def _written(
    version: tuple[int, int], status: int, headers: list[tuple[bytes, bytes]], *, closes: bool
) -> bytes:
    # The last two are an answer's own, its request's id and its length; the others most answers have alike.
    alike, own = _kept_lines(tuple(headers[:-2])), _lines(headers[-2:])
    return b"".join(
        (status_line(version, status), alike, own, _SERVER, date_line(), _CLOSE if closes else b"", b"\r\n")
    )


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        # The names are not shown, nor the values: either may be a secret.
        raise ValueError("a header of an answer holds a line end")
    return lines


_kept_lines = lru_cache(maxsize=64)(_lines)
