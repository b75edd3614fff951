"""Every address under faults: an exception in each view, headers of every answer, cookies.

The faults are injected in this process. tests/production/test_sweep.py asks each address over the
wire.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError
from django.http import HttpRequest, HttpResponse
from django.test import Client
from pytest_django import Settings
from rest_framework.views import APIView

from kms.backends import BackendError
from tests.endpoints import API, ENDPOINTS, ROUTES, address
from tests.flows import test_sweep as sweep
from tests.flows.test_sweep import Scene

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]

# The same users and agents as in the sweep.
alice_at, users = sweep.alice_at, sweep.users

LEAK = "SELECT secret FROM registry_agent; host=10.0.0.7 password=hunter2"
FAULTS = [
    (RuntimeError(LEAK), 500, "server_error"),
    (OperationalError(LEAK), 503, "temporarily_unavailable"),
    (KeyError(LEAK), 500, "server_error"),
    (ProgrammingError(LEAK), 500, "server_error"),
    (BackendError(LEAK), 500, "server_error"),
]
# The first two are answered differently, so each view gets both; every tenth view gets the others.
THOROUGH = FAULTS[:2]
PATTERNS = [each.pattern for each in ENDPOINTS]


def raising(error: Exception, like: Any) -> Callable[..., HttpResponse]:
    def view(request: HttpRequest, *_: object, **__: object) -> HttpResponse:
        raise error.with_traceback(None)  # or the traceback would grow with each raise

    view.csrf_exempt = getattr(like, "csrf_exempt", False)  # type: ignore[attr-defined]  # as Django marks it
    return view


def generic(answer: Any, status: int, code: str, place: str) -> None:
    assert answer.status_code == status, place
    body = json.loads(answer.content)
    assert set(body) == {"error", "error_description"}, place
    assert body["error"] == code, place
    assert answer["X-Request-Id"], place
    assert answer["Cache-Control"] == "no-store", place
    if status == 503:
        assert answer["Retry-After"]
    told = answer.content.decode() + str(answer.headers)
    for word in ("SELECT", "10.0.0.7", "hunter2", "Traceback", "Error(", "/agentauth/"):
        assert word not in told, place


@pytest.mark.parametrize(("error", "status", "code"), FAULTS, ids=lambda each: type(each).__name__)
def test_DJ_19_OG_23_an_exception_in_any_view_is_one_generic_answer(
    error: Exception, status: int, code: str, alice_at: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pattern in PATTERNS:
        monkeypatch.setattr(pattern, "callback", raising(error, pattern.callback))
    client = Client(raise_request_exception=False, headers={"Origin": "http://localhost:8000"})
    client.force_login(alice_at.person.human)
    for route in ROUTES if (error, status, code) in THOROUGH else ROUTES[::10]:
        path = address(route, alice_at.ids)
        for method in ("GET", "POST"):
            generic(client.generic(method, path), status, code, f"{method} {path}")
        page = client.get(path, headers={"Accept": "text/html"})
        assert page.status_code == status
        assert "SELECT" not in page.content.decode()


@pytest.mark.parametrize(("error", "status", "code"), FAULTS, ids=lambda each: type(each).__name__)
def test_DJ_19_OG_23_nor_does_the_api_s_own_handler_tell_more(
    error: Exception, status: int, code: str, alice_at: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def initial(*_: object, **__: object) -> None:
        raise error.with_traceback(None)  # or the traceback would grow with each raise

    monkeypatch.setattr(APIView, "initial", initial)
    for route in (route for route in ROUTES if route.startswith(API)):
        path = address(route, alice_at.ids)
        answer = Client(raise_request_exception=False).get(path)
        generic(answer, status, code, path)


def test_DJ_19_a_fault_in_a_middleware_tells_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(_request: object) -> None:
        raise RuntimeError(LEAK)

    monkeypatch.setattr("agentauth.middleware.RateLimitMiddleware.count", staticmethod(fault))
    for path in ("/sign-in/", "/v1/agents/me", "/health/live"):
        generic(Client(raise_request_exception=False).get(path), 500, "server_error", path)


HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int, Any]]:
    """One answer of each kind, over https: its name and status."""
    host = {"Host": "localhost:8000"}
    client = Client(raise_request_exception=False, headers=host)

    def get(path: str, **headers: str) -> Any:
        return client.get(path, secure=True, headers=host | headers)

    yield "page", 200, get("/sign-in/")
    yield "api", 401, get("/v1/agents/me")
    yield "document", 200, get("/.well-known/agentauth")
    static = get("/static/agentauth.css")
    # Close only its file: closing the answer would close the test's database connection too.
    for close in static._resource_closers:
        close()
    yield "static", 200, static
    yield "redirect", 302, get("/approvals/")
    yield "404", 404, get("/nowhere")
    yield "404 page", 404, get("/nowhere", Accept="text/html")
    yield (
        "405",
        405,
        client.put("/sign-in/", secure=True, headers=host | {"Origin": "http://localhost:8000"}),
    )
    yield "403", 403, client.post("/sign-out/", secure=True, headers=host)
    yield "host", 400, get("/sign-in/", Host="evil.example")
    yield "path", 404, get("/v1/agents%00")
    body = b"{" + b" " * 70_000
    origin = host | {"Origin": "http://localhost:8000"}
    yield (
        "413",
        413,
        client.post(
            "/sign-in/finish", body, content_type="application/json", secure=True, headers=origin
        ),
    )
    with monkeypatch.context() as patch:
        patch.setattr("agentauth.observability.health.live", None)
        for pattern in PATTERNS:
            patch.setattr(pattern, "callback", raising(RuntimeError(LEAK), pattern.callback))
        yield "500", 500, get("/health/live")
        patch.setattr("django.contrib.auth.middleware.get_user", raising(RuntimeError(LEAK), None))
        yield "500 of a middleware", 500, get("/sign-in/")


def test_DJ_21_every_kind_of_answer_has_every_header(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SECURE_HSTS_SECONDS = 31_536_000
    settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    settings.MIDDLEWARE = list(settings.MIDDLEWARE)
    kinds = []
    for kind, status, answer in answers(monkeypatch):
        kinds.append(kind)
        assert answer.status_code == status, kind
        for name, value in HEADERS.items():
            assert answer[name] == value, f"{kind}: {name}"
        policy = answer["Content-Security-Policy"]
        assert "default-src 'none'" in policy, kind
        assert "unsafe" not in policy, kind
        assert "publickey-credentials-get=(self)" in answer["Permissions-Policy"], kind
        assert answer["Strict-Transport-Security"].startswith("max-age=31536000"), kind
        assert answer["X-Request-Id"], kind
        assert not {"Server", "X-Powered-By", "Via"} & set(answer.headers), kind
    assert len(kinds) == 14


@pytest.mark.parametrize(
    "path",
    [
        "/.git/config", "/.env", "/static/../agentauth/settings.py", "/static/..%2f..%2fetc/passwd",
        "/static/", "/debug", "/__debug__/", "/server-status", "/manage.py", "/var/secret_key",
        "/static/admin/../../manage.py", "/health", "/health/", "/metrics/", "/v1/",
        "/swagger.json", "/phpmyadmin/",
    ],
)  # fmt: skip
def test_DJ_18_probed_paths_are_404_and_reveal_no_framework(path: str) -> None:
    answer = Client(REMOTE_ADDR="203.0.113.7").get(path)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    for word in ("Django", "Traceback", "urlpatterns", "DEBUG", "Using the URLconf"):
        assert word not in answer.content.decode()


def test_DJ_34_only_api_views_skip_csrf_and_none_accepts_a_cookie(
    alice_at: Scene,
) -> None:
    exempt = [each for each in ENDPOINTS if getattr(each.pattern.callback, "csrf_exempt", False)]
    assert exempt
    for each in exempt:
        assert each.view is not None, each
        assert issubclass(each.view, APIView), each
    client = alice_at.person.client
    for route in ROUTES:
        if not route.startswith("/v1/"):
            continue
        path = address(route, alice_at.ids)
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = client.generic(method, path, "{}", content_type="application/json")
            assert answer.status_code in {400, 401, 405}, f"{method} {path} {answer.status_code}"
            if answer.status_code == 400:
                assert answer.json()["error"] == "invalid_dpop_proof", path
