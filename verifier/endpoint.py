"""The lean ASGI endpoint of `POST /v1/verify`, `/v1/verify/batch` and `/v1/introspect`: its own process type.

It answers what is in order. Whatever is not (no or refused credentials, a body that is no request, a query string, too many
calls, a method or address it does not serve) goes to the Django view of the same address, which refuses it as it refuses
everywhere: one meaning, and the same bytes. No session, no middleware, no ORM while what is asked for is known.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol

import orjson
from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.http import QueryDict

from agentauth.protocol.encoding import read_json
from agentauth.protocol.errors import (
    AgentAuthError,
    RateLimitedError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.reading import items, members
from agentauth.protocol.values import per_call
from audit.identifiers import id_text, new_id_text
from audit.services import Actor
from registry import rate_limits
from registry.models import ServiceProvider
from verifier.heads import MAX_BATCH_BYTES, Head, Scope, head_of
from verifier.requests import parse_delivery, parse_verify_request
from verifier.services.batch import MAX_REQUESTS
from verifier.services.lean import LeanVerifier

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES: Final = 64 * 1024
# Requests of known callers that one process has not answered yet; beyond, the next is told at once to come again.
MAX_IN_FLIGHT: Final = 256
# With more than so many of them, where turns of the loop have taken longer than this (s) for a while (s), each begins no more
# after that long, since whoever comes next waits for all of it; what a standstill of a moment has piled up is answered.
_MAX_IN_LONG_TURN: Final = 32
_LONG_TURN_SECONDS: Final = 0.025
_LASTING_SECONDS: Final = 0.25
_OVERLOADED: Final = TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

_JSON_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8"})
_FORM_TYPES: Final = frozenset({b"application/x-www-form-urlencoded"})
# As a call that carries one spells it. Whoever escapes its letters is found out when it is read.
_NAMED: Final = b'"idempotency_key"'
_VERIFY_ROUTE: Final = "POST v1/verify"
# What the process serves beside, also where there is no room for anything else: how it is, and its counters.
BESIDE: Final = frozenset({b"/health/live", b"/health/ready", b"/health/startup", b"/metrics"})
# Counted, recorded and answered as any unknown address is.
_NOWHERE: Final = "/v1/-"


class Unusual(Exception):  # noqa: N818 — no error: the request is somebody else's to answer
    """Nothing for here: the Django view answers it."""


@per_call(frozen=True, slots=True)
class Request:
    """One HTTP request. `body` is None where none was taken."""

    scope: Scope
    head: Head
    body: bytes | None
    id: str


@per_call(frozen=True, slots=True)
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
        # When the first call in the present turn of the loop was begun that made it many; none did yet.
        self._turn_began: float | None = None
        # Of the long turns that came one soon after the other: when the first was found to be one, and when the last.
        self._long_since = self._long_last = -_LASTING_SECONDS
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
        begun = time.perf_counter()
        route = scope["raw_path"]
        own = new_id_text()
        if self._in_flight >= _MAX_IN_LONG_TURN and self._is_full(begun) and route not in BESIDE:
            answer = self._edge.failed(_OVERLOADED)
        else:
            self._in_flight += 1
            try:
                head = head_of(scope, https_only=self._https_only)
                # The whole body, which our server has before it asks us. Where none is read, it is refused by what its head says.
                body = (await receive())["body"] if head.reads_body else None
                answer = await self._answer(Request(scope, head, body, own))
            finally:
                self._in_flight -= 1
        headers = self._headers(own, answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        if route in self._acts:
            self._edge.observe(route.decode(), answer.status, time.perf_counter() - begun)

    def _is_full(self, now: float) -> bool:
        """Whether a call that begins now, as one of many, is told to come again. The first of a turn has it timed."""
        if self._turn_began is None:
            self._turn_began = now
            # It runs first in the next turn.
            asyncio.get_running_loop().call_soon(self._end_turn)
        if now - self._turn_began > _LONG_TURN_SECONDS:
            if now - self._long_last > _LASTING_SECONDS:
                self._long_since = now
            self._long_last = now
            if now - self._long_since > _LASTING_SECONDS:
                return True
        return self._in_flight >= MAX_IN_FLIGHT

    def _end_turn(self) -> None:
        self._turn_began = None

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"]
        act = self._acts.get(path)
        try:
            if not self._is_known(request.head) and path not in BESIDE:
                answer = await self._as_stranger(request)
                if answer is not None:
                    return answer
            if act is not None and request.scope["method"] == "POST":
                try:
                    return Response(200, await act(request))
                except Unusual:
                    pass
            return await self._delegated(request)
        except Exception as error:  # noqa: BLE001 — whatever it is, it is answered; defects are logged there
            return self._edge.failed(error)

    async def _delegated(self, request: Request) -> Response:
        path = request.scope["raw_path"]
        if path not in self._acts and path not in BESIDE:
            request = _nowhere(request)
        return await self._edge.delegate(request)

    def _is_known(self, head: Head) -> bool:
        return self._verifier.follower.held_provider(head.digest) is not None

    async def _as_stranger(self, request: Request) -> Response | None:
        """The answer to a caller whose credentials are not held here and do not hold; None where they do.

        Meanwhile it is none of those in flight: however many strangers come, they take no room from known callers.
        """
        self._in_flight -= 1
        try:
            authorization = request.head.authorization
            if authorization is None or await self._verifier.follower.provider(authorization) is None:
                return await self._delegated(request)
        finally:
            self._in_flight += 1
        return None

    async def _verify(self, request: Request) -> bytes:
        if _NAMED in (request.body or b""):
            # The agent named it, so the database decides on it: where too many wait for that, it is not read in vain.
            self._verifier.check_room()
        caller = self._held_caller(request, _JSON_TYPES, MAX_BODY_BYTES)
        provider, actor = caller or await self._caller(request)
        try:
            asked = parse_verify_request(_object(request.body))
            key_at, delivery = request.head.key_at, None
            if key_at is not None:
                _, key = request.scope["headers"][key_at]
                delivery = parse_delivery(
                    key.decode("latin-1"),
                    service_provider_id=provider.id,
                    body=request.body or b"",
                    operation_key=asked.operation_key,
                )
        except AgentAuthError:
            raise Unusual from None
        _count(actor)
        now = datetime.now(UTC)
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
        caller = self._held_caller(request, _JSON_TYPES, MAX_BATCH_BYTES)
        provider, actor = caller or await self._caller(request)
        try:
            body = members(_object(request.body, MAX_BATCH_BYTES), "body", required=["requests"])
            asked = items(body["requests"], "requests", maximum=MAX_REQUESTS)
        except AgentAuthError:
            raise Unusual from None
        _count(actor)
        # As the view does.
        rate_limits.charge(rate_limits.SERVICE_PROVIDER, actor.id, len(asked) - 1)
        results = await self._verifier.verify_batch(
            service_provider=provider, requests=asked, actor=actor, clock=partial(datetime.now, UTC)
        )
        return rendered({"results": results})

    async def _introspect(self, request: Request) -> bytes:
        caller = self._held_caller(request, _FORM_TYPES, MAX_BODY_BYTES)
        provider, actor = caller or await self._caller(request)
        try:
            tokens = QueryDict(request.body, encoding="utf-8").getlist("token")
        except (SuspiciousOperation, ValueError):
            raise Unusual from None
        if len(tokens) != 1 or not tokens[0]:
            raise Unusual
        _count(actor)
        answer = await self._verifier.introspect(
            service_provider=provider, untrusted_token=tokens[0], now=datetime.now(UTC)
        )
        return rendered(answer)

    def _held_caller(
        self, request: Request, types: frozenset[bytes], max_body: int
    ) -> tuple[ServiceProvider, Actor] | None:
        """The service provider of a request in the plain form, where it is held. Raises Unusual for any other request."""
        head, body = request.head, request.body
        if (
            head.authorization is None
            or head.headers.get(b"content-type") not in types
            or body is None
            or len(body) > max_body
        ):
            raise Unusual
        provider = self._verifier.follower.held_provider(head.digest)
        return None if provider is None else (provider, _actor(provider, request))

    async def _caller(self, request: Request) -> tuple[ServiceProvider, Actor]:
        """The same, where it is to be read first."""
        provider = await self._verifier.follower.provider(request.head.authorization or "")
        if provider is None:
            raise Unusual
        return provider, _actor(provider, request)

    def _headers(self, own: str, answer: Response) -> list[tuple[bytes, bytes]]:
        length = b"content-length", b"%d" % len(answer.body)
        if answer.complete:
            return [*answer.headers, length]
        return [*answer.headers, *self._edge.headers, (b"x-request-id", own.encode()), length]

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._verifier, self._edge = await self._start()
        except Exception as error:
            unforeseen = not isinstance(error, AgentAuthError)
            logger.log(logging.ERROR, "the verifier could not start: %s", error, exc_info=unforeseen)
            await send({"type": "lifespan.startup.failed", "message": type(error).__name__})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._verifier.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._edge.delegate.stop)
        await send({"type": "lifespan.shutdown.complete"})


def _nowhere(request: Request) -> Request:
    """The same at an address that nobody serves: what this process serves is less than the Django application behind it."""
    scope = {**request.scope, "path": _NOWHERE, "raw_path": _NOWHERE.encode()}
    return replace(request, scope=scope)


def rendered(body: Mapping[str, Any]) -> bytes:
    """JSON as the framework's renderer writes it."""
    text = orjson.dumps(body)
    if text.isascii():
        return text
    # Two line ends that JavaScript once minded: the renderer escapes them.
    return text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


def _object(body: bytes | None, max_bytes: int = MAX_BODY_BYTES) -> object:
    return read_json(body or b"", max_bytes=max_bytes)


def _actor(provider: ServiceProvider, request: Request) -> Actor:
    return Actor("service_provider", id_text(provider.id), request.id)


def _count(caller: Actor) -> None:
    try:
        rate_limits.take(rate_limits.SERVICE_PROVIDER, caller.id)
    except RateLimitedError:
        # Asked again by the view, which says and records it.
        raise Unusual from None
