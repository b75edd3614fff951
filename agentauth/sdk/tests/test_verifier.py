import base64
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
from agentauth.protocol.money import Money
from agentauth.sdk import Action, AddressError, RefusedError, RegistryError, VerifierClient
from agentauth.sdk.tests.both_clients import both

URL = "https://registry.example.com"
ASK: dict[str, Any] = {
    "token": "t",
    "proof": "p",
    "method": "POST",
    "url": "https://api.sp.example/x",
}
YES = {
    "valid": True,
    "decision_id": "d",
    "agent": {"id": "a", "name": "Research Assistant", "model_origin": "models.example.com"},
    "subject": "s",
    "grant_id": "g",
    "scope": "",
    "limits": {},
    "expires_in": 10,
}


__all__ = ["both"]
pytestmark = pytest.mark.usefixtures("clock", "both")


def client(
    answer: httpx.Response | Exception, seen: list[httpx.Request] | None = None
) -> VerifierClient:
    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return VerifierClient(URL, "id", "secret", transport=httpx.MockTransport(handle))


def test_what_is_asked_is_the_contract_s_body() -> None:
    seen: list[httpx.Request] = []
    action = Action("transact", "payments", Money.of("20.00", "EUR"), {"payee": "ACME"})
    allowed = client(httpx.Response(200, json=YES), seen).verify(
        **ASK, action=action, idempotency_key="agent-key"
    )
    assert (allowed.agent_id, allowed.agent_name, allowed.subject) == (
        "a",
        "Research Assistant",
        "s",
    )
    assert not allowed.repeated
    (request,) = seen
    assert str(request.url) == f"{URL}/v1/verify"
    assert request.headers["Authorization"] == "Basic " + base64.b64encode(b"id:secret").decode()
    assert json.loads(request.content) == {
        "token": "t",
        "proof": "p",
        "method": "POST",
        "url": "https://api.sp.example/x",
        "action": {
            "type": "transact",
            "resource": "payments",
            "amount": {"value": "20.00", "currency": "EUR"},
            "arguments": {"payee": "ACME"},
        },
        "idempotency_key": "agent-key",
    }


def test_the_service_provider_mints_its_own_key_for_every_request() -> None:
    seen: list[httpx.Request] = []
    asking = client(httpx.Response(200, json=YES), seen)
    for _ in range(2):
        asking.verify(**ASK, idempotency_key="agent-key")
    keys = {request.headers["Idempotency-Key"] for request in seen}
    assert len(keys) == 2
    assert "agent-key" not in keys


def test_a_no_is_raised_with_its_words() -> None:
    body = {"valid": False, "error": "envelope_exceeded", "reason": "rate", "retry_after": 6}
    with pytest.raises(RefusedError) as refused:
        client(httpx.Response(200, json=body)).verify(**ASK)
    assert (refused.value.error, refused.value.reason, refused.value.retry_after) == (
        "envelope_exceeded",
        "rate",
        6,
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"<html>",
        b'{"valid": "true"}',
        b'{"valid": 1}',
        b'{"valid": null}',
        b'{"valid": true, "valid": false}',
        b'{"allowed": true}',
    ],
)
def test_only_a_plain_true_is_a_yes_and_odd_answers_are_errors(body: bytes) -> None:
    with pytest.raises(TemporarilyUnavailableError):
        client(httpx.Response(200, content=body)).verify(**ASK)


@pytest.mark.parametrize("repeated", [True, 1, "false", None])
def test_a_repeat_is_taken_for_one_unless_it_is_plainly_not(repeated: object) -> None:
    assert client(httpx.Response(200, json=YES | {"repeated": repeated})).verify(**ASK).repeated


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", InvalidRequestError),
        (409, "idempotency_mismatch", IdempotencyMismatchError),
        (409, "idempotency_in_progress", TemporarilyUnavailableError),
        (503, "temporarily_unavailable", TemporarilyUnavailableError),
        # Caused by our own credentials, limits and defects, not by the agent.
        (401, "invalid_client", RegistryError),
        (403, "permission_denied", RegistryError),
        (404, "not_found", RegistryError),
        (429, "slow_down", RegistryError),
        # It is unknown what was done before the defect.
        (500, "server_error", TemporarilyUnavailableError),
        (302, "", RegistryError),
    ],
)
def test_an_error_is_never_a_decision(status: int, code: str, kind: type[Exception]) -> None:
    answer = httpx.Response(status, json={"error": code, "error_description": "x", "valid": True})
    with pytest.raises(kind):
        client(answer).verify(**ASK)


@pytest.mark.parametrize(
    "trouble", [httpx.ReadTimeout("x"), httpx.ConnectError("x"), httpx.RemoteProtocolError("x")]
)
def test_VB_15_no_answer_raises_an_error_instead_of_a_decision(trouble: Exception) -> None:
    with pytest.raises(TemporarilyUnavailableError):
        client(trouble).verify(**ASK)


LOST = [
    httpx.ConnectError("x"),
    httpx.ReadTimeout("x"),
    httpx.WriteError("x"),
    httpx.RemoteProtocolError("x"),
]


@pytest.mark.parametrize("trouble", LOST)
def test_a_lost_answer_is_asked_for_once_more_under_the_same_key(trouble: Exception) -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) == 1:
            raise trouble
        return httpx.Response(200, json=YES)

    asking = VerifierClient(URL, "id", "secret", transport=httpx.MockTransport(handle))
    assert asking.verify(**ASK, idempotency_key="agent-key").grant_id == "g"
    first, second = seen
    assert first.content == second.content
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"] != "agent-key"
    asking.verify(**ASK, idempotency_key="agent-key")
    assert seen[2].headers["Idempotency-Key"] != first.headers["Idempotency-Key"]


def test_each_question_has_a_key_of_its_own() -> None:
    seen: list[httpx.Request] = []
    asking = client(httpx.Response(200, json=YES), seen)
    for _ in range(3):
        asking.verify(**ASK)
    assert len({request.headers["Idempotency-Key"] for request in seen}) == 3


def test_the_secret_goes_to_no_clear_text_registry() -> None:
    with pytest.raises(AddressError):
        VerifierClient("http://registry.example.com", "id", "secret")


def test_no_redirect_takes_the_credentials_elsewhere() -> None:
    seen: list[httpx.Request] = []
    answer = httpx.Response(307, headers={"Location": "https://evil.example/v1/verify"})
    with pytest.raises(TemporarilyUnavailableError):
        client(answer, seen).verify(**ASK)
    assert len(seen) == 1


def test_closing_frees_the_connections_and_the_next_call_opens_new_ones() -> None:
    asking = client(httpx.Response(200, json=YES))
    asking.verify(**ASK)
    asking.close()
    asking.close()
    assert asking.verify(**ASK).grant_id == "g"


@pytest.mark.parametrize("secret_of", [repr, str])
def test_the_secret_is_not_shown(secret_of: Callable[[object], str]) -> None:
    assert "secret" not in secret_of(client(httpx.Response(200)))
