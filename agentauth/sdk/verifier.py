"""The service provider's client: asks the registry whether one request may pass.

Synchronous; independent of any framework. `async_verifier` is its twin for asyncio, `verifier_core`
has the rules of both.
"""

import threading
import time
from collections.abc import Sequence
from typing import Self

import httpx

from agentauth.protocol.capability import Action
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError

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
from .verify_connections import Connections, Exchanges, HttpxExchanges, uses_proxy

__all__ = ["Allowed", "Asked", "Question", "UnknownOutcomeError", "VerifierClient"]


class VerifierClient:
    """Asks one registry as one service provider. Thread-safe; `close` frees its connections.

    `timeout` is in seconds, for one try from connecting to the last byte of the answer.
    """

    def __init__(
        self,
        registry_url: str,
        client_id: str,
        client_secret: str,
        *,
        timeout: float = TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.registry_url = check_registry_url(registry_url)
        self._credentials = (client_id, client_secret)
        self._timeout = timeout
        self._transport = transport
        self._exchanges: Exchanges | None = None
        self._lock = threading.Lock()

    def verify(
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
        """May the holder of `token`, who made `proof` for `method` and `url`, do `action` now?

        `url` is the service provider's own address for the request, never taken from its Host
        header: a caller chooses that header and could replay a proof made for another host.
        `idempotency_key` is the agent's own, from its header of that name. Without `action` only
        token, proof, windows and presence are checked.

        Raises RefusedError for a no, InvalidRequestError and IdempotencyMismatchError for a
        question that cannot be answered, and TemporarilyUnavailableError for everything that is not
        an answer: never treat it as a yes. UnknownOutcomeError is one of these; see there if
        `action` costs something.
        """
        question = Question(token, proof, method, url, action, idempotency_key, dry_run)
        return self._decided(asked(question, time.monotonic()))

    def verify_batch(self, questions: Sequence[Question]) -> list[Allowed | AgentAuthError]:
        """Ask 1 to 256 questions in one call (docs/protocol.md section 8).

        Returns a decision or an error per question, in order: act only on an `Allowed`. The errors
        are those that `verify` raises; TemporarilyUnavailableError means that this question was not
        decided, and its proof may be spent.

        Raises TemporarilyUnavailableError, InvalidRequestError or RegistryError if the whole batch
        has no answer. It is sent once: a second try would find the proofs spent.
        """
        batch = Batch(questions)
        if not batch.content:
            return batch.results(None)
        answer = self._open().post(
            batch.content,
            key=None,
            batch=True,
            seconds=self._timeout,
            max_bytes=MAX_BATCH_ANSWER_BYTES,
        )
        return batch.results(answer)

    def ask_again(self, error: UnknownOutcomeError) -> Allowed:
        """Ask the same question again under its key; returns and raises as `verify`.

        Raises `error` again, without asking, if it is too late to learn the outcome.
        """
        check_in_time(error, time.monotonic())
        return self._decided(error.question)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            exchanges, self._exchanges = self._exchanges, None
        if exchanges is not None:
            exchanges.close()

    def _open(self) -> Exchanges:
        # Opened at the first call, not at import: processes forked later must not share sockets.
        if (found := self._exchanges) is not None:
            return found
        with self._lock:
            if self._exchanges is None:
                given = (self.registry_url, *self._credentials, lambda: ssl_context())  # noqa: PLW0108 — the seam of tests
                self._exchanges = (
                    HttpxExchanges(*given, self._transport)
                    if self._transport is not None or uses_proxy(self.registry_url)
                    else Connections(*given)
                )
            return self._exchanges

    def _decided(self, question: Asked) -> Allowed:
        tries = Tries(question, time.monotonic())
        while True:
            outcome = self._try(question)
            decided = tries.take(outcome, time.monotonic())
            if isinstance(decided, Allowed):
                return decided
            time.sleep(decided)

    def _try(self, question: Asked) -> Answer | TemporarilyUnavailableError:
        try:
            return self._open().post(
                question.content,
                key=question.name,
                batch=False,
                seconds=self._timeout,
                max_bytes=MAX_ANSWER_BYTES,
            )
        except TemporarilyUnavailableError as lost:
            return lost
