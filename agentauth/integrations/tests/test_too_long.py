"""Credentials that no registry can read are answered by the middleware itself, as the agent's
fault.
"""

import httpx
import pytest
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

from agentauth.integrations import django_decorators as guard
from agentauth.integrations.django import protected
from agentauth.integrations.tests.test_django import SETTINGS, asking, body, served
from agentauth.sdk import Action, VerifierClient

LONG = "a" * 8_193


@pytest.mark.parametrize(
    ("path", "meta", "status", "error", "reason"),
    [
        ("/v1/x", {"authorization": f"DPoP {LONG}"}, 401, "invalid_token", "malformed"),
        ("/v1/x", {"authorization": f"DPoP {'a' * 100_000}"}, 401, "invalid_token", "malformed"),
        ("/v1/x", {"HTTP_DPOP": LONG}, 401, "invalid_dpop_proof", "malformed"),
        ("/v1/x", {"HTTP_DPOP": "a" * 100_000}, 401, "invalid_dpop_proof", "malformed"),
        (f"/v1/{LONG}", {}, 401, "invalid_dpop_proof", "url"),
        ("/v1/x?arguments", {}, 400, "invalid_request", None),
    ],
)
@override_settings(AGENTAUTH=SETTINGS)
def test_too_long_request_is_the_agents_fault_and_is_not_sent(
    path: str,
    meta: dict[str, str],
    status: int,
    error: str,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(413, json={"error": "request_too_large"})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(
        guard, "_client", lambda *given: VerifierClient(*given, transport=transport, timeout=1)
    )

    def act(request: HttpRequest) -> Action:
        return Action(
            "read", "calendar", arguments={"note": "a" * 65_536 if request.GET else "short"}
        )

    view = served(protected(act)(lambda _request: HttpResponse()))
    response = view(asking(path, **meta))
    told = body(response)
    assert (response.status_code, told["error"], told.get("reason")) == (status, error, reason)
    assert asked == []
