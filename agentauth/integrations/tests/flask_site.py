"""The conformance suite's site in Flask."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, abort, request
from flask.views import MethodView

from agentauth.integrations.flask import decision, protect, protected, unprotected
from agentauth.integrations.tests import conformance as suite
from agentauth.integrations.tests.conformance import (
    OPEN,
    SAYS,
    SECRET,
    Integration,
    provider_at,
    served_by_wsgi,
)

# Flask has no cache of its own.
RESOURCES = frozenset(
    {"/plain", "/undecorated", "/class", "/etag", "/stream", "/missing", "/broken"}
)
READ = protected(suite.COROUTINE)


def text() -> str:
    return f"{SECRET}: {decision().agent_id}"


def tagged() -> Any:
    answer = Response(text())
    answer.set_etag("v1")
    return answer.make_conditional(request)


def saying(stated: str) -> Callable[[], Response]:
    return lambda: Response(text(), headers={"Cache-Control": stated})


def streamed() -> Response:
    whole = text()
    return Response(iter([whole[:9], whole[9:]]))


def missing() -> Response:
    abort(404, text())


def broken() -> Response:
    raise RuntimeError(text())


class Page(MethodView):
    @protected(suite.COROUTINE)
    def get(self) -> str:
        return text()


@protected(suite.CALENDAR)
def calendar(name: str) -> str:
    return f"{text()} {name}"


@protected(suite.NUMBERS)
def numbers(number: int) -> str:
    return f"{text()} {number}"


@protected(suite.FILES)
def files(name: str) -> str:
    return text()


@protected(suite.PAYMENTS)
def payments() -> str:
    return f"{text()} {request.get_json()['payee']}"


@protected(suite.KEPT)
def kept() -> str:
    return "stored" if decision().repeated else "new"


@protected(suite.UPLOAD)
def upload() -> str:
    length = 0
    while part := request.stream.read(65_536):
        length += len(part)
    return f"{text()} {length}"


@protected(suite.COROUTINE)
async def coroutine() -> str:
    await asyncio.sleep(0)
    return text()


@unprotected
def front() -> Response:
    return Response("hello", headers={"Cache-Control": "max-age=3600"})


def application() -> Flask:
    app = Flask("flask_site")
    views: dict[str, Any] = {
        "/plain": READ(text),
        "/undecorated": text,
        "/class": Page.as_view("page"),
        "/etag": READ(tagged),
        "/stream": READ(streamed),
        "/missing": READ(missing),
        "/broken": READ(broken),
        "/coroutine": coroutine,
        "/calendar/<name>": calendar,
        "/numbers/<int:number>": numbers,
        "/files/<path:name>": files,
        OPEN: front,
    } | {path: READ(saying(stated)) for path, (stated, _) in SAYS.items()}
    posts: dict[str, Any] = {
        "/payments": payments,
        "/erase": protected(suite.ERASE)(text),
        "/kept": kept,
        "/upload": upload,
        "/v1/events": protected(suite.EVENTS)(text),
    }
    for path, view in views.items():
        app.add_url_rule(path, path, view)
    for path, view in posts.items():
        app.add_url_rule(path, path, view, methods=["POST"])
    return app


@contextmanager
def start(registry_url: str) -> Iterator[str]:
    app = application()
    provider = provider_at(registry_url)
    with provider.verifier() as verifier:
        protect(app, provider, verifier=verifier)
        with served_by_wsgi(app) as url:
            yield url


INTEGRATIONS = (Integration("Flask", start, RESOURCES),)
