"""The verifier process's ASGI endpoint: `/v1/verify`, `/v1/verify/batch` and `/v1/introspect`.

It answers well-formed requests. All others (missing or refused credentials, an invalid body, a
query string, too many calls, an unknown method or address) go to the Django view of the same
address, so that a refusal has the same meaning and the same bytes in both. No session or middleware
runs here, and no ORM query while the state is cached.
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
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.json_fields import items, members
from audit.new_ids import id_text
from audit.services import Actor
from registry import caller_limits
from registry.models import ServiceProvider
from verifier.endpoint_paths import BATCH, INTROSPECT, VERIFY
from verifier.request_heads import MAX_BATCH_BYTES, Head, Scope, head_of
from verifier.requests import parse_delivery, parse_verify_request
from verifier.services.batch import MAX_REQUESTS
from verifier.services.verifier_process import VerifierProcess

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES: Final = 64 * 1024
# Unanswered requests of known callers in one process; beyond this, further ones get 503 at once.
MAX_IN_FLIGHT: Final = 256
# Load shedding: above 32 unanswered requests, once turns of the event loop have taken more than
# 25 ms for 0.25 s, a turn begins no new request after its first 25 ms, since later callers wait
# for all of them. A backlog from one short stall is still answered.
_MAX_IN_LONG_TURN: Final = 32
_LONG_TURN_SECONDS: Final = 0.025
_LASTING_SECONDS: Final = 0.25
_OVERLOADED: Final = TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

_JSON_TYPES: Final = frozenset({b"application/json", b"application/json; charset=utf-8"})
_FORM_TYPES: Final = frozenset({b"application/x-www-form-urlencoded"})
# A cheap test for this member. A client that escapes its letters is found out when
# the body is parsed.
_NAMED: Final = b'"idempotency_key"'
_VERIFY_ROUTE: Final = "POST v1/verify"
# Health probes and metrics, which are served even under overload.
BESIDE: Final = frozenset({b"/health/live", b"/health/ready", b"/health/startup", b"/metrics"})
# Stands for every address this process does not serve: counted, recorded and answered as unknown.
_NOWHERE: Final = "/v1/-"


class Unusual(Exception):  # noqa: N818 — no error: the Django view answers the request
    """This endpoint does not answer the request: the Django view does."""


@per_call(frozen=True, slots=True)
class Request:
    """One HTTP request. `body` is None if none was read."""

    scope: Scope
    head: Head
    body: bytes | None
    id: str


@per_call(frozen=True, slots=True)
class Response:
    """What to send. `headers` lack only the length if `complete`; else `Edge.headers` are added."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    complete: bool = False


class FallbackApp(Protocol):
    """Answers the requests that the endpoint does not."""

    async def __call__(self, request: Request, /) -> Response:
        """Answer `request`. Raises TemporarilyUnavailableError if it cannot."""

    def stop(self) -> None:
        """Release its resources."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What the endpoint needs of the project around it."""

    # The Django view of the same address.
    delegate: FallbackApp
    # Renders an error as all our endpoints do, counts it, and logs it if it is a defect.
    failed: Callable[[Exception], Response]
    # Makes the id of a request that begins here.
    begin: Callable[[], str]
    # Called with (route, status, seconds) for each answer given here.
    observe: Callable[[str, int, float], None]
    # Added to every answer given here.
    headers: tuple[tuple[bytes, bytes], ...]


