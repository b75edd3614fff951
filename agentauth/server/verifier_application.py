"""The ASGI entry of the lean verifier process: its endpoint, and Django for all other requests."""

# First, since it sets Django up.
from agentauth.wsgi import application as django_application  # isort: split

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache, partial
from typing import Any, Final

from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse

from agentauth.client_address import client_address
from agentauth.flood_filter import through_middleware
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
from agentauth.observability import health, metrics
from agentauth.observability.metrics_buffer import Tally
from agentauth.observability.request_ids import begin_request
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidStateError,
    RateLimitedError,
    TemporarilyUnavailableError,
)
from agentauth.startup_checks import START, StartRefusedError, verifier_role_is_bounded
from registry import caller_limits
from registry.refusal_recording import METHODS
from verifier.asgi_endpoint import BESIDE, Edge, Endpoint, Request, Response, render_body
from verifier.endpoint_paths import LEAN_PATHS, VERIFY
from verifier.request_heads import Scope
from verifier.services import replay_cache_lease
from verifier.services.state_cache import StateCache
from verifier.services.verifier_process import VerifierProcess
from verifier.stores.redis_servers import Servers

logger = logging.getLogger(__name__)

# Threads for what the endpoint hands to Django. Health probes have their own and never queue behind
# requests; liveness has its own too, and answers while all that need the database hang.
_THREADS: Final = {"handed on": 4, "probes": 2, "alive": 1}
# How many requests may wait for or run in the threads of each kind.
_MAX_WAITING: Final = 64
# All that this process serves to authenticated callers.
_JUDGING: Final = frozenset(path.encode() for path in LEAN_PATHS)
_NO_ROOM: Final = "Too many calls at once. Try again shortly."


class Delegate:
    """Runs Django's WSGI application in threads; requests arrive as at the web server."""

    def __init__(self, tally: Tally, cached_state: StateCache) -> None:
        self._tally = tally
        self._follower = cached_state
        self._threads = {kind: ThreadPoolExecutor(count, kind) for kind, count in _THREADS.items()}
        self._waiting = dict.fromkeys(_THREADS, 0)

    def stop(self) -> None:
        """End the threads, and close the database connection of each."""
        self._tally.flush()
        for kind, threads in self._threads.items():
            together = threading.Barrier(_THREADS[kind])

            def close(together: threading.Barrier = together) -> None:
                together.wait()
                connections.close_all()

            for _ in range(_THREADS[kind]):
                threads.submit(close)
            threads.shutdown()

    async def __call__(self, request: Request) -> Response:
        """Raises TemporarilyUnavailableError if too many wait, and RateLimitedError (`_judge`)."""
        kind = _kind(request.scope["raw_path"])
        scope = await self._judge(request)
        if self._waiting[kind] >= _MAX_WAITING:
            raise TemporarilyUnavailableError(_NO_ROOM)
        # The request may be for the metrics.
        self._tally.flush()
        self._waiting[kind] += 1
        try:
            loop = asyncio.get_running_loop()
            # With the context, which has the ids of the request and of its trace.
            work = partial(copy_context().run, answered_by_django, scope, request.body or b"")
            return await loop.run_in_executor(self._threads[kind], work)
        finally:
            self._waiting[kind] -= 1

    async def _judge(self, request: Request) -> Scope:
        """The request's scope if Django is to answer it, with COUNTED if a stranger was counted.

        Django's view takes ten times as long to refuse a stranger. Raises RateLimitedError if the
        caller proves nothing and an allowance of its address or of all strangers is used up: in
        plain JSON, whatever Accept says. Raises TemporarilyUnavailableError if that cannot be
        recorded.
        """
        scope = request.scope
        if scope["raw_path"] in BESIDE:
            return scope
        head, cached_state = request.head, self._follower
        # Read also from a request in a form that only the view accepts.
        authorization = head.credentials
        if authorization is not None and cached_state.held_provider(head.digest) is not None:
            return scope
        try:
            caller_limits.check(caller_limits.ADDRESS, _address(scope))
            kind = caller_limits.NAMELESS if authorization is None else caller_limits.CREDENTIALS
            caller_limits.take(caller_limits.STRANGERS, kind)
        except RateLimitedError:
            # Valid credentials that are not cached yet are accepted at any address.
            if authorization and await cached_state.provider(authorization) is not None:
                return scope
            await self._record(_route_of(scope, authorization))
            raise
        return {**scope, COUNTED: True}

    async def _record(self, route: str) -> None:
        if count := count_stranger(route):
            write = partial(record_strangers, route, count)
            await asyncio.get_running_loop().run_in_executor(self._threads["handed on"], write)


def _route_of(scope: Scope, authorization: str | None) -> str:
    """The route under which the view counts such a refusal; none without credentials."""
    found = authorization is not None and scope["raw_path"] in _JUDGING
    method = scope["method"] if scope["method"] in METHODS else "other"
    return f"{method} {scope['raw_path'].decode()[1:] if found else ''}"


