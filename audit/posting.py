"""One request to a stranger's server: nothing of it outlasts its time, and no more is read than was agreed."""

import asyncio
import functools
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass

import httpx


class NoAnswerError(Exception):
    """The name of the error that came instead: what it says may quote what was sent or received."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes


def post(url: str, body: bytes, *, through_proxies: bool, seconds: float, max_bytes: int) -> Answer | None:
    """The answer, None where it is longer than `max_bytes`. Raises NoAnswerError after `seconds` at the latest.

    `through_proxies`: those that the environment names.
    """
    try:
        return _run(_post(url, body, through_proxies=through_proxies, seconds=seconds, max_bytes=max_bytes))
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        # TimeoutError is an OSError; a name that cannot be asked for is a UnicodeError.
        raise NoAnswerError(type(error).__name__) from None


async def _post(
    url: str, body: bytes, *, through_proxies: bool, seconds: float, max_bytes: int
) -> Answer | None:
    async with (
        asyncio.timeout(seconds),
        # A redirect would be another's answer.
        httpx.AsyncClient(
            verify=_ssl_context(), follow_redirects=False, trust_env=through_proxies, timeout=seconds
        ) as client,
        client.stream("POST", url, content=body, headers={"Accept-Encoding": "identity"}) as response,
    ):
        received = bytearray()
        # As it comes: nothing is unpacked to a size of somebody else's choice.
        async for part in response.aiter_raw():
            received += part
            if len(received) > max_bytes:
                return None
        return Answer(response.status_code, response.headers.get("Content-Type", ""), bytes(received))


def _run(work: Coroutine[object, object, Answer | None]) -> Answer | None:
    """`asyncio.run`, which would wait for a name's resolution that was given up: its thread goes on alone."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()
