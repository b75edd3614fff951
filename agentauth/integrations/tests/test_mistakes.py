"""A service provider's mistake is named, and opens nothing."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flask
import pytest
from django.core.exceptions import ImproperlyConfigured
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from agentauth.integrations import fastapi as for_fastapi
from agentauth.integrations import flask as for_flask
from agentauth.integrations import starlette as for_starlette
from agentauth.integrations.django_decorators import required_act
from agentauth.integrations.provider_settings import Provider
from agentauth.integrations.requirement import ConfigurationError, requires
from agentauth.sdk import Allowed

PROVIDER = Provider("https://registry.example.com", "id", "secret", "https://api.sp.example")
READ, WRITE = requires("read", "calendar"), requires("write", "calendar")
ONE = requires("read", "calendar/{name}")
SIGNED = {"Authorization": "DPoP t", "DPoP": "a.b.c"}
ALLOWED = Allowed("d", "a", "A", "s", "g")


App = TypeVar("App", bound=Starlette)


class Always:
    """A verifier that allows everything."""

    def verify(self, **_asked: Any) -> Allowed:
        return ALLOWED

    async def close(self) -> None:
        pass


class AlwaysLater(Always):
    async def verify(self, **_asked: Any) -> Allowed:  # type: ignore[override]  # a coroutine
        return ALLOWED


async def answer(request: Request) -> Response:
    return PlainTextResponse("secret")


def ask(app: Any, path: str = "/x", **headers: str) -> Any:
    """What a client gets; a failure of the application is 500."""
    client = TestClient(app, raise_server_exceptions=False)
    return client.get(path, headers={**SIGNED, **headers})


def started(app: App) -> App:
    for_starlette.protect(app, PROVIDER, verifier=AlwaysLater())  # type: ignore[arg-type]
    return app


# ---- the settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("registry_url", "http://registry.example.com", "registry_url.*https"),
        ("registry_url", "", "registry_url.*must be set"),
        ("client_secret", None, "client_secret.*must be set"),
        ("audience", "https://api.example.com/", "audience"),
        ("audience", "api.example.com", "audience"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: Any, said: str) -> None:
    given = {
        "registry_url": "https://registry.example.com",
        "client_id": "id",
        "client_secret": "secret",
        "audience": "https://api.example.com",
    }
    with pytest.raises(ConfigurationError, match=said):
        Provider(**given | {name: value})


def test_missing_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTAUTH_AUDIENCE", raising=False)
    monkeypatch.setenv("AGENTAUTH_REGISTRY", "https://registry.example.com")
    with pytest.raises(ConfigurationError, match="AGENTAUTH_AUDIENCE in the environment"):
        Provider.from_environment()


def test_the_secret_of_the_settings_is_not_shown() -> None:
    assert "secret" not in repr(PROVIDER).replace("client_secret", "")


# ---- Starlette and FastAPI


def test_a_route_without_the_parameter_stops_the_start() -> None:
    endpoint = for_starlette.protected(ONE)(answer)
    said = r"names \{name\}, but the route /x"
    for routes in ([Route("/x", endpoint)], [Mount("/y", routes=[Route("/x", endpoint)])]):
        with pytest.raises(ConfigurationError, match=said):
            started(Starlette(routes=routes))
    started(Starlette(routes=[Mount("/{name}", routes=[Route("/x", endpoint)])]))


def test_a_route_added_later_is_checked_at_the_start() -> None:
    app = started(FastAPI())
    app.add_api_route("/x", for_fastapi.protected(ONE)(answer))
    with pytest.raises(ConfigurationError, match="the route /x"), TestClient(app):
        pytest.fail("it started")


def test_protection_comes_before_the_first_request() -> None:
    app = Starlette()
    ask(app)
    with pytest.raises(ConfigurationError, match="before the application serves"):
        started(app)


def test_a_protected_endpoint_without_protection_of_the_app_serves_nothing() -> None:
    endpoint = for_starlette.protected(READ)(answer)
    assert ask(Starlette(routes=[Route("/x", endpoint)])).status_code == 500
    assert ask(started(Starlette(routes=[Route("/x", endpoint)]))).text == "secret"
    app = FastAPI(dependencies=[Depends(for_fastapi.needs(READ))])
    app.add_api_route("/x", answer)
    assert ask(app).status_code == 500


def test_a_decorator_that_hides_the_requirement_serves_nothing() -> None:
    """The route then looks as if nothing was said of it, so verify was asked without the act."""
    inner = for_starlette.protected(READ)(answer)

    async def hides(request: Request) -> Response:
        found: Response = await inner(request)
        return found

    assert ask(started(Starlette(routes=[Route("/x", hides)]))).status_code == 500


def test_one_decision_is_for_one_run_of_the_endpoint() -> None:
    inner = for_starlette.protected(READ)(answer)

    @functools.wraps(inner)
    async def twice(request: Request) -> Response:
        await inner(request)
        found: Response = await inner(request)
        return found

    assert ask(started(Starlette(routes=[Route("/x", twice)]))).status_code == 500


def test_a_path_that_is_changed_after_the_check_serves_nothing() -> None:
    class Rewriting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "path": "/calendar/home"}, receive, send)

    async def events(name: str) -> str:
        return f"secret of {name}"

    app = started(FastAPI())
    app.add_api_route("/calendar/{name}", for_fastapi.protected(ONE)(events))
    app.add_middleware(Rewriting)
    assert ask(app, "/calendar/home").text == '"secret of home"'
    assert ask(app, "/calendar/work").status_code == 500


def test_two_requirements_of_a_route_serve_nothing() -> None:
    app = started(FastAPI(dependencies=[Depends(for_fastapi.needs(WRITE))]))
    app.add_api_route("/x", for_fastapi.protected(READ)(answer))
    with pytest.raises(ConfigurationError, match="one requirement, not"), TestClient(app):
        pytest.fail("it started")


def test_a_dependency_of_an_included_router_is_found() -> None:
    inner, outer = APIRouter(), APIRouter(prefix="/b")
    inner.add_api_route("/{name}", answer)
    outer.include_router(inner, prefix="/c", dependencies=[Depends(for_fastapi.needs(ONE))])
    app = started(FastAPI())
    app.include_router(outer, prefix="/a")
    assert ask(app, "/a/b/c/work").text == "secret"
    wrong = started(FastAPI())
    wrong.add_api_route("/x", answer, dependencies=[Depends(for_fastapi.needs(ONE))])
    with pytest.raises(ConfigurationError, match="the route /x"), TestClient(wrong):
        pytest.fail("it started")


def test_an_application_that_is_mounted_is_closed_unless_it_is_marked() -> None:
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("secret")(scope, receive, send)

    class Files:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("open")(scope, receive, send)

    routes = [Mount("/a", mounted), Mount("/b", for_starlette.unprotected(Files()))]
    app = started(Starlette(routes=routes))
    assert TestClient(app).get("/a/x").status_code == 401
    assert ask(app, "/a/x").text == "secret"
    assert TestClient(app).get("/b/x").text == "open"
    assert TestClient(app).get("/nowhere").status_code == 401


# ---- Flask


def flask_app(view: Callable[..., Any], rule: str = "/x") -> flask.Flask:
    app = flask.Flask("mistaken")
    app.add_url_rule(rule, "view", view)
    return app


def asked(app: flask.Flask, path: str = "/x") -> Any:
    return app.test_client().get(path, headers=SIGNED)


def test_a_flask_view_without_the_argument_stops_the_import() -> None:
    with pytest.raises(ConfigurationError, match=r"names \{name\}.*it has none"):
        for_flask.protected(ONE)(lambda: "secret")


def test_a_flask_view_without_protection_of_the_app_serves_nothing() -> None:
    assert asked(flask_app(for_flask.protected(READ)(lambda: "secret"))).status_code == 500


def test_a_flask_app_is_protected_before_its_first_request() -> None:
    app = flask_app(lambda: "open")
    asked(app)
    with pytest.raises(ConfigurationError, match="before the application serves"):
        for_flask.protect(app, PROVIDER)


def test_arguments_that_a_decorator_changes_serve_nothing() -> None:
    inner = for_flask.protected(ONE)(lambda name: f"secret of {name}")

    @functools.wraps(inner)
    def elsewhere(name: str) -> Any:
        return inner(name="home")

    app = flask_app(elsewhere, "/calendar/<name>")
    for_flask.protect(app, PROVIDER, verifier=Always())  # type: ignore[arg-type]
    assert asked(app, "/calendar/work").status_code == 500
    assert asked(app, "/calendar/home").text == "secret of home"


def test_another_function_does_not_answer_before_the_check() -> None:
    app = flask_app(for_flask.protected(READ)(lambda: "secret"))
    app.before_request(lambda: "cached secret")
    for_flask.protect(app, PROVIDER, verifier=Always())  # type: ignore[arg-type]
    app.before_request(lambda: "cached secret")
    assert app.test_client().get("/x").status_code == 401
    assert app.test_client().get("/static/x").status_code == 401


@pytest.mark.parametrize("protected", [for_flask.protected, for_starlette.protected])
def test_what_protects_is_a_requirement_and_what_is_protected_a_function(protected: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"@protected\(requires"):
        protected("read")
    with pytest.raises(ConfigurationError, match=r"@protected\(requires"):
        protected(answer)
    with pytest.raises(ConfigurationError, match="functions"):
        protected(READ)(type("Page", (), {}))


def test_a_dependency_is_of_a_requirement() -> None:
    with pytest.raises(ConfigurationError, match="Depends"):
        for_fastapi.needs("read")  # type: ignore[arg-type]


# ---- Django REST framework


class Page:
    requirement = {"list": READ, "POST": WRITE}

    def list(self) -> None: ...
    def post(self) -> None: ...
    def patch(self) -> None: ...


@pytest.mark.parametrize(
    ("actions", "method", "wanted"),
    [
        ({"get": "list"}, "GET", READ),
        ({"get": "list"}, "HEAD", READ),
        (None, "POST", WRITE),
        (None, "OPTIONS", None),
        # REST framework answers 405.
        (None, "DELETE", None),
    ],
)
def test_each_method_of_a_class_has_its_requirement(
    actions: dict[str, str] | None, method: str, wanted: object
) -> None:
    assert required_act(Page, actions, method) is wanted


def test_a_method_that_the_mapping_leaves_out_serves_nothing() -> None:
    with pytest.raises(ImproperlyConfigured, match="'patch'"):
        required_act(Page, None, "PATCH")
    with pytest.raises(ImproperlyConfigured, match="must be requires"):
        required_act(type("Odd", (), {"requirement": "read"}), None, "GET")
