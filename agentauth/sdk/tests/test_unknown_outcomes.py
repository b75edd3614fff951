"""A decision whose answer was lost is retried until it is known; if it stays unknown, the SDK
says so.
"""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from agentauth.protocol.errors import (
    AgentAuthError,
    IdempotencyMismatchError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk import (
    RefusedError,
    RegistryError,
    UnknownOutcomeError,
    VerifierClient,
)
from agentauth.sdk.tests.both_clients import both
from agentauth.sdk.tests.conftest import Clock

__all__ = ["both"]
pytestmark = pytest.mark.usefixtures("both")

URL = "https://registry.example.com"
NAMED: dict[str, Any] = {
    "token": "the-token",
    "proof": "the-proof",
    "method": "POST",
    "url": "https://api.sp.example/x",
    "idempotency_key": "agent-key",
}
YES = {
    "valid": True,
    "decision_id": "d",
    "agent": {"id": "a"},
    "subject": "s",
    "grant_id": "g",
    "limits": {},
}
NO = {"valid": False, "error": "envelope_exceeded", "reason": "budget"}
Said = httpx.Response | Exception


def said(status: int, error: str = "x", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": error, "error_description": "x"}, headers=headers)


def in_progress() -> httpx.Response:
    return said(409, "idempotency_in_progress")


def unavailable(after: str | None = "1") -> httpx.Response:
    return said(503, "temporarily_unavailable", **({"Retry-After": after} if after else {}))


class Registry:
    """Answers in order and then repeats the last answer; each takes this long."""

    def __init__(self, clock: Clock, *answers: Said, seconds: float = 0) -> None:
        self.clock, self.answers, self.seconds = clock, list(answers), seconds
        self.seen: list[httpx.Request] = []
        self.client = VerifierClient(
            URL, "id", "secret", transport=httpx.MockTransport(self._answer)
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        self.clock.now += self.seconds
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        # One answer cannot be read twice.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def asked_one_question(self) -> bool:
        """Whether all requests were identical to the byte, under one idempotency key."""
        return len({(each.content, each.headers["Idempotency-Key"]) for each in self.seen}) == 1


HIDES_A_DECISION = [
    unavailable(),
    unavailable(None),
    in_progress(),
    said(500, "server_error"),
    httpx.Response(502, content=b"<html>"),
    httpx.Response(504),
    httpx.Response(200, content=b'{"valid": tr'),
    httpx.ConnectError("x"),
    httpx.ReadTimeout("x"),
    httpx.RemoteProtocolError("x"),
]


@pytest.mark.parametrize("hidden", HIDES_A_DECISION)
def test_VB_15_what_may_hide_a_yes_is_asked_again_under_the_same_name(
    clock: Clock, hidden: Said
) -> None:
    """The debit is committed and its answer is lost: the second try gets the first answer, not a
    repeat.
    """
    registry = Registry(clock, hidden, httpx.Response(200, json=YES))
    allowed = registry.client.verify(**NAMED)
    assert (allowed.decision_id, allowed.repeated) == ("d", False)
    assert len(registry.seen) == 2
    assert registry.asked_one_question()


def test_a_no_that_was_hidden_is_a_no(clock: Clock) -> None:
    registry = Registry(clock, unavailable(), httpx.Response(200, json=NO))
    with pytest.raises(RefusedError):
        registry.client.verify(**NAMED)
    assert len(registry.seen) == 2


@pytest.mark.parametrize(
    ("answers", "waits"),
    [
        ([unavailable("2")], [2, 2]),
        ([unavailable("0"), in_progress()], [0, 1]),
        # An agent is waiting.
        ([unavailable("30")], [2, 2]),
        ([unavailable(None)], [1, 1]),
        # A connection that just broke is reopened at once.
        ([httpx.ReadTimeout("x")], [0, 1]),
        ([unavailable(), httpx.ReadTimeout("x")], [1, 1]),
    ],
)
def test_it_waits_as_long_as_it_was_asked_within_bounds(
    clock: Clock, answers: list[Said], waits: list[int]
) -> None:
    registry = Registry(clock, *answers)
    with pytest.raises(UnknownOutcomeError):
        registry.client.verify(**NAMED)
    assert clock.waits == waits


@pytest.mark.parametrize("hidden", HIDES_A_DECISION)
def test_VB_15_unknown_outcome_is_reported_and_is_not_a_decision(
    clock: Clock, hidden: Said
) -> None:
    registry = Registry(clock, hidden)
    with pytest.raises(UnknownOutcomeError) as unknown:
        registry.client.verify(**NAMED)
    assert isinstance(unknown.value, TemporarilyUnavailableError)
    assert len(registry.seen) == 3
    assert registry.asked_one_question()


def test_no_retry_begins_that_could_end_after_the_outcome_deadline(
    clock: Clock,
) -> None:
    registry = Registry(clock, httpx.ReadTimeout("x"), seconds=5)
    with pytest.raises(UnknownOutcomeError):
        registry.client.verify(**NAMED)
    assert len(registry.seen) == 3
    assert clock.now - 1000 < 20
    registry = Registry(clock, httpx.ReadTimeout("x"), seconds=6.5)
    with pytest.raises(UnknownOutcomeError):
        registry.client.verify(**NAMED)
    assert len(registry.seen) == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (said(400, "invalid_request"), InvalidRequestError),
        (said(409, "idempotency_mismatch"), IdempotencyMismatchError),
        (said(401, "invalid_client"), RegistryError),
        (said(404, "not_found"), RegistryError),
        (said(429, "rate_limited"), RegistryError),
        (said(302), RegistryError),
        (
            httpx.Response(307, headers={"Location": "https://evil.example/"}),
            TemporarilyUnavailableError,
        ),
        (httpx.Response(200, json=NO), RefusedError),
    ],
)
def test_final_answer_is_not_retried(
    clock: Clock, answer: httpx.Response, kind: type[AgentAuthError]
) -> None:
    registry = Registry(clock, answer)
    with pytest.raises(kind):
        registry.client.verify(**NAMED)
    assert len(registry.seen) == 1


@pytest.mark.parametrize(
    "answer",
    [said(401, "invalid_client"), said(404, "not_found"), said(429, "rate_limited"), said(302)],
)
def test_answer_about_a_later_try_does_not_settle_the_first_outcome(
    clock: Clock, answer: httpx.Response
) -> None:
    registry = Registry(clock, unavailable(), answer, httpx.Response(200, json=YES))
    assert registry.client.verify(**NAMED).decision_id == "d"
    registry = Registry(clock, unavailable(), answer)
    with pytest.raises(UnknownOutcomeError):
        registry.client.verify(**NAMED)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (said(400, "invalid_request"), InvalidRequestError),
        (said(409, "idempotency_mismatch"), IdempotencyMismatchError),
    ],
)
def test_refusal_of_the_question_itself_is_final_on_any_try(
    clock: Clock, answer: httpx.Response, kind: type[AgentAuthError]
) -> None:
    registry = Registry(clock, unavailable(), answer)
    with pytest.raises(kind):
        registry.client.verify(**NAMED)
    assert len(registry.seen) == 2