def _address(scope: Scope) -> str:
    lines = [
        value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"
    ]
    client = scope.get("client") or ("", 0)
    meta = {"HTTP_X_FORWARDED_FOR": ",".join(lines), "REMOTE_ADDR": client[0]}
    return client_address(meta, hops=settings.TRUSTED_PROXIES)


def _kind(path: bytes) -> str:
    if path == b"/health/live":
        return "alive"
    return "probes" if path in BESIDE else "handed on"


def answered_by_django(scope: Scope, body: bytes) -> Response:
    """Django's answer to one request, called as a server calls it."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None, /) -> Any:
        started.append((status, headers))

    # Past our Application, which drops the body of HEAD: its length is counted, and it is not sent.
    parts: Iterable[bytes] = WSGIHandler.__call__(
        django_application, environ(scope, body), start_response
    )
    try:
        answer = b"".join(parts)
    finally:
        # Ends the request for Django, which then gives its connections back.
        parts.close()  # type: ignore[attr-defined]  # a response of Django has it
    status, headers = started[0]
    sent = tuple(
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers
        if name.lower() != "content-length"
    )
    return Response(int(status.split(" ", 1)[0]), answer, sent, complete=True)


def environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """The request as gunicorn's WSGI workers would pass it on (PEP 3333)."""
    query = scope["query_string"].decode("latin-1")
    raw = scope["raw_path"].decode("latin-1")
    client, server = scope.get("client") or ("", 0), scope.get("server") or ("", 0)
    made: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        # Bytes as latin-1 text, as WSGI requires.
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
            # These addresses use no session, and this process may not read them.
            continue
        key = name.decode("latin-1").upper().replace("-", "_")
        key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
        text = value.decode("latin-1")
        made[key] = f"{made[key]},{text}" if key in made else text
    return made


def error_response(error: Exception) -> Response:
    """Any exception as its answer. Records nothing: the code that raised it has done so."""
    known = domain_error(error)
    if isinstance(known, ServerError):
        logger.error("unhandled error in the verifier", exc_info=error)
    metrics.count_error(known)
    # Under overload these two are the most frequent answers, so they are cached.
    if isinstance(known, TemporarilyUnavailableError) and not known.reason and not known.fields:
        return _unavailable(known.description)
    if isinstance(known, RateLimitedError):
        return _rate_limit_response(known.description, known.fields["retry_after"])
    return _response_of(known)


@lru_cache(maxsize=16)
def _unavailable(description: str) -> Response:
    return _response_of(TemporarilyUnavailableError(description))


@lru_cache(maxsize=256)
def _rate_limit_response(description: str, retry_after: int) -> Response:
    return _response_of(RateLimitedError(description, retry_after=retry_after))


def _response_of(error: AgentAuthError) -> Response:
    status = STATUSES[error.code]
    headers = headers_of(error, status, HttpRequest())
    sent = tuple((name.lower().encode(), value.encode()) for name, value in headers.items())
    return Response(
        status,
        render_body(body_of(error)),
        tuple(each for each in sent if each[0] != b"cache-control"),
    )


def standing_headers() -> tuple[tuple[bytes, bytes], ...]:
    """The headers of every answer at these addresses, as the middleware sets them.

    Raises RuntimeError if a middleware answers by itself (with a redirect to https, say): its
    headers are not ours.
    """
    made = HttpResponse(content_type="application/json", headers={"Cache-Control": "no-store"})
    through_middleware(made, VERIFY)
    made["Allow"] = "POST, OPTIONS"
    # Each answer has its own.
    del made["Content-Length"]
    return tuple((name.lower().encode(), value.encode()) for name, value in made.items())


def check_role() -> None:
    """Check the role as at server start, in a process forked later.

    Raises InvalidStateError, and django.db errors.
    """
    try:
        verifier_role_is_bounded()
    except StartRefusedError as error:
        raise InvalidStateError(str(error)) from None
    finally:
        # The connection belongs to a thread that ends.
        connection.close()


async def start() -> tuple[VerifierProcess, Edge]:
    """Build everything the process holds, in its own loop. Raises if it cannot serve."""
    # If the database was unavailable when the server began, run the checks now.
    await asyncio.to_thread(START.require)
    await asyncio.to_thread(check_role)
    # How long the loop waits for the GIL while a thread reads rows (s). Python's default: 0.005.
    sys.setswitchinterval(0.0005)
    loop = asyncio.get_running_loop()
    runs = lambda: replay_cache_lease.LEASE.last_epoch().servers  # noqa: E731 — what the present epoch began with
    servers = Servers(settings.REDIS_URL, expected_runs=runs) if settings.REDIS_URL else None
    tally = Tally()
    verifier = VerifierProcess(
        cached_state=StateCache(loop, missed=tally.miss), servers=servers, count=tally.decision
    )
    await verifier.start()
    tally.start_flushing()
    return verifier, Edge(
        delegate=Delegate(tally, verifier.cached_state),
        failed=error_response,
        begin=begin_request,
        observe=tally.request,
        headers=standing_headers(),
    )


application: Callable[..., Awaitable[None]] = Endpoint(start)
