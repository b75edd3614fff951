"""One call to a service provider: retried where safe, each try with a new proof; no redirects."""

from dataclasses import dataclass
from typing import Any, Final, Protocol

import httpx

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError

from .exchange import answering
from .nonces import ServerNonce
from .registry_client import ATTEMPTS, new_key, open_client, pause, retry_after

# Seconds. A shorter Retry-After is waited for; a longer one is for the caller to decide.
LONGEST_WAIT_SECONDS: Final = 10
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Signing(Protocol):
    """Makes the headers for one try."""

    async def __call__(self, nonce: str | None, *, fresh_token: bool) -> dict[str, str]: ...


async def send(
    sign: Signing,
    method: str,
    url: str,
    *,
    json: Any,
    idempotency_key: str | None,
    server_nonce: ServerNonce,
    transport: httpx.AsyncBaseTransport | None,
) -> httpx.Response:
    """Send until there is a final answer.

    Raises TemporarilyUnavailableError if none came, or none that can be decompressed. At most four
    tries; a retry with a nonce or fresh token that an answer asked for is not counted. The service
    provider's answer may have any size: httpx reads it whole, decompresses it, and waits 10 s for
    each part.
    """
    headers = {"Accept": "application/json"}
    if idempotency_key or method.upper() not in _SAFE:
        # The same key for all tries: a try whose answer was lost must not act twice.
        headers["Idempotency-Key"] = idempotency_key or new_key()
    hints = _Hints(server_nonce)
    response: httpx.Response | None = None
    lost = TemporarilyUnavailableError()
    attempt = 0
    while True:
        hints.sent = server_nonce.latest
        try:
            signed = await sign(hints.sent, fresh_token=hints.fresh_token)
        except AgentAuthError:
            # Without a new token, the service provider's last answer is final.
            if response is None or not hints.fresh_token:
                raise
            return response
        try:
            with answering("The service provider"):
                async with open_client(url, transport) as client:
                    response = await client.request(
                        method, url, json=json, headers={**headers, **signed}
                    )
        except TemporarilyUnavailableError as error:
            response, lost = None, error
        asked = retry_after(response.headers) if response is not None else None
        if response is not None and hints.take(response):
            continue
        if response is not None and not _heals(response, asked):
            return response
        attempt += 1
        if attempt == ATTEMPTS:
            break
        await pause(attempt - 1, asked)
    if response is None:
        raise lost
    return response


@dataclass(slots=True)
class _Hints:
    """What earlier answers require in the next proof."""

    server_nonce: ServerNonce
    # The nonce of the last try.
    sent: str | None = None
    nonce_tried: bool = False
    fresh_token: bool = False

    def take(self, response: httpx.Response) -> bool:
        """Does the answer ask for another proof or token that was not tried yet?"""
        unauthorized = response.status_code == httpx.codes.UNAUTHORIZED
        challenge = response.headers.get("WWW-Authenticate", "") if unauthorized else ""
        refused = 'error="use_dpop_nonce"' in challenge
        fresh = self.server_nonce.take(response.headers, sent=self.sent, refused=refused)
        if refused:
            # Once: a server that refuses its own nonces would cause an endless loop.
            retry = fresh and not self.nonce_tried
            self.nonce_tried = True
            return retry
        # The grant may have changed since the token was issued (its version rose). Retry once.
        retry = 'error="invalid_token"' in challenge and not self.fresh_token
        self.fresh_token = self.fresh_token or retry
        return retry


def _heals(response: httpx.Response, asked: int | None) -> bool:
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return (asked or 0) <= LONGEST_WAIT_SECONDS
    return (
        response.status_code == httpx.codes.TOO_MANY_REQUESTS
        and asked is not None
        and asked <= LONGEST_WAIT_SECONDS
    )
