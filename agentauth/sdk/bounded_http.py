"""One HTTP exchange, bounded in time and size.

Every answer is read here: up to a size limit, never decompressed, and the registry's also within a
time limit. Exceptions of httpx become TemporarilyUnavailableError here and nowhere else.
"""

import asyncio
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final

import httpcore
import httpx

from agentauth.protocol.errors import TemporarilyUnavailableError

# A page of 100 grants, each with requested and granted terms of at most 65,536 bytes, is 13 MB.
MAX_ANSWER_BYTES: Final = 16_777_216
# HTTPError covers RequestError and TransportError, but not the next two. Resolving an impossible
# host name such as "a..b" raises UnicodeError. TimeoutError is asyncio's.
_FAILURES: Final = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    UnicodeError,
    TimeoutError,
)

Params = Mapping[str, str | int]
_IDENTITY: Final = {"Accept-Encoding": "identity"}
# time.monotonic() at which this thread's exchange must end.
_ends_at: ContextVar[float] = ContextVar("_ends_at")


class UnreadAnswerError(TemporarilyUnavailableError):
    """An answer came but was not read: it is compressed or too long, and would be so again."""


@contextmanager
def answering(who: str) -> Iterator[None]:
    """Turn every failure of httpx into TemporarilyUnavailableError, naming `who`."""
    try:
        yield
    except _FAILURES as failure:
        raise TemporarilyUnavailableError(f"{who} {_why(failure)}") from failure


async def ask(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    who: str,
    seconds: float,
    max_bytes: int = MAX_ANSWER_BYTES,
    headers: Mapping[str, str] | None = None,
    params: Params | None = None,
    content: bytes | None = None,
) -> httpx.Response:
    """Send one request and read its whole answer, at most `max_bytes`, within `seconds`.

    Raises TemporarilyUnavailableError otherwise: whether the request took effect is then unknown.
    """
    sent = {**(headers or {}), **_IDENTITY}
    with answering(who):
        async with (
            asyncio.timeout(seconds),
            client.stream(method, url, headers=sent, params=params, content=content) as response,
        ):
            body = _Body(who, response, max_bytes)
            async for part in response.aiter_bytes():
                body.add(part)
            return body.whole()


async def ask_service(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    max_bytes: int,
    headers: Mapping[str, str],
    json: Any,
) -> httpx.Response:
    """Send one request to a service provider and read its answer, at most `max_bytes`.

    Raises UnreadAnswerError, else TemporarilyUnavailableError if no whole answer came.
    """
    who = "The service provider"
    sent = {**headers, **_IDENTITY}
    began = time.monotonic()
    with answering(who):
        async with client.stream(method, url, headers=sent, json=json) as response:
            body = _Body(who, response, max_bytes)
            async for part in response.aiter_bytes():
                body.add(part)
        whole = body.whole()
        whole.elapsed = timedelta(seconds=time.monotonic() - began)
        return whole


def ask_blocking(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    who: str,
    seconds: float,
    max_bytes: int,
    headers: Mapping[str, str],
    content: bytes,
) -> httpx.Response:
    """`ask` for a client prepared by `hold_to_time`. The resolver has its own time limit."""
    sent = {**headers, **_IDENTITY}
    started = _ends_at.set(time.monotonic() + seconds)
    try:
        with answering(who), client.stream(method, url, headers=sent, content=content) as response:
            body = _Body(who, response, max_bytes)
            for part in response.iter_bytes():
                body.add(part)
            return body.whole()
    finally:
        _ends_at.reset(started)


def hold_to_time(client: httpx.Client) -> httpx.Client:
    """Make every socket wait of `client` end with the exchange. httpx limits only each single wait,
    so a server that sends slowly could hold the thread for ever.

    httpx has no option for it. A test's transport has no sockets and is left alone.
    """
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 — pyproject.toml names the version
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _Backend()  # noqa: SLF001 — as above
    return client


class _Body:
    """The bytes of one answer as they arrive.

    Raises UnreadAnswerError for compression or excess length.
    """

    def __init__(self, who: str, response: httpx.Response, max_bytes: int) -> None:
        self._who, self._response, self._max_bytes = who, response, max_bytes
        self._received = bytearray()
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding != "identity" and not _is_bodiless(response):
            # A few bytes could decompress to gigabytes.
            raise UnreadAnswerError(f"{who} sent a compressed answer, which was not asked for.")

    def add(self, part: bytes) -> None:
        self._received += part
        if len(self._received) > self._max_bytes:
            raise UnreadAnswerError(f"{self._who} sent more than {self._max_bytes:,} bytes.")

    def whole(self) -> httpx.Response:
        return httpx.Response(
            self._response.status_code,
            headers=self._response.headers,
            content=bytes(self._received),
            request=self._response.request,
            extensions=self._response.extensions,
        )


def _is_bodiless(response: httpx.Response) -> bool:
    """Do the headers describe a body that is not sent?"""
    return response.request.method == "HEAD" or response.status_code in {204, 304}


def _why(failure: Exception) -> str:
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if "expired" in cause.verify_message:
                return "has a certificate that has expired, or the clock here is wrong."
            return (
                f"has a certificate that is not trusted: {cause.verify_message}. If it is "
                "yours, name the file of its"
                " authority in SSL_CERT_FILE."
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(failure, TimeoutError | httpx.ReadTimeout | httpx.WriteTimeout):
        return "did not answer in time."
    if isinstance(failure, httpx.DecodingError):
        return "sent an answer that cannot be decompressed."
    return "cannot be reached. Is it running?"


def _left(timeout: float | None, late: type[Exception]) -> float | None:
    """The seconds one wait may take. Raises `late` if the exchange has none left."""
    ends_at = _ends_at.get(None)
    if ends_at is None:
        return timeout
    left = ends_at - time.monotonic()
    if left <= 0:
        raise late("The exchange took too long.")
    return left if timeout is None else min(timeout, left)


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
