"""Every domain error has its status; unknown errors reveal nothing (U1, U2, U5)."""

import json
import logging
from datetime import datetime

import pytest
import time_machine
from django.db import InterfaceError, InternalError, OperationalError, connection
from django.test import Client, RequestFactory
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework.views import APIView

from agentauth import http_errors
from agentauth.protocol import errors
from approvals.views.request_helpers import SignInRequiredError
from audit.log.refusal_counts import RECORDED_PER_MINUTE
from audit.models import Event


def leaves(family: type[errors.AgentAuthError]) -> list[type[errors.AgentAuthError]]:
    return [family, *(leaf for child in family.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize(
    "error",
    # Errors of what clients install never reach our own HTTP edge. Other tests of this process may
    # have imported them.
    [
        leaf
        for leaf in leaves(errors.AgentAuthError)[1:]
        if not leaf.__module__.startswith(
            ("agentauth.sdk", "agentauth.cli", "agentauth.mcp", "agentauth.integrations")
        )
    ],
    ids=lambda error: error.__name__,
)
def test_each_error_has_a_status(error: type[errors.AgentAuthError]) -> None:
    assert error.code in http_errors.STATUSES


def answer(exc: Exception) -> tuple[int, dict[str, object], dict[str, str]]:
    request = Request(RequestFactory().get("/v1/x"))
    response = http_errors.handle_exception(exc, {"request": request, "view": APIView()})
    return response.status_code, response.data, dict(response.items())


@pytest.mark.django_db
def test_a_page_s_script_is_never_answered_with_a_password_dialog() -> None:
    _, _, headers = answer(SignInRequiredError("Sign in again."))
    assert headers["WWW-Authenticate"].startswith("Passkey")
    _, _, headers = answer(errors.InvalidClientError("x"))
    assert headers["WWW-Authenticate"].startswith("Basic")


def test_U1_a_database_that_does_not_answer_is_503_with_a_time_to_retry() -> None:
    status, body, headers = answer(
        OperationalError("connection to server at 10.0.0.7 failed: password")
    )
    assert (status, body["error"]) == (503, "temporarily_unavailable")
    assert headers["Retry-After"] == "1"
    assert "10.0.0.7" not in str(body)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_U1_a_database_that_only_reads_is_503() -> None:
    """As on a replica that has not been promoted yet."""
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        try:
            with pytest.raises(InternalError) as caught:
                Event.objects.update(kind="x")
        finally:
            cursor.execute("SET default_transaction_read_only = off")
    status, body, headers = answer(caught.value)
    assert (status, body["error"], headers["Retry-After"]) == (503, "temporarily_unavailable", "1")


def test_U2_another_internal_error_of_the_database_is_ours() -> None:
    assert answer(InternalError("current transaction is aborted"))[0] == 500


def test_U2_an_unknown_error_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        status, body, headers = answer(KeyError("SELECT secret FROM x"))
    assert (status, body["error"]) == (500, "server_error")
    assert "SELECT" not in str(body)
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("exc", "status", "code"),
    [
        (exceptions.NotAuthenticated(), 401, "invalid_client"),
        (exceptions.PermissionDenied(), 403, "permission_denied"),
        (exceptions.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (exceptions.ParseError(), 400, "invalid_request"),
        (errors.InvalidProofError("x", reason="iat"), 401, "invalid_dpop_proof"),
        (errors.SlowDownError("x", retry_after=7), 429, "slow_down"),
    ],
)
def test_U4_a_refusal_is_one_event(exc: Exception, status: int, code: str) -> None:
    got, body, headers = answer(exc)
    assert (got, body["error"], headers["Cache-Control"]) == (status, code, "no-store")
    assert Event.objects.get().data["error"] == code


@pytest.mark.django_db
def test_a_bad_proof_names_the_scheme_and_algorithms() -> None:
    assert answer(errors.InvalidProofError("x"))[2]["WWW-Authenticate"] == (
        'DPoP error="invalid_dpop_proof", algs="EdDSA Ed25519 ES256"'
    )


@pytest.mark.django_db
def test_U1_a_database_that_is_away_while_a_middleware_asks_it_is_503(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(_request: object) -> None:
        raise OperationalError("connection to 10.0.0.7 refused")

    monkeypatch.setattr("django.contrib.auth.middleware.get_user", away)
    found = Client(raise_request_exception=False).get("/health/live")
    assert (found.status_code, found.json()["error"]) == (503, "temporarily_unavailable")
    assert found["Retry-After"] == "1"
    assert "10.0.0.7" not in found.content.decode()


@pytest.mark.django_db
def test_U2_a_page_that_does_not_take_the_method_says_so_in_json() -> None:
    headers = {"Origin": "http://localhost:8000"}
    found = Client().put("/settings/", headers=headers)
    assert (found.status_code, found.json()["error"]) == (405, "method_not_allowed")
    assert found["Allow"] == "GET, HEAD"


def test_U2_an_error_stays_short_whatever_it_lists() -> None:
    sentences = [f"The agent may delete “files/{number}” at “Acme”." for number in range(32)]
    body = http_errors.body_of(
        errors.ConfirmationRequiredError("Look once more.", dangerous=sentences)
    )
    assert len(json.dumps(body).encode()) <= 1024
    assert body["dangerous"] == sentences[: len(body["dangerous"])]
    assert body["dangerous"]


@pytest.mark.parametrize("letter", ["x", "é", "漢", "𝕏", '"', "\x00"])
def test_U2_a_sentence_stays_short_in_bytes(letter: str) -> None:
    body = http_errors.body_of(errors.InvalidRequestError(letter * 5000))
    assert len(json.dumps(body).encode()) <= 1024
    assert body["error_description"].startswith(letter)


@pytest.mark.django_db
def test_U4_made_up_methods_share_one_flood_counter(now: datetime) -> None:
    # The counter is per clock minute: on a running clock the minute would at times end during the
    # test.
    with time_machine.travel(now, tick=False):
        for number in range(RECORDED_PER_MINUTE + 1):
            Client().generic(f"M{number:03}", "/sign-in/")
    assert Event.objects.count() == RECORDED_PER_MINUTE


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fault", [OperationalError("gone"), InterfaceError("connection already closed")]
)
def test_U4_a_refusal_that_cannot_be_recorded_is_503(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def away(**_arguments: object) -> None:
        raise fault

    monkeypatch.setattr("audit.services.count_refusal", away)
    status, body, _ = answer(errors.InvalidProofError("x"))
    assert (status, body["error"]) == (503, "temporarily_unavailable")
