"""The ASGI entry of the lean verifier process: the endpoint, and Django's own application for what it does not answer."""

# First, since it sets Django up.
from agentauth.wsgi import application as django_application  # isort: split

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Final

from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware

from agentauth import health, metrics
from agentauth.http_errors import STATUSES, ServerError, body_of, domain_error, headers_of, is_held_back
from agentauth.middleware import SecurityHeadersMiddleware
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidStateError,
    RateLimitedError,
    TemporarilyUnavailableError,
)
from agentauth.proxies import client_address
from agentauth.startup import START, StartRefusedError, verifier_role_is_bounded
from agentauth.tally import Tally
from registry import rate_limits
from verifier.endpoint import BESIDE, Edge, Endpoint, Request, Response, Scope, rendered
from verifier.services import home
from verifier.services.following import Follower
from verifier.services.lean import LeanVerifier
from verifier.stores.connection import Servers

logger = logging.getLogger(__name__)

# Threads for what the endpoint hands on. Who asks how the process is waits for nobody else, and whether it is there at all is
# answered while all that need the database hang.
_THREADS: Final = {"handed on": 4, "probes": 2, "alive": 1}
# How many requests may wait for the threads of each kind.
_MAX_WAITING: Final = 64
# What counts wrong credentials by the address they came from, once the view refused them.
JUDGING: Final = frozenset({b"/v1/verify", b"/v1/verify/batch", b"/v1/introspect"})
_NO_ROOM: Final = "Too many calls at once. Try again shortly."


class Delegate:
    """Django's WSGI application, in threads of its own: the request arrives there as it would at the web server."""

    def __init__(self, tally: Tally, follower: Follower) -> None:
        self._tally = tally
        self._follower = follower
        self._threads = {kind: ThreadPoolExecutor(count, kind) for kind, count in _THREADS.items()}
        self._waiting = dict.fromkeys(_THREADS, 0)

    def stop(self) -> None:
        """End the threads, with what each of them holds of the database."""
        self._tally.add_up()
        for kind, threads in self._threads.items():
            together = threading.Barrier(_THREADS[kind])

            def close(together: threading.Barrier = together) -> None:
                together.wait()
                connections.close_all()

            for _ in range(_THREADS[kind]):
                threads.submit(close)
            threads.shutdown()

    async def __call__(self, request: Request) -> Response:
        """Raises TemporarilyUnavailableError where too many wait already, and RateLimitedError, see `check_stranger`."""
        kind = _kind(request.scope["raw_path"])
        await check_stranger(request, self._follower)
        if self._waiting[kind] >= _MAX_WAITING:
            raise TemporarilyUnavailableError(_NO_ROOM)
        # It may be the metrics that are asked for.
        self._tally.add_up()
        self._waiting[kind] += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads[kind], partial(answered_by_django, request.scope, request.body or b"")
            )
        finally:
            self._waiting[kind] -= 1


async def check_stranger(request: Request, follower: Follower) -> None:
    """Refuse with 429 what the Django view would, without the view, which takes ten times as long.

    Raises RateLimitedError where the caller's credentials are wrong, wrong ones used up the allowance of this address,
    and no event is due: an event, the view records. In plain JSON, whatever Accept says.
    """
    path = request.scope["raw_path"]
    if path not in JUDGING or request.scope["method"] != "POST":
        return
    head = request.head
    authorization = head.headers.get(b"authorization")
    if authorization is None or follower.held_provider(head.digest) is not None:
        return
    try:
        rate_limits.check(rate_limits.ADDRESS, _address(request.scope))
    except RateLimitedError:
        # Good credentials that are not held yet are good at any address.
        if await follower.provider(authorization.decode("latin-1")) is not None:
            return
        if is_held_back(f"POST {path.decode()[1:]}"):
            raise


def _address(scope: Scope) -> str:
    return client_address(environ(scope, b""), hops=settings.TRUSTED_PROXIES)


def _kind(path: bytes) -> str:
    if path == b"/health/live":
        return "alive"
    return "probes" if path in BESIDE else "handed on"