class Endpoint:
    """The ASGI application. `start` makes verifier and edge in the serving process and its loop."""

    def __init__(self, start: Callable[[], Awaitable[tuple[VerifierProcess, Edge]]]) -> None:
        self._start = start
        self._verifier: VerifierProcess
        self._edge: Edge
        self._in_flight = 0
        # When the current turn of the loop began its first call above _MAX_IN_LONG_TURN;
        # None if not yet.
        self._turn_began: float | None = None
        # When the first and the last of the current run of long turns were noticed.
        self._long_since = self._long_last = -_LASTING_SECONDS
        self._https_only = settings.SECURE_SSL_REDIRECT
        self._acts: dict[bytes, Callable[[Request], Awaitable[bytes]]] = {
            VERIFY.encode(): self._verify,
            BATCH.encode(): self._verify_batch,
            INTROSPECT.encode(): self._introspect,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        begun = time.perf_counter()
        route = scope["raw_path"]
        own = self._edge.begin()
        if self._in_flight >= _MAX_IN_LONG_TURN and self._is_full(begun) and route not in BESIDE:
            answer = self._edge.failed(_OVERLOADED)
        else:
            self._in_flight += 1
            try:
                head = head_of(scope, https_only=self._https_only)
                # Our server calls us once it has the whole body. If the head forbids reading it,
                # the request is refused by its head alone.
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
        """Whether to shed a call that begins now. The first one of a turn starts its timer."""
        if self._turn_began is None:
            self._turn_began = now
            # The callback runs first in the next turn, which ends the measurement.
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
            return await self._delegate(request)
        except Exception as error:  # noqa: BLE001 — every error is answered; `failed` logs defects
            return self._edge.failed(error)

    async def _delegate(self, request: Request) -> Response:
        path = request.scope["raw_path"]
        if path not in self._acts and path not in BESIDE:
            request = _nowhere(request)
        return await self._edge.delegate(request)

    def _is_known(self, head: Head) -> bool:
        return self._verifier.cached_state.held_provider(head.digest) is not None

    async def _as_stranger(self, request: Request) -> Response | None:
        """Refuse a caller with uncached credentials that turn out wrong; None if they are right.

        The request is not counted as in flight meanwhile, so that unknown callers, however many,
        take no room from known ones.
        """
        self._in_flight -= 1
        try:
            authorization = request.head.authorization
            if (
                authorization is None
                or await self._verifier.cached_state.provider(authorization) is None
            ):
                return await self._delegate(request)
        finally:
            self._in_flight += 1
        return None

    async def _verify(self, request: Request) -> bytes:
        if _NAMED in (request.body or b""):
            # The database decides calls with this member. If its queue is full, do
            # not parse in vain.
            self._verifier.check_room()
        caller = self._held_caller(request, _JSON_TYPES, MAX_BODY_BYTES)
        provider, actor = caller or await self._caller(request)
        try:
            asked = parse_verify_request(_object(request.body))
            key_at, provider_key = request.head.key_at, None
            if key_at is not None:
                _, key = request.scope["headers"][key_at]
                provider_key = parse_delivery(
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
                service_provider=provider,
                request=asked,
                provider_key=provider_key,
                actor=actor,
                now=now,
            )
        except TemporarilyUnavailableError:
            raise
        except AgentAuthError as error:
            # Another body under the call's Idempotency-Key, or a call under it still running:
            # `verify` decided nothing and wrote no event.
            raise await self._verifier.record_error(
                error, provider, actor, now, _VERIFY_ROUTE
            ) from None
        return render_body(answer.body)

    async def _verify_batch(self, request: Request) -> bytes:
        caller = self._held_caller(request, _JSON_TYPES, MAX_BATCH_BYTES)
        provider, actor = caller or await self._caller(request)
        try:
            body = members(_object(request.body, MAX_BATCH_BYTES), "body", required=["requests"])
            asked = items(body["requests"], "requests", maximum=MAX_REQUESTS)
        except AgentAuthError:
            raise Unusual from None
        _count(actor)
        # `_count` counted one call; as in the Django view, count the rest of the batch.
        caller_limits.charge(caller_limits.SERVICE_PROVIDER, actor.id, len(asked) - 1)
        results = await self._verifier.verify_batch(
            service_provider=provider, requests=asked, actor=actor, clock=partial(datetime.now, UTC)
        )
        return render_body({"results": results})

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
        return render_body(answer)

    def _held_caller(
        self, request: Request, types: frozenset[bytes], max_body: int
    ) -> tuple[ServiceProvider, Actor] | None:
        """The service provider of a plain request; None if it is not cached.

        Raises Unusual for a request in any other form.
        """
        head, body = request.head, request.body
        if (
            head.authorization is None
            or head.headers.get(b"content-type") not in types
            or body is None
            or len(body) > max_body
        ):
            raise Unusual
        provider = self._verifier.cached_state.held_provider(head.digest)
        return None if provider is None else (provider, _actor(provider, request))

    async def _caller(self, request: Request) -> tuple[ServiceProvider, Actor]:
        """As `_held_caller`, but reads the service provider from the database."""
        provider = await self._verifier.cached_state.provider(request.head.authorization or "")
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
            logger.log(
                logging.ERROR, "the verifier could not start: %s", error, exc_info=unforeseen
            )
            await send({"type": "lifespan.startup.failed", "message": type(error).__name__})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._verifier.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._edge.delegate.stop)
        await send({"type": "lifespan.shutdown.complete"})


def _nowhere(request: Request) -> Request:
    """The request at an unknown address, since Django serves more addresses than this process."""
    scope = {**request.scope, "path": _NOWHERE, "raw_path": _NOWHERE.encode()}
    return replace(request, scope=scope)


def render_body(body: Mapping[str, Any]) -> bytes:
    """JSON as the framework's renderer writes it."""
    text = orjson.dumps(body)
    if text.isascii():
        return text
    # U+2028 and U+2029 end lines in older JavaScript, so the renderer escapes them.
    return text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


def _object(body: bytes | None, max_bytes: int = MAX_BODY_BYTES) -> object:
    return read_json(body or b"", max_bytes=max_bytes)


def _actor(provider: ServiceProvider, request: Request) -> Actor:
    return Actor("service_provider", id_text(provider.id), request.id)


def _count(caller: Actor) -> None:
    try:
        caller_limits.take(caller_limits.SERVICE_PROVIDER, caller.id)
    except RateLimitedError:
        # The view counts again, answers 429 and records it.
        raise Unusual from None
