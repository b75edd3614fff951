"""Many questions in one call: a decision or an error each, in order; everything odd is no yes."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from agentauth.protocol.errors import (
    IdempotencyMismatchError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk import Action, Allowed, RefusedError, RegistryError, VerifierClient
from agentauth.sdk.tests.both_clients import both
from agentauth.sdk.tests.test_verifier import YES
from agentauth.sdk.verifier_core import Question

__all__ = ["both"]
pytestmark = pytest.mark.usefixtures("both")

URL = "https://registry.example.com"
TOKEN = "the-token"
NO = {"valid": False, "error": "invalid_token", "reason": "expired"}


def question(token: str = TOKEN, **more: Any) -> Question:
    return Question(token, "the-proof", "GET", "https://api.sp.example/x", **more)


def ask(
    answer: httpx.Response | Exception, asked: list[Question], seen: list[httpx.Request]
) -> list[Any]:
    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        # One answer cannot be read twice.
        return httpx.Response(answer.status_code, content=answer.content)

    client = VerifierClient(URL, "id", "secret", transport=httpx.MockTransport(handle))
    return client.verify_batch(asked)


def results(*told: object) -> httpx.Response:
    return httpx.Response(200, json={"results": told})


def test_a_batch_is_one_call_with_the_bodies_of_verify() -> None:
    asked = [
        question(),
        question("b", action=Action("read", "x"), idempotency_key="k", dry_run=True),
    ]
    seen: list[httpx.Request] = []
    found = ask(results(YES, NO), asked, seen)
    (request,) = seen
    assert isinstance(found[0], Allowed)
    assert isinstance(found[1], RefusedError)
    assert str(request.url) == f"{URL}/v1/verify/batch"
    assert "Idempotency-Key" not in request.headers
    first, second = json.loads(request.content)["requests"]
    assert first == {
        "token": "the-token",
        "proof": "the-proof",
        "method": "GET",
        "url": "https://api.sp.example/x",
    }
    assert second["action"] == {"type": "read", "resource": "x", "arguments": {}}
    assert (second["idempotency_key"], second["dry_run"]) == ("k", True)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (NO, RefusedError),
        ({"error": "invalid_request", "error_description": "x"}, InvalidRequestError),
        ({"error": "idempotency_mismatch", "error_description": "x"}, IdempotencyMismatchError),
        ({"error": "temporarily_unavailable"}, TemporarilyUnavailableError),
        ({"error": "a_later_word"}, TemporarilyUnavailableError),
        ({"valid": "true"}, TemporarilyUnavailableError),
        ({"valid": 1}, TemporarilyUnavailableError),
        ({}, TemporarilyUnavailableError),
        (None, TemporarilyUnavailableError),
        ([True], TemporarilyUnavailableError),
    ],
)
def test_only_a_plain_true_is_a_yes_in_a_batch(told: object, kind: type[Exception]) -> None:
    found = ask(results(YES, told, YES), [question()] * 3, [])
    assert [type(each) for each in found] == [Allowed, kind, Allowed]


def test_a_question_too_long_for_any_registry_is_refused_in_its_place() -> None:
    asked = [question("a" * 9_000), question(), question("a" * 9_000)]
    seen: list[httpx.Request] = []
    found = ask(results(YES), asked, seen)
    assert [type(each) for each in found] == [RefusedError, Allowed, RefusedError]
    assert len(json.loads(seen.pop().content)["requests"]) == 1
    (refused,) = ask(results(), asked[:1], seen)
    assert (type(refused), seen) == (RefusedError, [])


@pytest.mark.parametrize("told", [[], [YES], [YES, YES, YES]])
def test_a_batch_with_another_number_of_answers_is_no_decision(told: list[object]) -> None:
    with pytest.raises(TemporarilyUnavailableError):
        ask(results(*told), [question()] * 2, [])


LOST = TemporarilyUnavailableError


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(200, json=YES), LOST),
        (httpx.Response(200, content=b"[]"), LOST),
        (httpx.Response(503, json={"error": "temporarily_unavailable"}), LOST),
        (httpx.Response(500, content=b""), LOST),
        (httpx.ConnectError("x"), LOST),
        (httpx.ReadTimeout("x"), LOST),
        (httpx.Response(400, json={"error": "invalid_request"}), InvalidRequestError),
        (httpx.Response(401, json={"error": "invalid_client"}), RegistryError),
        (httpx.Response(404, json={"error": "not_found"}), RegistryError),
    ],
)
def test_a_batch_without_an_answer_is_sent_once(
    answer: httpx.Response | Exception, kind: type[Exception]
) -> None:
    """A second try would find the proofs spent, and say so of an agent that did nothing wrong."""
    seen: list[httpx.Request] = []
    with pytest.raises(kind):
        ask(answer, [question()], seen)
    assert len(seen) == 1


@pytest.mark.parametrize("count", [0, 257])
def test_a_batch_has_1_to_256_questions(count: int) -> None:
    client = VerifierClient(URL, "id", "secret", transport=httpx.MockTransport(unasked))
    with pytest.raises(InvalidRequestError, match=f"1 to 256 .* not {count}"):
        client.verify_batch([question()] * count)


def test_a_batch_is_at_most_a_mebibyte() -> None:
    client = VerifierClient(URL, "id", "secret", transport=httpx.MockTransport(unasked))
    with pytest.raises(InvalidRequestError, match="1,048,576 bytes"):
        client.verify_batch([question("a" * 8_000)] * 140)


def unasked(_request: httpx.Request) -> httpx.Response:
    raise AssertionError


@pytest.mark.parametrize("shown", [repr, str])
def test_a_question_shows_neither_token_nor_proof(shown: Callable[[object], str]) -> None:
    text = shown(question())
    assert "the-token" not in text
    assert "the-proof" not in text
