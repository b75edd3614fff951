"""What a service provider answers its agent, whatever the registry said: short, and with valid
headers only.
"""

import json
from typing import Any

import httpx
import pytest

from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk import VerifierClient
from agentauth.sdk.refusal_responses import HttpAnswer, answer_for
from agentauth.sdk.tests.test_verifier import ASK

LONG = "x" * 100_000
URL = "https://registry.example.com"


def told(error: AgentAuthError) -> tuple[HttpAnswer, dict[str, Any]]:
    answer = answer_for(error)
    assert len(answer.body) <= 1024
    assert all(len(value) <= 600 and value.isprintable() for value in answer.headers.values())
    body: dict[str, Any] = json.loads(answer.body)
    assert body["error_description"]
    return answer, body


def refused(status: int, said: dict[str, Any]) -> AgentAuthError:
    """How the client of verify reads an answer of the registry."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=said))
    client = VerifierClient(URL, "id", "secret", transport=transport)
    with client, pytest.raises(AgentAuthError) as error:
        client.verify(**ASK)
    return error.value


@pytest.mark.parametrize(
    ("said", "error", "reason"),
    [
        ({"error": LONG}, "refused", None),
        ({"error": "x" * 65}, "refused", None),
        ({"error": "\x1b[31m"}, "refused", None),
        ({"error": ""}, "refused", None),
        ({"error": "x" * 64, "reason": "y" * 64}, "x" * 64, "y" * 64),
        ({"error": "invalid_token", "reason": LONG}, "invalid_token", None),
        ({"error": "invalid_token", "reason": "\U0001f600" * 64}, "invalid_token", None),
        (
            {"error": LONG, "reason": LONG, "violations": [LONG], "approval_url": LONG},
            "refused",
            None,
        ),
        ({"error": "later_word", "reason": "rate", "approval_url": LONG}, "later_word", "rate"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_VB_8_a_refusal_of_any_length_is_a_short_answer(
    said: dict[str, Any], error: str, reason: str | None
) -> None:
    _, body = told(refused(200, {"valid": False} | said))
    assert (body["error"], body.get("reason")) == (error, reason)


@pytest.mark.parametrize(
    "said", [LONG, "\x1b" * 1000, "\U0001f600" * 1000], ids=lambda text: repr(text[:3])
)
def test_a_request_that_is_refused_with_a_long_text_is_a_short_answer(said: str) -> None:
    error = refused(400, {"error": "invalid_request", "error_description": said, "reason": said})
    assert isinstance(error, InvalidRequestError)
    answer, body = told(error)
    assert (answer.status, body["error"], body.get("reason")) == (400, "invalid_request", None)


@pytest.mark.parametrize("wait", [-1, 10**9, 2**53 - 1])
def test_zero_retry_after_sends_no_header(wait: int) -> None:
    said = {"valid": False, "error": "envelope_exceeded", "reason": "rate", "retry_after": wait}
    answer, _ = told(refused(200, said))
    assert (answer.status, "Retry-After" in answer.headers) == (429, False)


def test_a_wait_that_is_true_is_one_second() -> None:
    answer, _ = told(TemporarilyUnavailableError("Later.", retry_after=True))
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("nonce", ["n\r\nSet-Cookie: a=b", "\u2028", "n" * 513, LONG])
def test_a_nonce_that_no_header_carries_is_left_out(nonce: str) -> None:
    answer, body = told(refused(200, {"valid": False, "error": "use_dpop_nonce", "nonce": nonce}))
    assert (answer.status, body["error"]) == (401, "use_dpop_nonce")
    assert "DPoP-Nonce" not in answer.headers
