"""The rules of the service provider's clients: what is asked, how an answer is read, when the same
question is sent again. No I/O and no clock: `verifier` and `async_verifier` bring both.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

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

from .errors import RefusedError, RegistryError, error_from
from .http1 import Answer
from .registry_http import new_key, retry_after
from .server_nonces import read_nonce

TIMEOUT_SECONDS: Final = 5.0
MAX_ANSWER_BYTES: Final = 1_048_576
MAX_BATCH: Final = 256
MAX_BATCH_BYTES: Final = 1_048_576
# An answer of verify is below 4 kB, and a batch has at most 256.
MAX_BATCH_ANSWER_BYTES: Final = 4 * 1_048_576
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
_OK: Final = 200
_CONFLICT: Final = 409
_SERVER_ERROR: Final = 500
# Mistakes that the agent or the service provider can fix. Everything else that is not an answer is
# a fault on our side and must be reported as one.
_CALLERS_MISTAKES: Final = (InvalidRequestError, IdempotencyMismatchError)
_NO_FIELDS: Final = frozenset({"valid", "error", "reason"})
# Built once: json.dumps makes a new encoder if it is given any option.
_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode


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
class Question:
    """One question of a batch, as the arguments of `verify`. The repr hides token and proof."""

    token: str = field(repr=False)
    proof: str = field(repr=False)
    method: str
    url: str
    action: Action | None = None
    idempotency_key: str | None = None
    dry_run: bool = False

    def to_json(self) -> dict[str, object]:
        """The wire form. Raises RefusedError for what is too long for any registry."""
        _check_lengths(self.token, self.proof, self.url)
        body: dict[str, object] = {
            "token": self.token,
            "proof": self.proof,
            "method": self.method,
            "url": self.url,
        }
        if self.action is not None:
            body["action"] = self.action.to_json()
        if self.idempotency_key is not None:
            body["idempotency_key"] = self.idempotency_key
        if self.dry_run:
            body["dry_run"] = True
        return body


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to verify, in the bytes that each try sends. The repr hides token and proof."""

    content: bytes = field(repr=False)
    name: str
    began: float


class UnknownOutcomeError(TemporarilyUnavailableError):
    """All tries failed, so the outcome is unknown: verify may have debited, or done nothing.

    Do not act. For 45 s after the first try, `ask_again(error)` of the client can retrieve the same
    answer; a yes may then be acted upon. If the caller does not, a debited operation stays undone:
    when the agent retries it under its key, verify answers `repeated`, which means allowed, not
    carried out.
    """

    def __init__(self, description: str, question: Asked) -> None:
        super().__init__(description, retry_after=1)
        self.question = question


def asked(question: Question, now: float) -> Asked:
    """The question as it is sent. Raises RefusedError, or InvalidRequestError if it is too long."""
    content = _ENCODE(question.to_json()).encode()
    if len(content) > MAX_BODY_BYTES:
        raise InvalidRequestError("The request is too long to be checked.")
    # A new key for this one request, different from the agent's (protocol section 8): with it the
    # registry repeats its first answer, although the proof is spent by then.
    return Asked(content, new_key(), now)


class Tries:
    """The tries of one question: the same bytes are sent until the decision is known.

    1. A lost answer, a 5xx and "still running" may each hide a committed yes, debit included.
    2. After one of these, only a decision, or the refusal of the question itself, settles the
    outcome: any other answer is about this try alone.
    """

    def __init__(self, question: Asked, now: float) -> None:
        """Times are those of a monotonic clock. Raises nothing."""
        self._question = question
        self._end = min(now + _ASKS_FOR_SECONDS, question.began + _KEPT_FOR_SECONDS)
        self._tried = 0
        self._unknown: Exception | None = None

    def take(self, outcome: Answer | TemporarilyUnavailableError, now: float) -> Allowed | float:
        """The decision, or the seconds after which to send the question again.

        Raises RefusedError for a no, UnknownOutcomeError after the last try, and what else `verify`
        raises.
        """
        pause = 0.0
        if isinstance(outcome, Answer):
            try:
                return decision(_read(outcome))
            except (RefusedError, *_CALLERS_MISTAKES):
                raise
            except AgentAuthError as error:
                if self._unknown is None and not _leaves_open(outcome.status):  # 2
                    raise
                self._unknown = error
            pause = _pause(retry_after({"Retry-After": outcome.headers.get("retry-after", "")}))
        else:
            if self._unknown is not None:
                pause = _pause(None)
            self._unknown = outcome  # 1
        self._tried += 1
        if self._tried == _TRIES or now + pause > self._end:
            raise UnknownOutcomeError(
                f"The decision of verify is unknown: {self._unknown}", self._question
            ) from self._unknown
        return pause


def check_in_time(error: UnknownOutcomeError, now: float) -> None:
    """Raises `error` again if it is too late to learn its outcome."""
    if now - error.question.began > _KEPT_FOR_SECONDS:
        raise error


