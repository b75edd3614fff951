"""The service provider's client for asyncio: `VerifierClient` with coroutines.

It has the same rules (`verifier_core`), the same limits and the same errors.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol, Self

import httpx

from agentauth.protocol.capability import Action
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError

from .async_verify_connections import AsyncConnections, AsyncHttpxExchanges
from .http1 import Answer
from .registry_http import ssl_context
from .url_checks import check_registry_url
from .verifier_core import (
    MAX_ANSWER_BYTES,
    MAX_BATCH_ANSWER_BYTES,
    TIMEOUT_SECONDS,
    Allowed,
    Asked,
    Batch,
    Question,
    Tries,
    UnknownOutcomeError,
    asked,
    check_in_time,
)
from .verify_connections import uses_proxy


class _Exchanges(Protocol):
    async def post(
        self, content: bytes, *, key: str | None, batch: bool, seconds: float, max_bytes: int
    ) -> Answer: ...

    async def close(self) -> None: ...


class AsyncVerifierClient:
    """Asks one registry as one service provider; `close` frees its connections.

    For the tasks of one event loop at a time. `timeout` is in seconds, for one try from resolving
    the host name to the last byte of the answer.
    """

    def __init__(
        self,
        registry_url: str,
        client_id: str,
        client_secret: str,
        *,
        timeout: float = TIMEOUT_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.registry_url = check_registry_url(registry_url)
        self._credentials = (client_id, client_secret)
        self._timeout = timeout
        self._transport = transport
        self._exchanges: _Exchanges | None = None

    async def verify(
        self,
        *,
        token: str,
        proof: str,
        method: str,
        url: str,
        action: Action | None = None,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Allowed:
        """`VerifierClient.verify` as a coroutine: the same arguments, answers and errors."""
        question = Question(token, proof, method, url, action, idempotency_key, dry_run)
        return await self._decided(asked(question, time.monotonic()))

    async def verify_batch(self, questions: Sequence[Question]) -> list[Allowed | AgentAuthError]:
        """`VerifierClient.verify_batch` as a coroutine."""
        batch = Batch(questions)
        if not batch.content:
            return batch.results(None)
        answer = await self._open().post(
            batch.content,
            key=None,
            batch=True,
            seconds=self._timeout,
            max_bytes=MAX_BATCH_ANSWER_BYTES,
        )
        return batch.results(answer)

    async def ask_again(self, error: UnknownOutcomeError) -> Allowed:
        """`VerifierClient.ask_again` as a coroutine."""
        check_in_time(error, time.monotonic())
        return await self._decided(error.question)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        exchanges, self._exchanges = self._exchanges, None
        if exchanges is not None:
            await exchanges.close()

    def _open(self) -> _Exchanges:
        if self._exchanges is None:
            given = (self.registry_url, *self._credentials, lambda: ssl_context())  # noqa: PLW0108 — the seam of tests
            self._exchanges = (
                AsyncHttpxExchanges(*given, self._transport)
                if self._transport is not None or uses_proxy(self.registry_url)
                else AsyncConnections(*given)
            )
        return self._exchanges

    async def _decided(self, question: Asked) -> Allowed:
        tries = Tries(question, time.monotonic())
        while True:
            outcome = await self._try(question)
            decided = tries.take(outcome, time.monotonic())
            if isinstance(decided, Allowed):
                return decided
            await asyncio.sleep(decided)

    async def _try(self, question: Asked) -> Answer | TemporarilyUnavailableError:
        try:
            return await self._open().post(
                question.content,
                key=question.name,
                batch=False,
                seconds=self._timeout,
                max_bytes=MAX_ANSWER_BYTES,
            )
        except TemporarilyUnavailableError as lost:
            return lost
