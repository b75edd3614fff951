"""One HTTP request to an untrusted server, with limits on its total time and its answer's size."""

import asyncio
import contextlib
import functools
import ipaddress
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final

import httpx

AddressRule = Callable[[ipaddress.IPv4Address | ipaddress.IPv6Address], bool]

# How many addresses of a host are tried, if the first ones do not answer.
MAX_ADDRESSES: Final = 3
_PORTS: Final = {"http": 80, "https": 443}


class NoAnswerError(Exception):
    """No answer came. Holds only the error's class name: its text may quote the traffic."""


class AddressRefusedError(NoAnswerError):
    """The host's name resolved to an address to which the caller does not connect."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes


def post(
    url: str,
    body: bytes,
    *,
    through_proxies: bool,
    seconds: float,
    max_bytes: int,
    headers: Mapping[str, str] | None = None,
    may_connect: AddressRule | None = None,
) -> Answer | None:
    """POST and return the answer, or None if it is longer than `max_bytes`.

    Raises NoAnswerError, after `seconds` at the latest. `through_proxies` uses the environment's
    proxies. With `may_connect`, the host's name is resolved once, all its addresses must be
    allowed, and the connection goes to one of them: a name that resolves differently the next time
    changes nothing. Raises AddressRefusedError otherwise.
    """
    if through_proxies and may_connect is not None:
        raise ValueError("A proxy resolves names itself: `may_connect` could not be held.")
    try:
        return _run(
            _post(
                httpx.URL(url),
                body,
                headers={"Accept-Encoding": "identity"} | dict(headers or {}),
                may_connect=may_connect,
                through_proxies=through_proxies,
                seconds=seconds,
                max_bytes=max_bytes,
            )
        )
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
        # TimeoutError is an OSError; an unencodable host name raises UnicodeError.
        raise NoAnswerError(type(error).__name__) from None


async def _post(
    url: httpx.URL,
    body: bytes,
    *,
    headers: Mapping[str, str],
    may_connect: AddressRule | None,
    through_proxies: bool,
    seconds: float,
    max_bytes: int,
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
    ):
        if may_connect is None:
            return await _exchange(client, url, body, headers, {}, max_bytes)
        host = url.raw_host.decode("ascii")
        # The server's name still goes into the Host header and into the check of its certificate.
        named = {"Host": url.netloc.decode("ascii")} | dict(headers)
        addresses = await _resolve(host, url.port or _PORTS[url.scheme], may_connect)
        for address in addresses[:-1]:
            with contextlib.suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await _exchange(
                    client,
                    url.copy_with(host=address),
                    body,
                    named,
                    {"sni_hostname": host, "timeout": _short(seconds)},
                    max_bytes,
                )
        there = url.copy_with(host=addresses[-1])
        return await _exchange(client, there, body, named, {"sni_hostname": host}, max_bytes)


async def _exchange(
    client: httpx.AsyncClient,
    url: httpx.URL,
    body: bytes,
    headers: Mapping[str, str],
    extensions: dict[str, object],
    max_bytes: int,
) -> Answer | None:
    async with client.stream(
        "POST", url, content=body, headers=headers, extensions=extensions
    ) as response:
        received = bytearray()
        # Read raw bytes: a compressed answer could unpack to any size.
        async for part in response.aiter_raw():
            received += part
            if len(received) > max_bytes:
                return None
        return Answer(
            response.status_code, response.headers.get("Content-Type", ""), bytes(received)
        )


async def _resolve(host: str, port: int, may_connect: AddressRule) -> list[str]:
    """At most MAX_ADDRESSES addresses of the host. Raises AddressRefusedError, OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    for each in addresses:
        # With a scope (fe80::1%eth0) it is an address of a link.
        if "%" in each or not may_connect(ipaddress.ip_address(each)):
            raise AddressRefusedError("AddressRefusedError")
    return addresses[:MAX_ADDRESSES]


def _short(seconds: float) -> dict[str, float]:
    """Leave time for the host's other addresses if this one does not answer."""
    return {"connect": seconds / MAX_ADDRESSES, "read": seconds, "write": seconds, "pool": seconds}


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
