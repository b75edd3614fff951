"""Kept connections of an `AsyncVerifierClient`, under the rules of `verify_connections`."""

import asyncio
from collections import deque
from typing import cast

import httpx

from agentauth.protocol.errors import TemporarilyUnavailableError

from .bounded_http import ask
from .http1 import Answer, AnswerReader, Target
from .registry_http import registry_at
from .url_checks import is_loopback
from .verify_connections import (
    IDLE_SECONDS,
    MAX_IDLE,
    PATHS,
    Tls,
    answer_of,
    answering_sockets,
    headers_of,
    is_readable,
)


class AsyncConnections:
    """For the tasks of one event loop at a time; in another loop it opens new connections."""

    def __init__(self, url: str, client_id: str, client_secret: str, tls: Tls) -> None:
        # The subject of error messages.
        self._who = registry_at(url)
        self._given = (url, client_id, client_secret)
        self._tls = tls
        self._target: Target | None = None
        self._idle: deque[tuple[_Connection, float]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def post(
        self, content: bytes, *, key: str | None, batch: bool, seconds: float, max_bytes: int
    ) -> Answer:
        """One exchange, within `seconds` from connecting to the last byte.

        Raises TemporarilyUnavailableError. The request may have taken effect: repeat it with the
        same `key`.
        """
        with answering_sockets(self._who):
            loop = asyncio.get_running_loop()
            if self._loop is not loop:
                # A connection works only in the loop that opened it.
                self._loop, self._idle = loop, deque()
            self._target = target = self._target or Target.of(*self._given)
            request = target.post(PATHS[batch], content, key)
            reader = AnswerReader(self._who, max_bytes)
            idle = self._idle
            async with asyncio.timeout(seconds):
                connection = self._kept(loop) or await self._connect(loop, target)
                try:
                    await connection.exchange(request, reader)
                except BaseException:
                    connection.abort()
                    raise
            # Keep it unless the server ends it, `close` was called, or more bytes followed.
            if reader.is_reusable and idle is self._idle and len(idle) < MAX_IDLE:
                idle.append((connection, loop.time()))
            else:
                connection.abort()
            return reader.answer()

    async def close(self) -> None:
        """Close the idle connections, and others once their exchange has ended."""
        idle, self._idle = self._idle, deque()
        if self._loop is asyncio.get_running_loop():
            for connection, _ in idle:
                connection.abort()

    def _kept(self, loop: asyncio.AbstractEventLoop) -> "_Connection | None":
        while self._idle:
            connection, since = self._idle.pop()
            if loop.time() - since < IDLE_SECONDS and connection.is_unused():
                return connection
            connection.abort()
        return None

    async def _connect(self, loop: asyncio.AbstractEventLoop, target: Target) -> "_Connection":
        _, connection = await loop.create_connection(
            _Connection, target.host, target.port, ssl=self._tls() if target.tls else None
        )
        return connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader: AnswerReader | None = None
        self._done: asyncio.Future[None] | None = None
        self._lost = False

    async def exchange(self, request: bytes, reader: AnswerReader) -> None:
        """Send one request and wait until `reader` has its whole answer."""
        if self._transport is None or self._lost:
            raise ConnectionResetError
        self._reader, self._done = reader, asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._reader = self._done = None

    def is_unused(self) -> bool:
        """Is it open, with nothing received since the last answer?"""
        if self._lost or self._transport is None or self._transport.is_closing():
            return False
        opened = self._transport.get_extra_info("socket")
        return opened is not None and not is_readable(opened.fileno())

    def abort(self) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not subclass asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._reader is None or self._done is None or self._done.done():
            # Bytes after an answer, or without a question, could be taken for the next answer.
            self.abort()
            return
        try:
            whole = self._reader.feed(data)
        except TemporarilyUnavailableError as error:
            self._done.set_exception(error)
        else:
            if whole:
                self._done.set_result(None)

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)

    def _ended(self, exc: Exception | None) -> None:
        self._lost = True
        if self._reader is None or self._done is None or self._done.done():
            return
        if exc is not None:
            self._done.set_exception(exc)
            return
        try:
            # An answer without a length ends when the connection does.
            self._reader.feed(b"")
            self._done.set_result(None)
        except TemporarilyUnavailableError as error:
            self._done.set_exception(error)


class AsyncHttpxExchanges:
    """The same interface through httpx: for a proxy set in the environment, or a test transport."""

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: str,
        tls: Tls,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._url = url
        self._auth = httpx.BasicAuth(client_id, client_secret)
        self._tls, self._transport = tls, transport

    async def post(
        self, content: bytes, *, key: str | None, batch: bool, seconds: float, max_bytes: int
    ) -> Answer:
        # One client per exchange, so that several event loops can use it.
        async with httpx.AsyncClient(
            auth=self._auth,
            verify=self._tls(),
            follow_redirects=False,
            trust_env=not is_loopback(self._url),
            transport=self._transport,
        ) as client:
            response = await ask(
                client,
                "POST",
                self._url + PATHS[batch],
                who=registry_at(self._url),
                seconds=seconds,
                max_bytes=max_bytes,
                headers=headers_of(key),
                content=content,
            )
        return answer_of(response)

    async def close(self) -> None:
        """Nothing stays open."""
