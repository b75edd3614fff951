"""Kept connections of a `VerifierClient`, shared by threads; each exchange is limited as a whole,
in time and in size.

With a proxy set in the environment, or a test transport, httpx makes the exchange.
"""

import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from agentauth.protocol.errors import TemporarilyUnavailableError

from .bounded_http import answering, ask_blocking, hold_to_time
from .http1 import Answer, AnswerReader, Target
from .registry_http import registry_at
from .url_checks import is_loopback

PATHS: Final = {False: "/v1/verify", True: "/v1/verify/batch"}
# Seconds after which an idle connection is closed: a server or a firewall may drop it unnoticed.
IDLE_SECONDS: Final = 5.0
MAX_IDLE: Final = 64
_PART_BYTES: Final = 65_536

Tls = Callable[[], ssl.SSLContext]


class Exchanges(Protocol):
    """Sends bytes to verify. Raises TemporarilyUnavailableError if there is no readable answer."""

    def post(
        self, content: bytes, *, key: str | None, batch: bool, seconds: float, max_bytes: int
    ) -> Answer: ...

    def close(self) -> None: ...


class Connections:
    """Thread-safe. A process forked later opens connections of its own."""

    def __init__(self, url: str, client_id: str, client_secret: str, tls: Tls) -> None:
        self._idle: deque[tuple[socket.socket, float]] = deque()
        self._who = registry_at(url)
        self._given = (url, client_id, client_secret)
        self._tls = tls
        self._target: Target | None = None
        self._process = os.getpid()

    def post(
        self, content: bytes, *, key: str | None, batch: bool, seconds: float, max_bytes: int
    ) -> Answer:
        """One exchange, within `seconds` from connecting to the last byte."""
        ends = time.monotonic() + seconds
        with answering_sockets(self._who):
            self._target = target = self._target or Target.of(*self._given)
            request = target.post(PATHS[batch], content, key)
            connection = self._kept() or _connect(target, self._tls, ends)
            reader = AnswerReader(self._who, max_bytes)
            idle = self._idle
            try:
                connection.settimeout(_left(ends))
                connection.sendall(request)
                connection.settimeout(_left(ends))
                while not reader.feed(connection.recv(_PART_BYTES)):
                    connection.settimeout(_left(ends))
            except BaseException:
                connection.close()
                raise
            # Keep it unless the server ends it, `close` was called, or more bytes followed.
            if reader.is_reusable and idle is self._idle and len(idle) < MAX_IDLE:
                idle.append((connection, time.monotonic()))
            else:
                connection.close()
            return reader.answer()

    def close(self) -> None:
        """Close the idle connections, and others once their exchange has ended."""
        idle, self._idle = self._idle, deque()
        while idle:
            idle.pop()[0].close()

    def __del__(self) -> None:
        # Python warns of each socket that is left to it.
        self.close()

    def _kept(self) -> socket.socket | None:
        """An open connection that nothing was received on; the newest one, so that others age."""
        if self._process != os.getpid():
            # Two processes would read each other's answers.
            self._process, self._idle = os.getpid(), deque()
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - since < IDLE_SECONDS and not is_readable(connection.fileno()):
                return connection
            connection.close()


class HttpxExchanges:
    """The same through httpx."""

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: str,
        tls: Tls,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self._url = url
        self._client = hold_to_time(
            httpx.Client(
                auth=httpx.BasicAuth(client_id, client_secret),
                verify=tls(),
                follow_redirects=False,
                trust_env=not is_loopback(url),
                transport=transport,
            )
        )

    def post(
        self, content: bytes, *, key: str | None, batch: bool, seconds: float, max_bytes: int
    ) -> Answer:
        response = ask_blocking(
            self._client,
            "POST",
            self._url + PATHS[batch],
            who=registry_at(self._url),
            seconds=seconds,
            max_bytes=max_bytes,
            headers=headers_of(key),
            content=content,
        )
        return answer_of(response)

    def close(self) -> None:
        self._client.close()


def headers_of(key: str | None) -> dict[str, str]:
    """The headers of one request through httpx."""
    return {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})


def answer_of(response: httpx.Response) -> Answer:
    """A whole answer of httpx."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, response.content)


def uses_proxy(url: str) -> bool:
    """Does the environment name a proxy that calls to `url` may go through? Never on loopback."""
    return not is_loopback(url) and not {urlsplit(url).scheme, "all"}.isdisjoint(getproxies())


def is_readable(descriptor: int) -> bool:
    """Has an idle connection received anything? Then the server closed it, or broke the protocol.

    Its next answer would be taken for that of another question.
    """
    if descriptor < 0:
        return True
    if not hasattr(select, "poll"):
        wait = select.select
        return bool(wait([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def answering_sockets(who: str) -> Iterator[None]:
    """Turn every failure of the network into TemporarilyUnavailableError, naming `who`."""
    with answering(who):
        try:
            yield
        except (TimeoutError, TemporarilyUnavailableError):
            raise
        except OSError as failure:
            raise httpx.ConnectError(type(failure).__name__) from failure


def _connect(target: Target, tls: Tls, ends: float) -> socket.socket:
    """A new connection to the first address that accepts one. Raises OSError."""
    failure: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(
        target.host, target.port, type=socket.SOCK_STREAM
    ):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_left(ends))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not target.tls:
                return connection
            connection.settimeout(_left(ends))
            return tls().wrap_socket(connection, server_hostname=target.host)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError) or isinstance(error, ssl.SSLError | TimeoutError):
                raise
            failure = error
    raise failure or OSError("The host name has no address.")


def _left(ends: float) -> float:
    """Seconds until `ends`. Raises TimeoutError if there are none."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