def answered_by_django(scope: Scope, body: bytes) -> Response:
    """What Django's application answers to one request, asked as a server asks it."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None, /) -> Any:
        started.append((status, headers))

    # With the body of HEAD, which the web server is spared: its length is counted, and it is not sent.
    parts: Iterable[bytes] = WSGIHandler.__call__(django_application, environ(scope, body), start_response)
    try:
        answer = b"".join(parts)
    finally:
        # Ends the request for Django: connections go back.
        parts.close()  # type: ignore[attr-defined]  # a response of Django has it
    status, headers = started[0]
    sent = tuple(
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers
        if name.lower() != "content-length"
    )
    return Response(int(status.split(" ", 1)[0]), answer, sent, complete=True)


def environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """The request as gunicorn's WSGI workers would hand it on (PEP 3333)."""
    query = scope["query_string"].decode("latin-1")
    raw = scope["raw_path"].decode("latin-1")
    client, server = scope.get("client") or ("", 0), scope.get("server") or ("", 0)
    made: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        # Text of bytes, as WSGI wants it.
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "RAW_URI": f"{raw}?{query}" if query else raw,
        "QUERY_STRING": query,
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        health.SIGNS_NOTHING: True,
    }
    for name, value in scope["headers"]:
        if name == b"cookie":
            # These addresses know no sessions, and this process may not read them.
            continue
        key = name.decode("latin-1").upper().replace("-", "_")
        key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
        text = value.decode("latin-1")
        made[key] = f"{made[key]},{text}" if key in made else text
    return made


def failed(error: Exception) -> Response:
    """Any exception as every edge answers it; what is recorded of it, its raiser recorded."""
    known = domain_error(error)
    if isinstance(known, ServerError):
        logger.error("unhandled error in the verifier", exc_info=error)
    metrics.count_error(known)
    if isinstance(known, TemporarilyUnavailableError) and not known.reason and not known.fields:
        # Under too many calls nothing is answered as often.
        return _unavailable(known.description)
    return _told(known)


@lru_cache(maxsize=16)
def _unavailable(description: str) -> Response:
    return _told(TemporarilyUnavailableError(description))


def _told(error: AgentAuthError) -> Response:
    status = STATUSES[error.code]
    headers = headers_of(error, status, HttpRequest())
    sent = tuple((name.lower().encode(), value.encode()) for name, value in headers.items())
    return Response(
        status, rendered(body_of(error)), tuple(each for each in sent if each[0] != b"cache-control")
    )


def standing_headers() -> tuple[tuple[bytes, bytes], ...]:
    """What every answer of these addresses carries, from the middleware that says so everywhere.

    Raises RuntimeError where a middleware answers by itself (with a redirect to https, say): its headers are not ours.
    """
    plain = HttpResponse(content_type="application/json", headers={"Cache-Control": "no-store"})
    answer: Callable[[HttpRequest], Any] = lambda _: plain  # noqa: E731 — a view in the middleware's eyes
    for middleware in (SecurityMiddleware, XFrameOptionsMiddleware, SecurityHeadersMiddleware):
        answer = middleware(answer)
    # As a call arrives: by https, or by the http of a proxy that is believed. Without it production redirects, and sends no
    # Strict-Transport-Security.
    asked = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/verify", "HTTP_HOST": settings.ALLOWED_HOSTS[0]}
    made = answer(WSGIRequest(asked | {"wsgi.url_scheme": "https", "wsgi.input": io.BytesIO()}))
    if made is not plain:
        raise RuntimeError(f"A middleware answers in place of /v1/verify, with {made.status_code}.")
    made["Allow"] = "POST, OPTIONS"
    # Each answer has its own.
    del made["Content-Length"]
    return tuple((name.lower().encode(), value.encode()) for name, value in made.items())


def check_role() -> None:
    """As at the start of the server, for a process that was forked later. Raises InvalidStateError, and django.db errors."""
    try:
        verifier_role_is_bounded()
    except StartRefusedError as error:
        raise InvalidStateError(str(error)) from None
    finally:
        # Of a thread that ends.
        connection.close()


async def start() -> tuple[LeanVerifier, Edge]:
    """Everything the process holds, made in its own loop; raises where it cannot serve."""
    # Where the database was away when the server began, what was not checked then is checked now.
    await asyncio.to_thread(START.require)
    await asyncio.to_thread(check_role)
    # The loop waits at most so long (s) for a thread that reads rows, each time it lets one in. Python's own is ten times that.
    sys.setswitchinterval(0.0005)
    loop = asyncio.get_running_loop()
    runs = lambda: home.LEASE.held().servers  # noqa: E731 — what the present epoch began with
    servers = Servers(settings.REDIS_URL, expected_runs=runs) if settings.REDIS_URL else None
    tally = Tally()
    verifier = LeanVerifier(follower=Follower(loop, missed=tally.miss), servers=servers, count=tally.decision)
    await verifier.start()
    tally.begin()
    return verifier, Edge(
        delegate=Delegate(tally, verifier.follower),
        failed=failed,
        observe=tally.request,
        headers=standing_headers(),
    )


application: Callable[..., Awaitable[None]] = Endpoint(start)
