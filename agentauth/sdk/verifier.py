"""The service provider's client: asks the registry whether one request may pass.

Synchronous; independent of any framework.
"""

import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import httpx

from agentauth.protocol.capability import Action
from agentauth.protocol.encoding import MAX_BODY_BYTES, read_object
from agentauth.protocol.errors import (
    AgentAuthError,
    EncodingError,
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.jose import MAX_BYTES as MAX_JWS_BYTES

from .addresses import check_registry_url, is_loopback
from .errors import RefusedError, RegistryError, error_from
from .exchange import ask_blocking, hold_to_time
from .nonces import read_nonce
from .registry_client import new_key, registry_at, retry_after, ssl_context

TIMEOUT_SECONDS: Final = 5.0
# Tries per question. Under one Idempotency-Key a lost answer can be requested again.
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 2.0
# Seconds after the first try in which another may begin. With its timeout, the last one ends within
# the 20 s in which the registry still knows the outcome of the first try, or decides the call again
# (protocol section 8).
_ASKS_FOR_SECONDS: Final = 12.0
# Seconds after the first try in which `ask_again` may ask. The registry keeps an answer for 60 s;
# two hosts' clocks may each be 5 s off, and the network takes time. A later answer says nothing
# about the first try: its proof is too old by then, or a replay.
_KEPT_FOR_SECONDS: Final = 45.0
_MAX_ANSWER_BYTES: Final = 1_048_576
# Mistakes that the agent or the service provider can fix. Everything else that is not an answer is
# a fault on our side and must be reported as one.
_CALLERS_MISTAKES: Final = (InvalidRequestError, IdempotencyMismatchError)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Verify allowed exactly this request. `answer` is the whole answer (protocol section 8).

    With `repeated`, the agent's operation was allowed before: do not act again, answer with the
    stored result.
    """

    decision_id: str
    agent_id: str
    agent_name: str
    subject: str
    grant_id: str
    repeated: bool = False
    nonce: str | None = None
    answer: Mapping[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Self:
        """Read an answer whose `valid` is true."""
        agent = body.get("agent")
        known = agent if isinstance(agent, Mapping) else {}
        return cls(
            decision_id=str(body.get("decision_id", "")),
            agent_id=str(known.get("id", "")),
            agent_name=str(known.get("name", "")),
            subject=str(body.get("subject", "")),
            grant_id=str(body.get("grant_id", "")),
            # Anything but false counts as repeated: acting twice is worse than not acting.
            repeated=body.get("repeated", False) is not False,
            nonce=read_nonce(body.get("nonce")),
            answer=body,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to verify, in the bytes that each try sends. The repr hides token and proof."""

    content: bytes = field(repr=False)
    name: str
    began: float


class UnknownOutcomeError(TemporarilyUnavailableError):
    """All tries failed, so the outcome is unknown: verify may have debited, or done nothing.

    Do not act. For 45 s after the first try, `VerifierClient.ask_again(error)` can retrieve the
    same answer; a yes may then be acted upon. If the caller does not, a debited operation stays
    undone: when the agent retries it under its key, verify answers `repeated`, which means allowed,
    not carried out.
    """

    def __init__(self, description: str, question: Asked) -> None:
        super().__init__(description, retry_after=1)
        self.question = question


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
        self._auth = httpx.BasicAuth(client_id, client_secret)
        self._timeout = timeout
        self._transport = transport
        self._client: httpx.Client | None = None
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
        _check_lengths(token, proof, url)
        body: dict[str, object] = {"token": token, "proof": proof, "method": method, "url": url}
        if action is not None:
            body["action"] = action.to_json()
        if idempotency_key is not None:
            body["idempotency_key"] = idempotency_key
        if dry_run:
            body["dry_run"] = True
        content = json.dumps(body).encode()
        if len(content) > MAX_BODY_BYTES:
            raise InvalidRequestError("The request is too long to be checked.")
        # A new key for this one request, different from the agent's (protocol section 8): with it
        # the registry repeats its first answer, although the proof is spent by then.
        return self._decided(Asked(content, new_key(), time.monotonic()))

    def ask_again(self, error: UnknownOutcomeError) -> Allowed:
        """Ask the same question again under its key; returns and raises as `verify`.

        Raises `error` again, without asking, if it is too late to learn the outcome.
        """
        if time.monotonic() - error.question.began > _KEPT_FOR_SECONDS:
            raise error
        return self._decided(error.question)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> httpx.Client:
        # Opened at the first call, not at import: processes forked later must not share sockets.
        with self._lock:
            if self._client is None:
                self._client = hold_to_time(
                    httpx.Client(
                        auth=self._auth,
                        timeout=self._timeout,
                        verify=ssl_context(),
                        follow_redirects=False,
                        trust_env=not is_loopback(self.registry_url),
                        transport=self._transport,
                    )
                )
            return self._client

    def _decided(self, question: Asked) -> Allowed:
        answer = self._ask(question)
        if answer["valid"] is True:
            return Allowed.of(answer)
        reason = answer.get("reason")
        error = str(answer.get("error", ""))
        fields = {name: answer[name] for name in answer.keys() - {"valid", "error", "reason"}}
        raise RefusedError(error, reason if isinstance(reason, str) else None, fields)

    def _post(self, question: Asked) -> httpx.Response:
        """One try. Raises TemporarilyUnavailableError if there is no readable answer."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": question.name}
        return ask_blocking(
            self._open(),
            "POST",
            f"{self.registry_url}/v1/verify",
            who=registry_at(self.registry_url),
            seconds=self._timeout,
            max_bytes=_MAX_ANSWER_BYTES,
            headers=headers,
            content=question.content,
        )

    def _ask(self, question: Asked) -> dict[str, object]:
        """Send the same bytes until the decision is known.

        1. A lost answer, a 5xx and "still running" may each hide a committed yes, debit included.
        2. After one of these, only a decision, or the refusal of the question itself, settles the
        outcome: any other answer is about this try alone.
        """
        end = min(time.monotonic() + _ASKS_FOR_SECONDS, question.began + _KEPT_FOR_SECONDS)
        unknown: Exception | None = None
        for tried in range(1, _TRIES + 1):
            pause = 0.0
            try:
                response = self._post(question)
            except TemporarilyUnavailableError as error:
                if unknown is not None:
                    pause = _pause(None)
                unknown = error  # 1
            else:
                try:
                    return _read(response)
                except _CALLERS_MISTAKES:
                    raise
                except AgentAuthError as error:
                    if unknown is None and not _leaves_open(response.status_code):  # 2
                        raise
                    unknown = error
                pause = _pause(retry_after(response.headers))
            if tried == _TRIES or time.monotonic() + pause > end:
                break
            time.sleep(pause)
        raise UnknownOutcomeError(
            f"The decision of verify is unknown: {unknown}", question
        ) from unknown


def _check_lengths(token: str, proof: str, url: str) -> None:
    """Refuse what is too long for any registry, in the words of verify. Raises RefusedError."""
    if len(token) > MAX_JWS_BYTES:
        raise RefusedError("invalid_token", "malformed", {})
    if len(proof) > MAX_JWS_BYTES:
        raise RefusedError("invalid_dpop_proof", "malformed", {})
    if len(url) > MAX_JWS_BYTES:
        # A proof that names this URL would be too long.
        raise RefusedError("invalid_dpop_proof", "url", {})


def _read(response: httpx.Response) -> dict[str, object]:
    """The decision in an answer.

    Raises InvalidRequestError and IdempotencyMismatchError, RegistryError for other refusals and
    broken answers, TemporarilyUnavailableError for everything that is no decision yet.
    """
    try:
        body = read_object(response.content, max_bytes=_MAX_ANSWER_BYTES)
    except EncodingError as error:
        raise _no_answer() from error
    if response.status_code == httpx.codes.OK:
        # By identity: 1, "true" or a missing member is no decision.
        if body.get("valid") is True or body.get("valid") is False:
            return body
        raise _no_answer()
    refusal = error_from(response.status_code, body)
    if isinstance(refusal, (*_CALLERS_MISTAKES, TemporarilyUnavailableError)):
        raise refusal
    if isinstance(refusal, IdempotencyInProgressError):
        # Our own first try is still running.
        raise _no_answer()
    # Wrong credentials, our rate limit or a defect: the agent did nothing wrong and must not be
    # told so.
    raise RegistryError(
        f"Verify answered {response.status_code} {refusal.code}: {refusal.description}",
        status=response.status_code,
    )


def _leaves_open(status: int) -> bool:
    """Could the question have been decided although no decision was read?"""
    return (
        status in {httpx.codes.OK, httpx.codes.CONFLICT}
        or status >= httpx.codes.INTERNAL_SERVER_ERROR
    )


def _pause(asked: int | None) -> float:
    """As long as the registry asks, at most 2 s since an agent is waiting, with jitter against a
    thundering herd.
    """
    seconds = _PAUSE_SECONDS if asked is None else min(asked, _LONGEST_PAUSE_SECONDS)
    return seconds + random.uniform(0, 0.25)  # noqa: S311 — spreads load, keeps no secret


def _no_answer() -> TemporarilyUnavailableError:
    return TemporarilyUnavailableError(
        "The registry gave no decision. Try again shortly.", retry_after=1
    )