def decision(body: Mapping[str, object]) -> Allowed:
    """The decision in a body whose `valid` is true or false. Raises RefusedError for a no."""
    if body["valid"] is True:
        return Allowed.of(body)
    reason = body.get("reason")
    fields = {name: body[name] for name in body.keys() - _NO_FIELDS}
    raise RefusedError(
        str(body.get("error", "")), reason if isinstance(reason, str) else None, fields
    )


class Batch:
    """Many questions in one call. A question too long for any registry is refused here."""

    def __init__(self, questions: Sequence[Question]) -> None:
        """Raises InvalidRequestError if there are none or too many, in number or in bytes."""
        if not 1 <= len(questions) <= MAX_BATCH:
            raise InvalidRequestError(
                f"Ask 1 to {MAX_BATCH} questions in one batch, not {len(questions)}."
            )
        self._results: list[Allowed | AgentAuthError | None] = []
        bodies = []
        for each in questions:
            try:
                bodies.append(each.to_json())
                self._results.append(None)
            except RefusedError as error:
                self._results.append(error)
        self.content = _ENCODE({"requests": bodies}).encode() if bodies else b""
        if len(self.content) > MAX_BATCH_BYTES:
            raise InvalidRequestError(
                f"The batch must be at most {MAX_BATCH_BYTES:,} bytes. Ask fewer questions at once."
            )

    def results(self, answer: Answer | None) -> list[Allowed | AgentAuthError]:
        """A decision or an error per question, in order; `answer` is None if `content` is empty.

        Raises TemporarilyUnavailableError, InvalidRequestError or RegistryError if there are no
        decisions.
        """
        told = [] if answer is None else _read_batch(answer)
        if len(told) != self._results.count(None):
            raise _no_answer()
        others = iter(told)
        return [_result(next(others)) if each is None else each for each in self._results]


def _read_batch(answer: Answer) -> list[object]:
    body = _body(answer, MAX_BATCH_ANSWER_BYTES)
    if answer.status != _OK:
        raise _refusal(answer.status, body)
    results = body.get("results")
    if not isinstance(results, list):
        raise _no_answer()
    return results


def _result(told: object) -> Allowed | AgentAuthError:
    """One result of a batch. Everything but `valid: true` is an error, so never a yes."""
    if not isinstance(told, dict):
        return _no_answer()
    if told.get("valid") is True or told.get("valid") is False:
        try:
            return decision(told)
        except RefusedError as error:
            return error
    refusal = error_from(_CONFLICT, told)
    return refusal if isinstance(refusal, _CALLERS_MISTAKES) else _no_answer()


def _check_lengths(token: str, proof: str, url: str) -> None:
    """Refuse what is too long for any registry, in the words of verify. Raises RefusedError."""
    if len(token) > MAX_JWS_BYTES:
        raise RefusedError("invalid_token", "malformed", {})
    if len(proof) > MAX_JWS_BYTES:
        raise RefusedError("invalid_dpop_proof", "malformed", {})
    if len(url) > MAX_JWS_BYTES:
        # A proof that names this URL would be too long.
        raise RefusedError("invalid_dpop_proof", "url", {})


def _read(answer: Answer) -> dict[str, object]:
    """The decision in an answer.

    Raises InvalidRequestError and IdempotencyMismatchError, RegistryError for other refusals and
    broken answers, TemporarilyUnavailableError for everything that is no decision yet.
    """
    body = _body(answer, MAX_ANSWER_BYTES)
    if answer.status != _OK:
        raise _refusal(answer.status, body)
    # By identity: 1, "true" or a missing member is no decision.
    if body.get("valid") is True or body.get("valid") is False:
        return body
    raise _no_answer()


def _body(answer: Answer, max_bytes: int) -> dict[str, object]:
    try:
        return read_object(answer.body, max_bytes=max_bytes)
    except EncodingError as error:
        raise _no_answer() from error


def _refusal(status: int, body: Mapping[str, object]) -> AgentAuthError:
    refusal = error_from(status, body)
    if isinstance(refusal, (*_CALLERS_MISTAKES, TemporarilyUnavailableError)):
        return refusal
    if isinstance(refusal, IdempotencyInProgressError):
        # Our own first try is still running.
        return _no_answer()
    # Wrong credentials, our rate limit or a defect: the agent did nothing wrong and must not be
    # told so.
    return RegistryError(
        f"Verify answered {status} {refusal.code}: {refusal.description}", status=status
    )


def _leaves_open(status: int) -> bool:
    """Could the question have been decided although no decision was read?"""
    return status in {_OK, _CONFLICT} or status >= _SERVER_ERROR


def _pause(wanted: int | None) -> float:
    """As long as the registry asks, at most 2 s since an agent is waiting, with jitter against a
    thundering herd.
    """
    seconds = _PAUSE_SECONDS if wanted is None else min(wanted, _LONGEST_PAUSE_SECONDS)
    return seconds + random.uniform(0, 0.25)  # noqa: S311 — spreads load, keeps no secret


def _no_answer() -> TemporarilyUnavailableError:
    return TemporarilyUnavailableError(
        "The registry gave no decision. Try again shortly.", retry_after=1
    )
