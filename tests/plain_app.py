"""A small ASGI application for tests: answers like the registry, and reports what it received.

`gunicorn -c python:agentauth.server.verifier_gunicorn tests.plain_app:application`.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import django

from agentauth.server.request_framing import MAX_BODY_BYTES

# Its server's startup checks (agentauth/startup_checks.py) use models.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup()

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def application(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message["body"]
        more = message["more_body"]
    status, answer = await _answer(scope, body)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(answer)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})


async def _live(receive: Receive, send: Send) -> None:
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


async def _answer(scope: Message, body: bytes) -> tuple[int, bytes]:
    headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
    told = {
        "method": scope["method"],
        "raw_path": scope["raw_path"].decode(),
        "headers": headers,
        "body": len(body),
        "process": os.getpid(),
        "status": "ok",
    }
    names = dict(headers)
    path = told["raw_path"]
    status = 404
    if "transfer-encoding" in names:
        status = 400
    elif int(names.get("content-length") or 0) > MAX_BODY_BYTES:
        status = 413
    elif path.startswith("/health/"):
        status = 200 if scope["method"] in {"GET", "HEAD"} else 405
    elif path == "/v1/verify":
        status = 401 if scope["method"] == "POST" else 405
    elif path == "/v1/verify/slowly":
        await asyncio.sleep(1.5)
        status = 200
    elif path == "/v1/verify/long":
        return 200, b"x" * 8_000_000
    return status, json.dumps(told).encode()
