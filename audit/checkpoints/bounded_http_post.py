"""One HTTP request to an untrusted server, with limits on its total time and its answer's size."""

import asyncio
import functools
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass

import httpx


class NoAnswerError(Exception):
    """No answer came. Holds only the error's class name: its text may quote the traffic."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes


def post(
    url: str, body: bytes, *, through_proxies: bool, seconds: float, max_bytes: int
) -> Answer | None:
    """POST and return the answer, or None if it is longer than `max_bytes`.

    Raises NoAnswerError, after `seconds` at the latest. `through_proxies` uses the environment's
    proxies.
    """
    try:
        return _run(
            _post(url, body, through_proxies=through_proxies, seconds=seconds, max_bytes=max_bytes)
        )
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        # TimeoutError is an OSError; an unencodable host name raises UnicodeError.
        raise NoAnswerError(type(error).__name__) from None


async def _post(
    url: str, body: bytes, *, through_proxies: bool, seconds: float, max_bytes: int
) -> Answer | None:
    async with (
        asyncio.timeout(seconds),
        # Do not follow redirects: the answer would come from another server.
        httpx.AsyncClient(
            verify=_ssl_context(),
            follow_redirects=False,
            trust_env=through_proxies,
            timeout=seconds,
        ) as client,
        client.stream(
            "POST", url, content=body, headers={"Accept-Encoding": "identity"}
        ) as response,
    ):
        received = bytearray()
        # Read raw bytes: a compressed answer could unpack to any size.
        async for part in response.aiter_raw():
            received += part
            if len(received) > max_bytes:
                return None
        return Answer(
            response.status_code, response.headers.get("Content-Type", ""), bytes(received)
        )


def _run(work: Coroutine[object, object, Answer | None]) -> Answer | None:
    """As `asyncio.run`, but does not wait for the thread of a name resolution that timed out."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()
