"""The conformance suite's site in plain ASGI, with a table of routes."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager

from agentauth.integrations.asgi import (
    UNPROTECTED,
    AgentAuthMiddleware,
    Line,
    Receive,
    Scope,
    Send,
    decision,
)
from agentauth.integrations.tests import conformance as suite
from agentauth.integrations.tests.conformance import (
    OPEN,
    SAYS,
    SECRET,
    Integration,
    provider_at,
    served_by_asgi,
)

RESOURCES = frozenset({"/plain", "/undecorated", "/etag", "/stream", "/missing", "/broken"})
READ = ("/plain", "/etag", "/stream", "/missing", "/broken", *SAYS, "/coroutine")
ROUTES: list[Line] = [
    *((method, path, suite.COROUTINE) for path in READ for method in ("GET", "HEAD")),
    ("GET", "/calendar/{name}", suite.CALENDAR),
    ("GET", "/numbers/{number}", suite.NUMBERS),
    ("GET", "/files/{name:path}", suite.FILES),
    ("POST", "/payments", suite.PAYMENTS),
    ("POST", "/erase", suite.ERASE),
    ("POST", "/kept", suite.KEPT),
    ("POST", "/upload", suite.UPLOAD),
    ("POST", "/v1/events", suite.EVENTS),
    ("GET", OPEN, UNPROTECTED),
]


async def body_of(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    return body


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    path, status, headers = scope["path"], 200, []
    if path == OPEN:
        text, headers = "hello", [(b"cache-control", b"max-age=3600")]
    else:
        allowed = decision(scope)
        text = f"{SECRET}: {allowed.agent_id}"
        if path == "/broken":
            # A framework answers so; what leaves the application is the server's to answer.
            status = 500
        elif path == "/missing":
            status = 404
        elif path == "/etag":
            headers = [(b"etag", b'"v1"')]
        elif path == "/kept":
            text = "stored" if allowed.repeated else "new"
        elif path in SAYS:
            headers = [(b"cache-control", SAYS[path][0].encode())]
        elif path.startswith(("/calendar/", "/numbers/")):
            text += f" {path.split('/', 2)[2]}"
        elif path in {"/payments", "/upload"}:
            body = await body_of(receive)
            text += f" {json.loads(body)['payee'] if path == '/payments' else len(body)}"
        await asyncio.sleep(0)
    parts = [text[:9], text[9:]] if path == "/stream" else [text]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def start(registry_url: str) -> Iterator[str]:
    app = AgentAuthMiddleware(application, provider_at(registry_url), routes=ROUTES)
    with served_by_asgi(app) as url:
        yield url


INTEGRATIONS = (Integration("ASGI, table of routes", start, RESOURCES),)
