"""Forward auth: the answer that a reverse proxy gets about each request."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.integrations import forward_auth
from agentauth.integrations.forward_auth import TOLD, Configuration, ForwardAuth, application
from agentauth.integrations.requirement import ConfigurationError
from agentauth.integrations.tests.conformance import AUDIENCE, Verify, verifying
from agentauth.sdk.verifier import VerifierClient

ROUTES = """
[[routes]]
methods = ["GET"]
path = "/health"
open = true

[[routes]]
methods = ["GET", "PUT"]
path = "/calendar/{id}"
requires = ["read", "calendar/{id}"]

[[routes]]
methods = ["PUT"]
path = "/files/{path:path}"
requires = ["write", "files/{path:path}"]
handles_repeats = true
"""
GOOD = {"Authorization": "DPoP good", "DPoP": "proof.1.x"}


def configured(url: str, proxy: str = "envoy", routes: str = ROUTES) -> str:
    return (
        f'registry_url = "{url}"\nclient_id = "sp"\naudience = "{AUDIENCE}"\nproxy = "{proxy}"\n'
        + routes
    )


class Proxy:
    """A reverse proxy that asks the application about requests."""

    def __init__(self, registry: Verify, url: str = "") -> None:
        self.registry = registry
        self._made = Configuration.read(configured(url or registry.url))
        self.client = VerifierClient(self._made.registry_url, "sp", "secret", timeout=2)

    def ask(
        self, method: str, target: str, headers: dict[str, str] = GOOD, proxy: str = "envoy"
    ) -> httpx.Response:
        """The answer about a request, handed over as this proxy does."""
        names = forward_auth.PROXIES[proxy]
        told = {} if names is None else {names[0]: method, names[1]: target}
        app = ForwardAuth(replace(self._made, proxy=proxy), self.client)
        own, path = (method, target) if names is None else ("GET", "/")
        with httpx.Client(transport=Raw(app, path), base_url="http://proxy.internal") as client:
            return client.request(own, "/", headers={**headers, **told})


class Raw(httpx.WSGITransport):
    """As gunicorn: passes on the target as it was received."""

    def __init__(self, app: Any, target: str) -> None:
        def told(environ: dict[str, Any], start_response: Any) -> Any:
            return app({**environ, "RAW_URI": target}, start_response)

        super().__init__(told)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with verifying() as registry:
        made = Proxy(registry)
        with made.client:
            yield made


@pytest.mark.parametrize("name", forward_auth.PROXIES)
def test_yes_names_the_agent_and_asks_about_the_audience_s_url(proxy: Proxy, name: str) -> None:
    answer = proxy.ask("GET", "/calendar/w%C3%B6rk?a=1", {**GOOD, "Host": "evil.example"}, name)
    assert answer.status_code == 200
    assert [answer.headers[each] for each in TOLD] == ["good", "s", "g", "d", "false"]
    assert answer.headers["Cache-Control"] == "private, no-store"
    [asked] = proxy.registry.asked
    assert (asked["method"], asked["url"]) == ("GET", f"{AUDIENCE}/calendar/w%C3%B6rk")
    act = {"type": "read", "resource": "calendar/w%C3%B6rk", "arguments": {}}
    assert asked["action"] == act


def test_placeholder_for_a_path_takes_all_that_is_left(proxy: Proxy) -> None:
    assert proxy.ask("PUT", "/files/a/b.txt").status_code == 200
    assert proxy.registry.asked[0]["action"]["resource"] == "files/a/b.txt"
    assert proxy.ask("PUT", "/files/").status_code == 403
    assert proxy.ask("PUT", "/files").status_code == 403


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"), ("GET", "/other"), ("POST", "/calendar/1"), ("GET", "/calendar/1/2"),
        ("GET", "/calendar/"), ("GET", "/files/a"), ("HEAD", "/health"), ("GET", "/health/x"),
        ("get", "/calendar/1"), ("GET", "/CALENDAR/1"),
    ],
)  # fmt: skip
def test_SA_5_a_request_without_a_route_is_refused(proxy: Proxy, method: str, target: str) -> None:
    for name in ("nginx", "traefik"):
        assert proxy.ask(method, target, GOOD, name).status_code == 403
        assert proxy.ask(method, target, {}, name).status_code == 401
    assert proxy.registry.asked == []


def test_open_route_asks_nothing_and_names_no_agent(proxy: Proxy) -> None:
    answer = proxy.ask("GET", "/health", {})
    assert answer.status_code == 200
    assert [answer.headers[each] for each in TOLD] == [""] * len(TOLD)
    assert proxy.registry.asked == []


@pytest.mark.parametrize(
    "target",
    [
        "/calendar/a%2Fb", "/calendar/a%2fb", "//calendar/1", "/calendar//1", "/calendar/..",
        "/calendar/%2e%2e", "/health/../calendar/1", "/calendar/a%5Cb", "/calendar/a\\b",
        "/calendar/1;x=2", "/calendar/1%3B", "/calendar/%00", "/calendar/a%0Ab", "/calendar/%FF",
        "/./health", "calendar/1", "http://api.sp.example/calendar/1",
        "/health#/../calendar/1", "/calendar/1#/../2", "/calendar/1?a=b#/../2",
    ],
)  # fmt: skip
def test_path_that_can_be_read_in_two_ways_is_refused(proxy: Proxy, target: str) -> None:
    for name in ("traefik", "envoy"):
        assert proxy.ask("GET", target, GOOD, name).status_code == 400
    assert proxy.registry.asked == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "DPoP good"}, 401),
        ({"Authorization": "Bearer good", "DPoP": "proof.1.x"}, 401),
        ({"Authorization": "DPoP bad", "DPoP": "proof.1.x"}, 401),
        ({"Authorization": "DPoP good", "DPoP": "proof.1.x, proof.2.x"}, 401),
        ({**GOOD, "Idempotency-Key": "a, b"}, 400),
        ({**GOOD, "Upgrade": "websocket"}, 400),
    ],
)
def test_refusal_has_the_status_and_headers_for_the_agent(
    proxy: Proxy, headers: dict[str, str], status: int
) -> None:
    answer = proxy.ask("GET", "/calendar/1", headers)
    assert answer.status_code == status
    assert answer.headers["Cache-Control"] == "no-store"
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert "error" in answer.json()


@pytest.mark.parametrize("target", ["/health", "/calendar/1"])
@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_no_tunnel_opens_through_any_route(proxy: Proxy, target: str, protocol: str) -> None:
    answer = proxy.ask("GET", target, {**GOOD, "Upgrade": protocol})
    assert answer.status_code == 400
    assert proxy.registry.asked == []


def test_proof_works_once(proxy: Proxy) -> None:
    assert proxy.ask("GET", "/calendar/1").status_code == 200
    assert proxy.ask("GET", "/calendar/1").json()["reason"] == "replayed"


@pytest.mark.parametrize(
    ("verdict", "status", "header"),
    [
        ({"error": "insufficient_scope", "reason": "no_capability"}, 403, None),
        ({"error": "step_up_required", "reason": "confirm_above"}, 403, None),
        ({"error": "envelope_exceeded", "reason": "rate", "retry_after": 7}, 429, "Retry-After"),
        ({"error": "use_dpop_nonce", "nonce": "n"}, 401, "DPoP-Nonce"),
    ],
)
def test_nginx_gets_the_status_and_body_in_headers(
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    verdict: dict[str, Any],
    status: int,
    header: str | None,
) -> None:
    monkeypatch.setattr(proxy.registry, "answer", lambda _asked: {"valid": False, **verdict})
    plain = proxy.ask("GET", "/calendar/1", GOOD, "traefik")
    assert plain.status_code == status
    told = proxy.ask("GET", "/calendar/1", GOOD, "nginx")
    assert told.status_code == (401 if status == 401 else 403)
    assert told.headers["X-AgentAuth-Status"] == str(status)
    assert json.loads(told.headers["X-AgentAuth-Body"]) == plain.json()
    if header is not None:
        assert header in plain.headers
        assert header in told.headers


def test_repeated_operation_is_refused_unless_the_route_handles_it(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Verify.answer
    monkeypatch.setattr(
        proxy.registry, "answer", lambda asked: usual(proxy.registry, asked) | {"repeated": True}
    )
    assert proxy.ask("GET", "/calendar/1").status_code == 409
    again = proxy.ask("PUT", "/files/a", {**GOOD, "DPoP": "proof.2.x", "Idempotency-Key": "k"})
    assert (again.status_code, again.headers["X-AgentAuth-Repeated"]) == (200, "true")
    assert proxy.registry.asked[1]["idempotency_key"] == "k"


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("name", ["nginx", "traefik"])
def test_proxy_that_does_not_tell_the_request_gets_no_yes(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str, missing: int
) -> None:
    names = list(forward_auth.PROXIES[name] or ())
    told = {**GOOD, names[1 - missing]: ["GET", "/health"][1 - missing]}
    made = replace(Configuration.read(configured(proxy.registry.url)), proxy=name)
    app = ForwardAuth(made, proxy.client)
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://p") as client:
        answer = client.get("/health", headers=told)
    status = answer.headers.get("X-AgentAuth-Status", str(answer.status_code))
    assert (status, answer.is_success) == ("503", False)


def test_registry_that_is_away_means_503() -> None:
    with socket.socket() as held:
        # Nothing listens there.
        held.bind(("127.0.0.1", 0))
        away = Proxy(Verify(), f"http://127.0.0.1:{held.getsockname()[1]}")
        with away.client:
            answer = away.ask("GET", "/calendar/1")
    assert answer.status_code == 503
    assert answer.json()["error"] == "temporarily_unavailable"


def test_defect_lets_nothing_pass(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(VerifierClient, "verify", fails)
    answer = proxy.ask("GET", "/calendar/1")
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_answer_that_would_forge_a_header_lets_nothing_pass(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Verify.answer
    monkeypatch.setattr(
        proxy.registry, "answer", lambda asked: usual(proxy.registry, asked) | {"subject": "a\nb"}
    )
    assert proxy.ask("GET", "/calendar/1").status_code == 503


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("proxy = nginx", "not TOML"),
        (configured("https://r.example", "apache"), "`proxy` must be one of nginx"),
        (configured("https://r.example", routes=""), "at least one"),
        (configured("https://r.example") + "\n[more]\n", "unknown member `more`"),
        (configured("https://r.example").replace(AUDIENCE, "http://api"), "`audience`"),
        (configured("https://r.example").replace('client_id = "sp"', ""), "`client_id`"),
        (configured("https://r.example").replace('["GET"]', '"GET"'), "`methods` of route 1"),
        (configured("https://r.example").replace('["GET"]', '["get"]'), "`methods` of route 1"),
        (configured("https://r.example").replace("open = true", ""), "either `requires` or"),
        (configured("https://r.example").replace("open = true", "open = 1"), "either `requires`"),
        (configured("https://r.example").replace("/calendar/{id}", "calendar/{id}"), "`path` of"),
        (configured("https://r.example").replace("/calendar/{id}", "/c{id}"), "`path` of route 2"),
        (configured("https://r.example").replace("/{path:path}", "/{path:path}/x"), "`path` of"),
        (configured("https://r.example").replace('"/calendar/{id}"', '"/calendar/{day}"'), "{id}"),
        (configured("https://r.example").replace('"read", ', ""), "`requires` of route 2"),
        (configured("https://r.example").replace('"read"', '"look"'), "no kind of act"),
        (configured("https://r.example").replace('"read"', '"transact"'), "`amount` is missing"),
        (configured("https://r.example").replace("repeats = true", "repeats = 1"), "route 3"),
    ],
)
def test_mistake_in_the_file_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Configuration.read(text)
    assert says in str(caught.value)


def test_application_needs_a_file_and_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(forward_auth.SECRET_VARIABLE, raising=False)
    file = tmp_path / "agentauth.toml"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        application(file)
    file.write_text(configured("https://r.example"))
    with pytest.raises(ConfigurationError, match="Set AGENTAUTH_CLIENT_SECRET"):
        application(file)
    monkeypatch.setenv(forward_auth.SECRET_VARIABLE, "a secret of the provider")
    assert "secret" not in repr(application(file))
    file.write_text(configured("http://r.example"))
    with pytest.raises(ConfigurationError, match="`registry_url`"):
        application(file)


def test_example_file_can_be_read() -> None:
    example = Path(__file__).parents[3] / "examples/forward-auth/agentauth.toml"
    assert len(Configuration.read(example.read_text()).routes) == 3
