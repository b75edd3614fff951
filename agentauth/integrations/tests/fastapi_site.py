"""The conformance suite's site in FastAPI: by the decorator, and by dependencies."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel

from agentauth.integrations.fastapi import Agent, needs, protect, protected, unprotected
from agentauth.integrations.requirement import Requirement
from agentauth.integrations.tests import conformance as suite
from agentauth.integrations.tests.conformance import (
    OPEN,
    SAYS,
    SECRET,
    Integration,
    provider_at,
    served_by_asgi,
)

# FastAPI has no cache, no conditional requests and no class-based views of its own.
RESOURCES = frozenset({"/plain", "/undecorated", "/etag", "/stream", "/missing", "/broken"})
Endpoint = Callable[..., Any]


class Money(BaseModel):
    value: str
    currency: str


class Payment(BaseModel):
    amount: Money
    payee: str


def text(agent: Agent) -> str:
    return f"{SECRET}: {agent.agent_id}"


async def answer(agent: Agent) -> str:
    return text(agent)


def answer_in_a_thread(agent: Agent) -> str:
    return text(agent)


async def tagged(agent: Agent, response: Response) -> str:
    response.headers["ETag"] = '"v1"'
    response.headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
    return text(agent)


def saying(stated: str) -> Endpoint:
    async def say(agent: Agent, response: Response) -> str:
        response.headers["Cache-Control"] = stated
        return text(agent)

    return say


async def streamed(agent: Agent) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield text(agent)[:9]
        yield text(agent)[9:]

    return StreamingResponse(parts())


async def missing(agent: Agent) -> str:
    raise HTTPException(404, text(agent))


async def broken(agent: Agent) -> str:
    raise RuntimeError(text(agent))


async def calendar(name: str, agent: Agent) -> str:
    return f"{text(agent)} {name}"


async def numbers(number: int, agent: Agent) -> str:
    return f"{text(agent)} {number}"


async def files(name: str, agent: Agent) -> str:
    return text(agent)


async def payments(payment: Payment, agent: Agent) -> str:
    return f"{text(agent)} {payment.payee}"


async def kept(agent: Agent) -> str:
    return "stored" if agent.repeated else "new"


async def upload(request: Request, agent: Agent) -> str:
    return f"{text(agent)} {sum([len(part) async for part in request.stream()])}"


async def coroutine(agent: Agent) -> str:
    await asyncio.sleep(0)
    return text(agent)


@unprotected
async def front() -> PlainTextResponse:
    return PlainTextResponse("hello", headers={"Cache-Control": "max-age=3600"})


ENDPOINTS: tuple[tuple[str, str, Requirement, Endpoint], ...] = (
    ("GET", "/plain", suite.COROUTINE, answer_in_a_thread),
    ("GET", "/etag", suite.COROUTINE, tagged),
    ("GET", "/stream", suite.COROUTINE, streamed),
    ("GET", "/missing", suite.COROUTINE, missing),
    ("GET", "/broken", suite.COROUTINE, broken),
    *(("GET", path, suite.COROUTINE, saying(stated)) for path, (stated, _) in SAYS.items()),
    ("GET", "/numbers/{number}", suite.NUMBERS, numbers),
    ("GET", "/files/{name:path}", suite.FILES, files),
    ("POST", "/payments", suite.PAYMENTS, payments),
    ("POST", "/erase", suite.ERASE, answer),
    ("POST", "/kept", suite.KEPT, kept),
    ("POST", "/upload", suite.UPLOAD, upload),
    ("POST", "/v1/events", suite.EVENTS, answer),
    ("GET", "/coroutine", suite.COROUTINE, coroutine),
)


@contextmanager
def start(registry_url: str, *, by_dependency: bool) -> Iterator[str]:
    # Text as it is, not as JSON.
    app = FastAPI(default_response_class=PlainTextResponse)
    # Before the routes are there.
    protect(app, provider_at(registry_url))
    router = APIRouter(prefix="/calendar")

    def add(
        to: FastAPI | APIRouter, method: str, path: str, needed: Requirement, endpoint: Endpoint
    ) -> None:
        methods = [method, "HEAD"] if method == "GET" else [method]
        if by_dependency:
            wanted = [Depends(needs(needed))]
            to.add_api_route(path, endpoint, methods=methods, dependencies=wanted)
        else:
            to.add_api_route(path, protected(needed)(endpoint), methods=methods)

    for method, path, needed, endpoint in ENDPOINTS:
        add(app, method, path, needed, endpoint)
    add(router, "GET", "/{name}", suite.CALENDAR, calendar)
    app.include_router(router)
    app.add_api_route("/undecorated", answer, methods=["GET", "HEAD"])
    app.add_api_route(OPEN, front, methods=["GET", "HEAD"])
    with served_by_asgi(app) as url:
        yield url


INTEGRATIONS = (
    Integration("FastAPI, decorator", partial(start, by_dependency=False), RESOURCES),
    Integration("FastAPI, dependency", partial(start, by_dependency=True), RESOURCES),
)
