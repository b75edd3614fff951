"""The conformance suite's site in Starlette."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from agentauth.integrations.starlette import decision, protect, protected, unprotected
from agentauth.integrations.tests import conformance as suite
from agentauth.integrations.tests.conformance import (
    OPEN,
    SAYS,
    SECRET,
    Integration,
    provider_at,
    served_by_asgi,
)

# Starlette has no cache and no conditional requests of its own.
RESOURCES = frozenset(
    {"/plain", "/undecorated", "/class", "/etag", "/stream", "/missing", "/broken"}
)


def text(request: Request) -> str:
    return f"{SECRET}: {decision(request).agent_id}"


async def answer(request: Request) -> Response:
    return PlainTextResponse(text(request))


def answer_in_a_thread(request: Request) -> Response:
    return PlainTextResponse(text(request))


async def tagged(request: Request) -> Response:
    headers = {"ETag": '"v1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    return PlainTextResponse(text(request), headers=headers)


def saying(stated: str) -> Callable[[Request], Any]:
    async def say(request: Request) -> Response:
        return PlainTextResponse(text(request), headers={"Cache-Control": stated})

    return say


async def streamed(request: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        yield text(request)[:9]
        yield text(request)[9:]

    return StreamingResponse(parts())


async def missing(request: Request) -> Response:
    raise HTTPException(404, text(request))


async def broken(request: Request) -> Response:
    raise RuntimeError(text(request))


class Page(HTTPEndpoint):
    @protected(suite.COROUTINE)
    async def get(self, request: Request) -> Response:
        return PlainTextResponse(text(request))


@protected(suite.CALENDAR)
async def calendar(request: Request) -> Response:
    return PlainTextResponse(f"{text(request)} {request.path_params['name']}")


@protected(suite.NUMBERS)
async def numbers(request: Request) -> Response:
    return PlainTextResponse(f"{text(request)} {request.path_params['number']}")


@protected(suite.PAYMENTS)
async def payments(request: Request) -> Response:
    return PlainTextResponse(f"{text(request)} {(await request.json())['payee']}")


@protected(suite.KEPT)
async def kept(request: Request) -> Response:
    return PlainTextResponse("stored" if decision(request).repeated else "new")


@protected(suite.UPLOAD)
async def upload(request: Request) -> Response:
    length = sum([len(part) async for part in request.stream()])
    return PlainTextResponse(f"{text(request)} {length}")


@protected(suite.COROUTINE)
async def coroutine(request: Request) -> Response:
    await asyncio.sleep(0)
    return PlainTextResponse(text(request))


@unprotected
async def front(_request: Request) -> Response:
    return PlainTextResponse("hello", headers={"Cache-Control": "max-age=3600"})


READ = protected(suite.COROUTINE)


def application() -> Starlette:
    says = [Route(path, READ(saying(stated))) for path, (stated, _) in SAYS.items()]
    # Some within a mount, whose routes are closed too.
    mounted = [Route("/{name}", calendar)]
    return Starlette(
        routes=[
            Route("/plain", READ(answer_in_a_thread)),
            Route("/undecorated", answer),
            Route("/class", Page),
            Route("/etag", READ(tagged)),
            Route("/stream", READ(streamed)),
            Route("/missing", READ(missing)),
            Route("/broken", READ(broken)),
            *says,
            Mount("/calendar", routes=mounted),
            Route("/numbers/{number:int}", numbers),
            Route("/files/{name:path}", protected(suite.FILES)(answer)),
            Route("/payments", payments, methods=["POST"]),
            Route("/erase", protected(suite.ERASE)(answer), methods=["POST"]),
            Route("/kept", kept, methods=["POST"]),
            Route("/upload", upload, methods=["POST"]),
            Route("/v1/events", protected(suite.EVENTS)(answer), methods=["POST"]),
            Route("/coroutine", coroutine),
            Route(OPEN, front),
        ]
    )


@contextmanager
def start(registry_url: str) -> Iterator[str]:
    app = application()
    protect(app, provider_at(registry_url))
    with served_by_asgi(app) as url:
        yield url


INTEGRATIONS = (Integration("Starlette", start, RESOURCES),)
