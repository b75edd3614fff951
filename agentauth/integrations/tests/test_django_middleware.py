"""The middleware of the Django integration: it checks first, once, for this view and these
arguments; behind no cache.
"""

import functools
from functools import partial
from typing import Any

import httpx
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

from agentauth.integrations import django_decorators as guard
from agentauth.integrations.django import decision, protected, unprotected
from agentauth.integrations.tests.conformance import Integration, running
from agentauth.integrations.tests.django_site import check, start
from agentauth.integrations.tests.test_django import (
    ALLOWED,
    READ,
    SETTINGS,
    FakeVerifier,
    asking,
    served,
    verifier,
    view,
)
from agentauth.sdk import Action, RefusedError, VerifierClient
from agentauth.sdk.tests.conftest import Clock, clock

__all__ = ["clock", "verifier"]


def test_a_forgotten_decorator_opens_no_door(verifier: FakeVerifier) -> None:
    def plain(request: HttpRequest) -> HttpResponse:
        return HttpResponse(decision(request).agent_id)

    assert served(plain)(asking(authorization=None)).status_code == 401
    verifier.answer = RefusedError("invalid_token", "revoked", {})
    assert served(plain)(asking()).status_code == 401
    verifier.answer = ALLOWED
    assert served(plain)(asking()).content == b"a"
    assert verifier.asked[-1]["action"] is None


def test_a_protected_view_is_asked_about_once(verifier: FakeVerifier) -> None:
    assert view(asking()).status_code == 200
    assert len(verifier.asked) == 1


def test_an_open_view_is_open(verifier: FakeVerifier) -> None:
    @unprotected
    def front(_request: HttpRequest) -> HttpResponse:
        return HttpResponse("hello")

    assert served(front)(asking(authorization=None)).content == b"hello"
    assert verifier.asked == []


def test_SA_5_without_a_middleware_a_protected_view_serves_nothing(verifier: FakeVerifier) -> None:
    """A decorator around it could answer before the check."""

    @protected(READ)
    def lonely(_request: HttpRequest) -> HttpResponse:
        raise AssertionError

    with pytest.raises(ImproperlyConfigured, match="ProtectedMiddleware"):
        lonely(asking())
    assert verifier.asked == []


def test_one_decision_is_for_one_run_of_the_view(verifier: FakeVerifier) -> None:
    ran: list[HttpRequest] = []

    @protected(READ)
    def pay(request: HttpRequest) -> HttpResponse:
        ran.append(request)
        return HttpResponse()

    @functools.wraps(pay)
    def twice(request: HttpRequest) -> Any:
        pay(request)
        verifier.answer = RefusedError("invalid_dpop_proof", "replayed", {})
        return pay(request)

    assert served(twice)(asking()).status_code == 401
    assert len(ran) == 1


def test_an_act_named_for_other_arguments_allows_nothing(verifier: FakeVerifier) -> None:
    @protected(lambda _request, name: Action("read", f"calendar/{name}"))
    def calendar(_request: HttpRequest, name: str) -> HttpResponse:
        return HttpResponse(name)

    @functools.wraps(calendar)
    def elsewhere(request: HttpRequest, name: str) -> Any:
        return calendar(request, name="home")

    with pytest.raises(ImproperlyConfigured, match="arguments"):
        served(elsewhere)(asking(), name="work")
    assert verifier.asked[0]["action"] == Action("read", "calendar/work")


def test_a_check_within_an_open_view_is_made_there(verifier: FakeVerifier) -> None:
    @unprotected
    def either(request: HttpRequest) -> Any:
        return HttpResponse("open") if request.method == "GET" else protected(READ)(secret)(request)

    def secret(request: HttpRequest) -> HttpResponse:
        return HttpResponse(decision(request).agent_id)

    assert served(either)(asking(authorization=None)).content == b"open"
    assert served(either)(asking(method="POST", authorization=None)).status_code == 401
    assert served(either)(asking(method="POST")).content == b"a"
    assert len(verifier.asked) == 1


# ---- caches (test_conformance.py has the rest)


def test_SA_5_a_cache_that_is_not_seen_at_the_start_stops_each_request() -> None:
    hidden = ("agentauth.integrations.tests.django_site.disguised",)
    for middleware in ("AgentAuthMiddleware", "ProtectedMiddleware"):
        started = partial(start, middleware=middleware, before=hidden, unchecked=hidden)
        with running(Integration("hidden", started, frozenset())) as site:
            for _ in range(2):
                assert site.ask_as("good", "GET", "/plain").status_code == 500
            assert site.registry.asked == []


def test_SA_5_check_names_the_cache_that_stops_the_start() -> None:
    ours = "agentauth.integrations.django.AgentAuthMiddleware"
    cache = "django.middleware.cache.FetchFromCacheMiddleware"
    good, bad = check(ours), check(ours, cache)
    assert good.returncode == 0, good.stderr
    assert bad.returncode == 1
    assert "agentauth_sdk.E001" in bad.stderr
    assert cache in bad.stderr


# ---- an answer of verify that was lost


class StallsInCommit:
    """A registry that decides and debits once, but answers 503 to the first call under each
    idempotency key.
    """

    def __init__(self) -> None:
        self.allowed_before = False
        self.kept: dict[str, dict[str, Any]] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.headers["Idempotency-Key"]
        if name in self.kept:
            return httpx.Response(200, json=self.kept[name])
        self.kept[name] = {"valid": True, "decision_id": "d", "limits": {}}
        if self.allowed_before:
            self.kept[name]["repeated"] = True
        self.allowed_before = True
        return httpx.Response(503, json={"error": "temporarily_unavailable"})


def test_a_payment_that_was_debited_behind_a_503_is_carried_out_once(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    acted: list[HttpRequest] = []

    @served
    @protected(Action("delete", "calendar"))
    def pay(request: HttpRequest) -> HttpResponse:
        acted.append(request)
        return HttpResponse()

    transport = httpx.MockTransport(StallsInCommit())
    client = VerifierClient("https://registry.example.com", "id", "secret", transport=transport)
    monkeypatch.setattr(guard, "_client", lambda *_arguments: client)
    with override_settings(AGENTAUTH=SETTINGS):
        assert pay(asking(HTTP_IDEMPOTENCY_KEY="k")).status_code == 200
        assert pay(asking(HTTP_IDEMPOTENCY_KEY="k")).status_code == 409
    assert len(acted) == 1
