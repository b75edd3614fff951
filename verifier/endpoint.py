"""The lean ASGI endpoint of `POST /v1/verify`, `/v1/verify/batch` and `/v1/introspect`: its own process type.

It answers what is in order. Whatever is not (no or refused credentials, a body that is no request, a query string, too many
calls, a method or address it does not serve) goes to the Django view of the same address, which refuses it as it refuses
everywhere: one meaning, and the same bytes. No session, no middleware, no ORM while what is asked for is known.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import orjson
from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.http import QueryDict
from django.http.request import split_domain_port, validate_host
from django.utils import timezone

from agentauth.protocol.encoding import read_json
from agentauth.protocol.errors import (
    AgentAuthError,
    NotFoundError,
    RateLimitedError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.reading import items, members
from audit.identifiers import new_id
from audit.services import Actor
from registry import rate_limits
from registry.models import ServiceProvider
from verifier.requests import parse_delivery, parse_verify_request
from verifier.services.batch import MAX_REQUESTS
from verifier.services.lean import LeanVerifier

logger = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES: Final = 64 * 1024
MAX_BATCH_BYTES: Final = 1024 * 1024
# Requests of one process that are not answered yet; beyond, the next is told at once to come again.
MAX_IN_FLIGHT: Final = 256
_OVERLOADED: Final = TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

# The header lines that are looked at here; of each there may be one.
_READ: Final = frozenset(
    {
        b"host",
        b"accept",
        b"authorization",
        b"content-type",
        b"content-length",
        b"transfer-encoding",
        b"idempotency-key",
        b"x-forwarded-proto",
    }
)
_JSON_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8"})
_FORM_TYPES: Final = frozenset({b"application/x-www-form-urlencoded"})
_VERIFY_ROUTE: Final = "POST v1/verify"
# What the process serves beside: how it is, and its counters.
_BESIDE: Final = frozenset({b"/health/live", b"/health/ready", b"/health/startup", b"/metrics"})
_ACCEPTED: Final = frozenset({None, b"*/*", b"application/json"})


class Unusual(Exception):  # noqa: N818 — no error: the request is somebody else's to answer
    """Nothing for here: the Django view answers it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `body` is None where none was taken: it has no length, or a larger one than anybody may send."""

    scope: Scope
    headers: Mapping[bytes, bytes]
    body: bytes | None
    id: str


@dataclass(frozen=True, slots=True)
class Response:
    """What to send. `headers` are all but the length where it is `complete`, else those beside `Edge.headers`."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    complete: bool = False


class Delegate(Protocol):
    """Whoever answers what the endpoint does not."""

    async def __call__(self, request: Request, /) -> Response:
        """Raises TemporarilyUnavailableError."""

    def stop(self) -> None:
        """End what it holds."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What the endpoint needs of the project around it."""

    # The Django view of the same address.
    delegate: Delegate
    # A refusal or failure as every edge tells it, counted and, where it is a defect, logged.
    failed: Callable[[Exception], Response]
    # (route, status, seconds) of each answer given here.
    observe: Callable[[str, int, float], None]
    # What stands on every answer given here.
    headers: tuple[tuple[bytes, bytes], ...]


