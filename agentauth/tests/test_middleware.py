"""What every request goes through: headers, host, origin, request id; and what agents skip."""

import re
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings
from rest_framework.views import APIView

from agentauth.middleware import MOST_WAIT_SECONDS
from agentauth.server.request_framing import WAITED
from agentauth.urls import urlpatterns
from audit.models import Event
from kms.models import Key

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "path", ["/health/live", "/nowhere", "/sign-in/", "/v1/agents/me", "/.well-known/agentauth"]
)
def test_AP_17_no_answer_may_be_framed_and_none_allows_foreign_code(
    client: Client, path: str
) -> None:
    answer = client.get(path)
    assert answer["X-Frame-Options"] == "DENY"
    policy = answer["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Referrer-Policy"] == "no-referrer"
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"


def test_each_answer_has_an_id_of_ours_whatever_the_client_sent(client: Client) -> None:
    sent = "client-made-id"
    first = client.get("/health/live", headers={"X-Request-Id": sent})["X-Request-Id"]
    second = client.get("/health/live", headers={"X-Request-Id": sent})["X-Request-Id"]
    assert len({first, second, sent}) == 3


def test_DJ_3_a_foreign_host_is_refused(client: Client) -> None:
    answer = client.get(
        "/v1/agents/me", headers={"Host": "evil.example", "X-Forwarded-Host": "localhost"}
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    event = Event.objects.get()
    assert (event.kind, event.outcome, event.actor_kind) == (
        "audit.request.refused",
        "denied",
        "anonymous",
    )


@pytest.mark.parametrize("path", ["/v1/agents/me", "/sign-in/", "/health/live"])
@pytest.mark.parametrize("over", [False, True])
def test_RF_19_long_wait_for_a_thread_is_503_except_for_a_probe(
    client: Client, path: str, *, over: bool
) -> None:
    answered = client.get(path).status_code
    token = WAITED.set(MOST_WAIT_SECONDS + (0.01 if over else 0))
    try:
        answer = client.get(path)
    finally:
        WAITED.reset(token)
    if over and path != "/health/live":
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        assert int(answer["Retry-After"]) > 0
        assert "frame-ancestors 'none'" in answer["Content-Security-Policy"]
    else:
        assert answer.status_code == answered


def test_RF_19_a_person_who_waited_too_long_sees_a_page_that_says_so(client: Client) -> None:
    token = WAITED.set(MOST_WAIT_SECONDS + 0.01)
    try:
        page = client.get("/sign-in/", headers={"Accept": "text/html"})
    finally:
        WAITED.reset(token)
    assert (page.status_code, page["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert "Try again shortly" in page.content.decode()


def test_a_page_asked_at_an_ip_address_moves_to_localhost(client: Client) -> None:
    answer = client.get(
        "/sign-in/?next=/agents/", headers={"Host": "127.0.0.1:8000", "Accept": "text/html"}
    )
    assert answer.status_code == 302
    assert answer["Location"] == "http://localhost:8000/sign-in/?next=/agents/"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9000"},
        {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"]
)
def test_AP_15_a_post_from_elsewhere_is_refused_and_recorded(
    headers: dict[str, str], content_type: str
) -> None:
    client = Client(enforce_csrf_checks=True)
    answer = client.post("/sign-out/", data="{}", content_type=content_type, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"] == "csrf_failed"
    assert Event.objects.filter(kind="audit.request.refused", reason="csrf_failed").count() == 1


def test_AP_15_the_right_origin_without_the_token_is_refused_too() -> None:
    client = Client(enforce_csrf_checks=True)
    answer = client.post(
        "/sign-out/", headers={"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}
    )
    assert answer.status_code == 403
    assert answer.json()["error"] == "csrf_failed"


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("/v1/service-providers/%00", (404, "not_found")),
        ("/a%00b", (404, "not_found")),
        ("/sign-in/?next=%00", (400, "invalid_request")),
    ],
)
def test_DJ_8_url_with_a_nul_is_refused_before_any_database_query(
    client: Client, path: str, refused: tuple[int, str]
) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error"]) == refused


JUMP = "agentauth.middleware.NoBrowserMiddleware"
JSON = {"content_type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("GET", "/v1/schema/", {}),
        ("GET", "/v1/agents/me", {}),
        ("GET", "/v1/nowhere", {}),
        ("GET", "/v1/nowhere", {"HTTP_ACCEPT": "text/html"}),
        ("GET", "/v1/audit/tile/0/000", {}),
        ("GET", "/v1/grants/x", {"HTTP_DPOP": "made-up"}),
        ("GET", "/v1/tokens", {}),
        ("GET", "/v1/tokens", {"HTTP_ACCEPT": "text/csv"}),
        ("POST", "/v1/tokens", {"HTTP_DPOP": "made-up", "data": "{}", **JSON}),
        (
            "POST",
            "/v1/tokens",
            {"HTTP_DPOP": "made-up", "HTTP_COOKIE": "agentauth_session=made-up", **JSON},
        ),
        ("POST", "/v1/verify", {"HTTP_AUTHORIZATION": "Basic made-up", "data": "{}", **JSON}),
        ("OPTIONS", "/v1/agents", {}),
    ],
)
def test_what_only_browsers_need_changes_no_answer_of_the_api(
    settings: Settings, token_key: Key, method: str, path: str, more: dict[str, Any]
) -> None:
    def answered() -> tuple[Any, ...]:
        answer = Client().generic(method, path, **more)
        # New in each answer: its id, and the CSRF tokens in a page.
        tokens = r"""(?<=csrf-token" content=")\w{64}|(?<=csrfmiddlewaretoken" value=")\w{64}"""
        made = re.compile(rf"{answer['X-Request-Id']}|{tokens}")
        said = {name: made.sub("", value) for name, value in answer.items()}
        return answer.status_code, said, set(answer.cookies), made.sub("", answer.content.decode())

    straight = answered()
    assert JUMP in settings.MIDDLEWARE
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != JUMP]
    assert straight == answered()


def test_what_agents_pass_over_is_for_browsers_alone(settings: Settings) -> None:
    behind = settings.MIDDLEWARE[settings.MIDDLEWARE.index(JUMP) + 1 :]
    assert [name.rpartition(".")[2] for name in behind] == [
        "SessionMiddleware", "CommonMiddleware", "CsrfViewMiddleware", "AuthenticationMiddleware",
        "LanguageMiddleware", "RateLimitMiddleware", "MessageMiddleware", "SameOriginMiddleware",
        "KeepSessionMiddleware", "TimeZoneMiddleware", "PageErrorMiddleware",
    ]  # fmt: skip
    assert not hasattr(Client().get("/v1/schema/").wsgi_request, "session")
    assert hasattr(Client().get("/docs/").wsgi_request, "session")


def test_only_the_api_s_views_are_where_browsers_are_not_looked_for() -> None:
    def routes(patterns: list[Any]) -> list[Any]:
        return [
            view
            for pattern in patterns
            for view in routes(getattr(pattern, "url_patterns", []))
            or [(str(pattern.pattern), pattern)]
        ]

    views = [pattern.callback for route, pattern in routes(urlpatterns) if route.startswith("v1/")]
    assert len(views) > 20
    assert all(issubclass(getattr(view, "cls", object), APIView) for view in views)


def test_a_body_in_chunks_is_refused(client: Client) -> None:
    answer = client.post(
        "/v1/tokens", "{}", "application/json", headers={"Transfer-Encoding": "chunked"}
    )
    assert answer.status_code == 400
    assert "Content-Length" in answer.json()["error_description"]
