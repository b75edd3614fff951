"""The agent's side of the registry's HTTP API: each try has its own proof, and a retry has no
second effect.
"""

import json
import time
from collections.abc import Mapping
from typing import Final

import httpx

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidProofError,
    ProofNonceRequiredError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.keys import Signer

from .bounded_http import Params, ask
from .clock_check import ClockWatch, clock_error
from .errors import RegistryError
from .registry_http import (
    ATTEMPTS,
    LONGEST_WAIT_SECONDS,
    TIMEOUT_SECONDS,
    heals,
    new_jti,
    new_key,
    open_client,
    pause,
    read_answer,
    refusal,
    registry_at,
    retry_after,
)
from .server_nonces import ServerNonce

_OK: Final = 200
# Members of an answer that a person opens.
LINKS: Final = ("approval_url", "claim_url")
# Characters of a media type that an error message quotes.
_MEDIA_TYPE: Final = 60


class Registry:
    """Calls one registry as one agent. `transport` is the seam for tests."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        self.transport = transport
        self.nonce = ServerNonce()
        self._clock = ClockWatch()

    async def get(
        self, signer: Signer, path: str, params: Params | None = None, *, wait: int = 0
    ) -> dict[str, object]:
        """Get `path`; with `wait`, as a long poll of that many seconds. Raises AgentAuthError."""
        query = {**(params or {}), **({"wait": wait} if wait else {})}
        _, answer = await self._exchange(signer, "GET", path, query, None, TIMEOUT_SECONDS + wait)
        return answer

    async def post(
        self, signer: Signer, path: str, body: Mapping[str, object]
    ) -> dict[str, object]:
        """Post to `path`. Takes effect once, however many tries it needs. Raises AgentAuthError."""
        answer, _ = await self.create(signer, path, body)
        return answer

    async def create(
        self, signer: Signer, path: str, body: Mapping[str, object]
    ) -> tuple[dict[str, object], bool]:
        """As `post`; also whether the call created what the answer describes (status 201)."""
        status, answer = await self._exchange(
            signer, "POST", path, None, json.dumps(body).encode(), TIMEOUT_SECONDS
        )
        return answer, status == httpx.codes.CREATED

    async def _exchange(
        self,
        signer: Signer,
        method: str,
        path: str,
        params: Params | None,
        body: bytes | None,
        timeout: float,  # noqa: ASYNC109 — the limit of one try; a caller's own limit is asyncio.timeout
    ) -> tuple[int, dict[str, object]]:
        """Send until there is a final answer: its status and its JSON.

        1. Each try has a new proof: the last one may be spent even if its answer was lost. 2. Body
        and Idempotency-Key stay the same bytes, so that the registry sees one operation. 3. Lost
        answers, 503, 429s that a short wait resolves and "still running" are retried. A requested
        nonce is sent at once, one time, and is not counted as a try. Every other answer is final.
        """
        headers = {"Idempotency-Key": new_key(), "Content-Type": "application/json"} if body else {}
        asked_for_nonce = False
        error: AgentAuthError = TemporarilyUnavailableError()
        attempt = 0
        while attempt < ATTEMPTS:
            asked: int | None = None
            nonce = self.nonce.latest
            proof = self._proof(signer, method, path, body, nonce)  # 1
            try:
                async with open_client(self.url, self.transport, timeout) as client:
                    response = await ask(
                        client,
                        method,
                        self.url + path,
                        who=registry_at(self.url),
                        seconds=timeout,
                        params=params or None,
                        content=body,  # 2
                        headers={**headers, "DPoP": proof, "Accept": "application/json"},
                    )
            except TemporarilyUnavailableError as lost:
                error = lost
            else:
                self._clock.see(registry_at(self.url), response.headers)
                if response.is_success:
                    self.nonce.take(response.headers, sent=nonce, refused=False)
                    answer = _with_own_links(self.url, _read_from(self.url, response))
                    return response.status_code, answer
                error = _explained(self.url, response)
                refused = error.code == ProofNonceRequiredError.code
                fresh = self.nonce.take(response.headers, sent=nonce, refused=refused)
                asked = retry_after(response.headers)
                if refused and fresh and not asked_for_nonce:
                    asked_for_nonce = True
                    continue
                if (
                    not heals(response.status_code, error) or (asked or 0) > LONGEST_WAIT_SECONDS
                ):  # 3
                    raise error
            attempt += 1
            if attempt < ATTEMPTS:
                await pause(attempt - 1, asked)
        raise error

    def _proof(
        self, signer: Signer, method: str, path: str, body: bytes | None, nonce: str | None
    ) -> str:
        return make_proof(
            signer,
            method=method,
            url=self.url + path,
            iat=int(time.time()),
            jti=new_jti(),
            body=body,
            nonce=nonce,
        )


def _explained(url: str, response: httpx.Response) -> AgentAuthError:
    """The refusal, with its cause if that is this host's clock or a wrong address."""
    error = refusal(response)
    if error.code == InvalidProofError.code and error.reason == "iat":
        return clock_error(registry_at(url), response.headers) or error
    is_unknown = isinstance(error, RegistryError) and not error.error and not response.is_redirect
    return (_wrong_address(url, response) or error) if is_unknown else error


def _wrong_address(url: str, response: httpx.Response) -> RegistryError | None:
    """The error for an answer that is not JSON, as another server's at a wrong address."""
    media_type = response.headers.get("Content-Type", "").split(";", 1)[0].strip().lower()
    if media_type in {"", "application/json"}:
        return None
    return RegistryError(
        f"{registry_at(url)} answered {response.status_code} with {media_type[:_MEDIA_TYPE]} "
        "instead of JSON. Check that this is the address of an AgentAuth registry.",
        status=response.status_code,
    )


def _with_own_links(url: str, body: dict[str, object]) -> dict[str, object]:
    """The answer. Raises RegistryError if a link for a person leads anywhere but to the registry.

    A registry has one address, for agents and for people: proofs name it.
    """
    rows = body.get("results")
    for row in (body, *(rows if isinstance(rows, list) else ())):
        for name in LINKS:
            link = row.get(name) if isinstance(row, dict) else None
            if isinstance(link, str) and link and not link.startswith(f"{url}/"):
                raise RegistryError(
                    f"{registry_at(url)} named a link at another address: {name} must begin with "
                    f"{url}/. Check the address of the registry, and its PUBLIC_URL.",
                    status=_OK,
                )
    return body


def _read_from(url: str, response: httpx.Response) -> dict[str, object]:
    try:
        return read_answer(response)
    except RegistryError as error:
        raise (_wrong_address(url, response) or error) from error.__cause__