class Endpoint:
    """The ASGI application; `verifier` and `edge` are made by `start`, in the process and the loop that serve."""

    def __init__(self, start: Callable[[], Awaitable[tuple[LeanVerifier, Edge]]]) -> None:
        self._start = start
        self._verifier: LeanVerifier
        self._edge: Edge
        self._in_flight = 0
        self._https_only = settings.SECURE_SSL_REDIRECT
        self._acts: dict[bytes, Callable[[Request], Awaitable[bytes]]] = {
            b"/v1/verify": self._verify,
            b"/v1/verify/batch": self._verify_batch,
            b"/v1/introspect": self._introspect,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise TypeError(f"not served: {scope['type']}")
        begun = time.perf_counter()
        route = scope["raw_path"]
        own = str(new_id())
        if self._in_flight >= MAX_IN_FLIGHT:
            await self._send(send, own, self._edge.failed(_OVERLOADED))
            return
        self._in_flight += 1
        try:
            request = await _received(scope, receive, own)
            if request is None:
                return
            answer = await self._answer(request)
        finally:
            self._in_flight -= 1
        await self._send(send, own, answer)
        if route in self._acts:
            self._edge.observe(route.decode(), answer.status, time.perf_counter() - begun)

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"]
        act = self._acts.get(path)
        try:
            if act is not None and request.scope["method"] == "POST":
                try:
                    return Response(200, await act(request))
                except Unusual:
                    pass
            if act is None and path not in _BESIDE:
                raise NotFoundError("There is nothing here, or it is not yours.")  # noqa: TRY301 — one way to fail
            return await self._edge.delegate(request)
        except Exception as error:  # noqa: BLE001 — whatever it is, it is answered; defects are logged there
            return self._edge.failed(error)

    async def _verify(self, request: Request) -> bytes:
        provider, actor = await self._caller(request, _JSON_TYPES, MAX_BODY_BYTES)
        try:
            asked = parse_verify_request(_object(request.body))
            key = request.headers.get(b"idempotency-key")
            delivery = parse_delivery(
                None if key is None else key.decode("latin-1"),
                service_provider_id=provider.id,
                body=request.body or b"",
                operation_key=asked.operation_key,
            )
        except AgentAuthError:
            raise Unusual from None
        _count(provider)
        now = timezone.now()
        try:
            answer = await self._verifier.verify(
                service_provider=provider, request=asked, delivery=delivery, actor=actor, now=now
            )
        except TemporarilyUnavailableError:
            raise
        except AgentAuthError as error:
            # Another body under the call's key, or a call under it that still runs: no decision, so no event yet.
            raise await self._verifier.recorded(error, provider, actor, now, _VERIFY_ROUTE) from None
        return rendered(answer.body)

    async def _verify_batch(self, request: Request) -> bytes:
        provider, actor = await self._caller(request, _JSON_TYPES, MAX_BATCH_BYTES)
        try:
            body = members(_object(request.body, MAX_BATCH_BYTES), "body", required=["requests"])
            asked = items(body["requests"], "requests", maximum=MAX_REQUESTS)
        except AgentAuthError:
            raise Unusual from None
        _count(provider)
        results = await self._verifier.verify_batch(
            service_provider=provider, requests=asked, actor=actor, clock=timezone.now
        )
        return rendered({"results": results})

    async def _introspect(self, request: Request) -> bytes:
        provider, _ = await self._caller(request, _FORM_TYPES, MAX_BODY_BYTES)
        try:
            tokens = QueryDict(request.body, encoding="utf-8").getlist("token")
        except (SuspiciousOperation, ValueError):
            raise Unusual from None
        if len(tokens) != 1 or not tokens[0]:
            raise Unusual
        _count(provider)
        answer = await self._verifier.introspect(
            service_provider=provider, untrusted_token=tokens[0], now=timezone.now()
        )
        return rendered(answer)

    async def _caller(
        self, request: Request, types: frozenset[bytes], max_body: int
    ) -> tuple[ServiceProvider, Actor]:
        """The service provider of a request in the plain form. Raises Unusual for any other request."""
        headers = request.headers
        authorization = headers.get(b"authorization")
        plain = (
            not request.scope["query_string"]
            and authorization is not None
            and headers.get(b"content-type") in types
            and headers.get(b"accept") in _ACCEPTED
            and request.body is not None
            and len(request.body) <= max_body
            and is_our_host(headers.get(b"host", b""))
            and (not self._https_only or _came_by_https(request))
        )
        if not plain or authorization is None:
            raise Unusual
        provider = await self._verifier.follower.provider(authorization.decode("latin-1"))
        if provider is None:
            raise Unusual
        return provider, Actor("service_provider", str(provider.id), request.id)

    async def _send(self, send: Send, own: str, answer: Response) -> None:
        ours = () if answer.complete else (*self._edge.headers, (b"x-request-id", own.encode()))
        headers = [*answer.headers, *ours, (b"content-length", str(len(answer.body)).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._verifier, self._edge = await self._start()
        except Exception as error:
            logger.exception("the verifier could not start")
            await send({"type": "lifespan.startup.failed", "message": type(error).__name__})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._verifier.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._edge.delegate.stop)
        await send({"type": "lifespan.shutdown.complete"})


async def _received(scope: Scope, receive: Receive, own: str) -> Request | None:
    """The request with its whole body; None where its sender hung up before."""
    headers: dict[bytes, bytes] = {}
    plain = True
    for name, value in scope["headers"]:
        if name in _READ:
            plain = plain and name not in headers
            headers[name] = value
    length = headers.get(b"content-length", b"0")
    # Seven digits are as many as the longest body's length has, and as Python is asked to read.
    plain_length = length.isdigit() and len(length) <= len(str(MAX_BATCH_BYTES))
    if b"transfer-encoding" in headers or not plain_length or int(length) > MAX_BATCH_BYTES:
        # Nothing of it is read: it is refused by what its head says.
        return Request(scope, headers if plain else {}, None, own)
    chunks = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    # Two lines of a name that is read here: in the Django view they are one, and refused.
    return Request(scope, headers if plain else {}, body, own)


def rendered(body: Mapping[str, Any]) -> bytes:
    """JSON as the framework's renderer writes it."""
    text = orjson.dumps(body)
    # Two line ends that JavaScript once minded: the renderer escapes them.
    return text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


@lru_cache(maxsize=64)
def is_our_host(header: bytes) -> bool:
    """Whether the Host header names us; a foreign one is refused by Django."""
    domain, _ = split_domain_port(header.decode("latin-1"))
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


def _came_by_https(request: Request) -> bool:
    said = request.headers.get(b"x-forwarded-proto") if settings.TRUSTED_PROXIES else None
    return request.scope["scheme"] == "https" or said == b"https"


def _object(body: bytes | None, max_bytes: int = MAX_BODY_BYTES) -> object:
    return read_json(body or b"", max_bytes=max_bytes)


def _count(provider: ServiceProvider) -> None:
    try:
        rate_limits.take(rate_limits.SERVICE_PROVIDER, str(provider.id))
    except RateLimitedError:
        # Asked again by the view, which says and records it.
        raise Unusual from None