# ---- the service provider retries later


def left_open(clock: Clock, *later: Said) -> tuple[Registry, UnknownOutcomeError]:
    registry = Registry(clock, unavailable(), unavailable(), unavailable(), *later)
    with pytest.raises(UnknownOutcomeError) as unknown:
        registry.client.verify(**NAMED)
    return registry, unknown.value


def test_unknown_outcome_can_be_queried_later_and_is_the_first_answer(clock: Clock) -> None:
    registry, unknown = left_open(clock, httpx.Response(200, json=YES))
    clock.now += 20
    allowed = registry.client.ask_again(unknown)
    assert (allowed.decision_id, allowed.repeated) == ("d", False)
    assert len(registry.seen) == 4
    assert registry.asked_one_question()


def test_what_was_refused_after_all_is_refused(clock: Clock) -> None:
    registry, unknown = left_open(clock, httpx.Response(200, json=NO))
    with pytest.raises(RefusedError):
        registry.client.ask_again(unknown)


def test_late_retry_is_not_sent_because_it_would_be_a_new_decision(clock: Clock) -> None:
    registry, unknown = left_open(clock, httpx.Response(200, json=NO))
    clock.now = 1000 + 45.1
    with pytest.raises(UnknownOutcomeError) as again:
        registry.client.ask_again(unknown)
    assert again.value is unknown
    assert len(registry.seen) == 3


def test_nor_does_a_later_try_of_one_that_was_asked_in_time_begin_too_late(clock: Clock) -> None:
    registry, unknown = left_open(clock, unavailable())
    clock.now = 1000 + 43.5
    with pytest.raises(UnknownOutcomeError):
        registry.client.ask_again(unknown)
    # At once, and again just over a second later.
    assert len(registry.seen) == 3 + 2


@pytest.mark.parametrize("shown", [repr, str])
def test_neither_token_nor_proof_is_shown(clock: Clock, shown: Callable[[object], str]) -> None:
    _, unknown = left_open(clock)
    for text in (shown(unknown), shown(unknown.question), shown(unknown.fields)):
        assert "the-token" not in text
        assert "the-proof" not in text
