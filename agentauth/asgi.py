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
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse

from agentauth import health, metrics
from agentauth.http_errors import (
    COUNTED,
    STATUSES,
    ServerError,
    body_of,
    count_stranger,
    domain_error,
    headers_of,
    record_strangers,
)
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidStateError,
    RateLimitedError,
    TemporarilyUnavailableError,
)
from agentauth.proxies import client_address
from agentauth.startup import START, StartRefusedError, verifier_role_is_bounded
from agentauth.strangers import through_middleware
from agentauth.tally import Tally
from registry import rate_limits
from registry.refusals import METHODS
from verifier.endpoint import BESIDE, Edge, Endpoint, Request, Response, rendered
from verifier.heads import Scope
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
# All that this process serves to callers that prove who they are.
_JUDGING: Final = frozenset({b"/v1/verify", b"/v1/verify/batch", b"/v1/introspect"})
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
        """Raises TemporarilyUnavailableError where too many wait already, and RateLimitedError, see `_judged`."""
        kind = _kind(request.scope["raw_path"])
        scope = await self._judged(request)
        if self._waiting[kind] >= _MAX_WAITING:
            raise TemporarilyUnavailableError(_NO_ROOM)
        # It may be the metrics that are asked for.
        self._tally.add_up()
        self._waiting[kind] += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads[kind], partial(answered_by_django, scope, request.body or b"")
            )
        finally:
            self._waiting[kind] -= 1

    async def _judged(self, request: Request) -> Scope:
        """The request's scope, where the Django view is to answer it; it says so where a stranger is counted already.

        The view takes ten times as long to refuse a stranger. Raises RateLimitedError where the caller proves nothing and
        an allowance of its address or of all strangers is used up: in plain JSON, whatever Accept says. Raises
        TemporarilyUnavailableError where that cannot be recorded.
        """
        scope = request.scope
        if scope["raw_path"] in BESIDE:
            return scope
        head, follower = request.head, self._follower
        # Also of a request in a form that only the view takes.
        authorization = head.credentials
        if authorization is not None and follower.held_provider(head.digest) is not None:
            return scope
        try:
            rate_limits.check(rate_limits.ADDRESS, _address(scope))
            kind = rate_limits.NAMELESS if authorization is None else rate_limits.CREDENTIALS
            rate_limits.take(rate_limits.STRANGERS, kind)
        except RateLimitedError:
            # Good credentials that are not held yet are good at any address.
            if authorization and await follower.provider(authorization) is not None:
                return scope
            await self._record(_route_of(scope, authorization))
            raise
        return {**scope, COUNTED: True}

    async def _record(self, route: str) -> None:
        if count := count_stranger(route):
            write = partial(record_strangers, route, count)
            await asyncio.get_running_loop().run_in_executor(self._threads["handed on"], write)


def _route_of(scope: Scope, authorization: str | None) -> str:
    """The route by which the view counts a call that it refuses; without credentials it has not looked for one."""
    found = authorization is not None and scope["raw_path"] in _JUDGING
    method = scope["method"] if scope["method"] in METHODS else "other"
    return f"{method} {scope['raw_path'].decode()[1:] if found else ''}"


def _address(scope: Scope) -> str:
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    client = scope.get("client") or ("", 0)
    meta = {"HTTP_X_FORWARDED_FOR": ",".join(lines), "REMOTE_ADDR": client[0]}
    return client_address(meta, hops=settings.TRUSTED_PROXIES)


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
        COUNTED: scope.get(COUNTED, False),
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
    # Under too many calls nothing is answered as often as these two.
    if isinstance(known, TemporarilyUnavailableError) and not known.reason and not known.fields:
        return _unavailable(known.description)
    if isinstance(known, RateLimitedError):
        return _limited(known.description, known.fields["retry_after"])
    return _told(known)


@lru_cache(maxsize=16)
def _unavailable(description: str) -> Response:
    return _told(TemporarilyUnavailableError(description))


@lru_cache(maxsize=256)
def _limited(description: str, retry_after: int) -> Response:
    return _told(RateLimitedError(description, retry_after=retry_after))


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
    made = HttpResponse(content_type="application/json", headers={"Cache-Control": "no-store"})
    through_middleware(made, "/v1/verify")
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
