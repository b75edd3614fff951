"""What the check took a request for is what runs, where frameworks offer two ways to read it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.test import RequestFactory
from flask import Flask
from rest_framework.response import Response
from rest_framework.views import APIView
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from werkzeug.test import create_environ, run_wsgi_app

from agentauth.integrations import asgi, drf, flask, starlette
from agentauth.integrations import django_decorators as ours
from agentauth.integrations.incoming_request import check_length
from agentauth.integrations.provider_settings import Provider
from agentauth.integrations.requirement import ConfigurationError, requires
from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk import Allowed

PROVIDER = Provider("https://registry.example.com", "id", "secret", "https://api.sp.example")
READ, WRITE = requires("read", "calendar/{id}"), requires("write", "calendar/{id}")
SIGNED = {"Authorization": "DPoP alice", "DPoP": "a.b.c"}


class Verifier:
    """Allows everything, and names the token as the person."""

    def verify(self, **asked: Any) -> Allowed:
        return Allowed("d", "a", "A", f"subject of {asked['token']}", "g", nonce="fresh")


class AsyncVerifier:
    async def verify(self, **_asked: Any) -> Allowed:
        return Allowed("d", "a", "A", "s", "g")


def told(app: Any, path: str, headers: list[tuple[bytes, bytes]]) -> list[Any]:
    """The messages that an ASGI application sends for a GET."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "scheme": "http",
        "query_string": b"", "headers": headers, "root_path": "", "http_version": "1.1",
        "server": ("x", 1),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


class Writes(APIView):
    requirement = READ

    def post(self, _request: Any, **_kwargs: object) -> Response:
        return Response({})


def test_requirement_given_to_one_use_of_a_view_outranks_its_class() -> None:
    request = RequestFactory().post("/calendar/work")
    view = Writes.as_view(requirement=WRITE)
    assert ours._declared(view, request) is WRITE
    assert ours._declared(Writes.as_view(), request) is READ
    instance = Writes(requirement=WRITE)
    request.agentauth = Allowed("d", "a", "A", "s", "g")  # type: ignore[attr-defined]
    wrapped: Any = request
    assert not drf.AgentPermission().has_permission(wrapped, instance)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("root", ["", "/v1", "/v1/"])
def test_line_of_the_table_holds_for_head_and_below_a_prefix(method: str, root: str) -> None:
    route = asgi.table([("GET", "/calendar/{id}", READ)])
    path = f"{root.rstrip('/')}/calendar/work"
    found = route({"type": "http", "method": method, "path": path, "root_path": root})
    assert (found.requirement, found.parameters) == (READ, {"id": "work"})


def test_open_view_of_flask_sees_no_earlier_decision() -> None:
    app = Flask(__name__)

    @app.get("/calendar/<id>")
    @flask.protected(READ)
    def calendar(id: str) -> str:  # noqa: A002 — the name of the parameter
        return flask.decision().subject

    @app.get("/open")
    @flask.unprotected
    def open_to_all() -> str:
        return flask.decision().subject

    flask.protect(app, PROVIDER, verifier=Verifier())  # type: ignore[arg-type]  # no registry
    app.testing = True
    with app.app_context(), app.test_client() as client:
        assert client.get("/calendar/work", headers=SIGNED).text == "subject of alice"
        with pytest.raises(ConfigurationError):
            client.get("/open")


@starlette.unprotected
class Public(HTTPEndpoint):
    async def get(self, _request: Request) -> PlainTextResponse:
        return PlainTextResponse("public")


class Private(Public):
    async def get(self, _request: Request) -> PlainTextResponse:
        return PlainTextResponse("private")


def test_subclass_of_an_open_endpoint_is_closed() -> None:
    app = Starlette(routes=[Route("/public", Public), Route("/private", Private)])
    starlette.protect(app, PROVIDER, verifier=AsyncVerifier())  # type: ignore[arg-type]
    assert told(app, "/public", [])[0]["status"] == 200
    assert told(app, "/private", [])[0]["status"] == 401


class LowerCase:
    """Rewrites the path between the check and the router."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(dict(scope, path=scope["path"].lower()), receive, send)


def test_path_that_changes_after_the_check_runs_no_endpoint() -> None:
    ran = []

    @starlette.protected(READ)
    async def calendar(request: Request) -> PlainTextResponse:
        ran.append(request.path_params)
        return PlainTextResponse("x")

    app = Starlette(routes=[Route("/calendar/{id}", calendar)], middleware=[Middleware(LowerCase)])
    starlette.protect(app, PROVIDER, verifier=AsyncVerifier())  # type: ignore[arg-type]
    headers = [(name.lower().encode(), value.encode()) for name, value in SIGNED.items()]
    with pytest.raises(ConfigurationError):
        told(app, "/calendar/WORK", headers)
    assert told(app, "/calendar/work", headers)[0]["status"] == 200
    assert ran == [{"id": "work"}]


@pytest.mark.parametrize("value", ["65537", "9" * 5_000, "0" * 5_000 + "65537"])
def test_length_that_is_too_long_is_refused_however_it_is_written(value: str) -> None:
    check_length(["²", "+1", "", "0", "65536", "000000000065536"])
    with pytest.raises(InvalidRequestError):
        check_length([value])


@pytest.mark.parametrize(
    ("limit", "size", "is_chunked", "status"),
    [
        (1_000, 1_000, False, 200),
        (1_000, 1_001, False, 413),
        (None, 65_536, False, 200),
        (10**6, 65_536, True, 200),
        (10**6, 65_537, True, 400),
    ],
)
def test_flask_keeps_a_lower_limit_of_the_application(
    limit: int | None, size: int, is_chunked: bool, status: int
) -> None:
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = limit
    reads = requires("write", "files", arguments=lambda asked: {"size": len(asked.read_body())})
    app.post("/files")(flask.protected(reads)(lambda: "stored"))
    flask.protect(app, PROVIDER, verifier=Verifier())  # type: ignore[arg-type]  # no registry
    environ = create_environ("/files", method="POST", data=b"x" * size, headers=SIGNED)
    if is_chunked:
        del environ["CONTENT_LENGTH"]
        environ["wsgi.input_terminated"] = True
    assert run_wsgi_app(app, environ)[1].startswith(str(status))
