"""What calls of the registry share: limits, retries, and how a refusal is read."""

import asyncio
import functools
import random
import secrets
import ssl
import uuid
from collections.abc import Mapping
from typing import Final

import httpx

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError

from .bounded_http import MAX_ANSWER_BYTES
from .errors import RegistryError, error_from
from .url_checks import is_loopback

ATTEMPTS: Final = 4
# Seconds. If the server asks for a longer wait, the caller gets its answer instead.
LONGEST_WAIT_SECONDS: Final = 30
TIMEOUT_SECONDS: Final = 10
_JTI_BYTES: Final = 16
# 429 codes that no short wait resolves: a human has to act, or hours to pass.
_NOT_HEALED_BY_WAITING: Final = frozenset({"too_many_pending_grants", "cooldown_active"})


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """The trusted certificate authorities: the system's, or those in SSL_CERT_FILE or SSL_CERT_DIR,
    also for a registry on loopback.

    Cached, because reading them takes longer than a whole call.
    """
    return httpx.create_ssl_context()


def open_client(
    url: str, transport: httpx.AsyncBaseTransport | None, timeout: float = TIMEOUT_SECONDS
) -> httpx.AsyncClient:
    """A client for one exchange with the host of `url`.

    It follows no redirect, since a proof names one URL. One connection per exchange: calls are rare
    (tokens are cached), nothing needs closing, and one AgentAuthClient can serve several event
    loops. Proxies from the environment never see a loopback call.
    """
    return httpx.AsyncClient(
        transport=transport,
        verify=ssl_context(),
        follow_redirects=False,
        trust_env=not is_loopback(url),
        timeout=httpx.Timeout(TIMEOUT_SECONDS, read=timeout),
    )


def new_jti() -> str:
    """A proof's id: 128 random bits."""
    return secrets.token_urlsafe(_JTI_BYTES)


def new_key() -> str:
    """An Idempotency-Key: one per operation, the same for all its tries."""
    return str(uuid.uuid4())


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Seconds of a `Retry-After` header; None if it is absent or a date."""
    value = headers.get("Retry-After", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) <= 9 else None  # noqa: PLR2004 — no overflow


async def pause(attempt: int, asked: int | None) -> None:
    """Wait before the next try: as long as the server asks, else with backoff; with jitter."""
    seconds = asked if asked is not None else 0.25 * 2**attempt
    await asyncio.sleep(seconds + random.uniform(0, 0.25))  # noqa: S311 — spreads load, keeps no secret


def heals(status: int, error: AgentAuthError) -> bool:
    """Whether the same request may succeed after a short wait."""
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return error.code not in _NOT_HEALED_BY_WAITING
    return status == httpx.codes.SERVICE_UNAVAILABLE or error.code == "idempotency_in_progress"


def registry_at(url: str) -> str:
    """The subject of an error message about the registry at `url`."""
    return f"The registry at {url}"


def read_answer(response: httpx.Response) -> dict[str, object]:
    """The JSON object of an answer; empty if it has no body. Raises RegistryError."""
    if response.status_code == httpx.codes.NO_CONTENT or not response.content:
        return {}
    try:
        return read_object(response.content, max_bytes=MAX_ANSWER_BYTES)
    except EncodingError as error:
        raise RegistryError(
            f"The registry's answer could not be read: {error.description}",
            status=response.status_code,
        ) from error


def refusal(response: httpx.Response) -> AgentAuthError:
    """The error that an answer other than 2xx means."""
    if response.is_redirect:
        # Following it would send a proof for one address to another.
        return RegistryError(
            "The registry answered with a redirect to "
            f"{response.headers.get('Location', '')[:200]!r}, which is never"
            " followed. Use the registry's own address.",
            status=response.status_code,
        )
    try:
        body = read_answer(response)
    except RegistryError:
        body = {}
    return error_from(response.status_code, body)
