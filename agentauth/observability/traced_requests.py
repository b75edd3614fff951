"""Opens the root span of each request and each job, and notes in it what was decided."""

import functools
from collections.abc import Mapping
from typing import Any, Final

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from opentelemetry.trace import Span, SpanKind

from agentauth.job_table import Job
from agentauth.middleware import RequestIdMiddleware
from agentauth.observability import metrics
from agentauth.observability.request_observation import route_of
from agentauth.observability.spans import FAILED, begin_trace, links_to, request_span
from agentauth.protocol.errors import AgentAuthError
from registry.refusal_recording import METHODS, method_of
from verifier import api
from verifier.asgi_endpoint import BESIDE, Endpoint
from verifier.endpoint_paths import LEAN_PATHS
from verifier.services.verifier_process import VerifierProcess

_SERVER_ERROR: Final = 500
_ROUTES: Final = frozenset({path.encode() for path in LEAN_PATHS} | BESIDE)


def _traced_request(call: Any) -> Any:
    def traced(self: Any, request: HttpRequest) -> HttpResponseBase:
        if request_span.get() is not None:
            # Handed on by the verifier's endpoint, which describes the span.
            return call(self, request)  # type: ignore[no-any-return]
        links = links_to(request.META.get("HTTP_TRACEPARENT"))
        with begin_trace("request", SpanKind.SERVER, links=links, answers=True) as span:
            response: HttpResponseBase = call(self, request)
            _describe(span, request, response)
        return response

    return traced


def _describe(span: Span, request: HttpRequest, response: HttpResponseBase) -> None:
    if span.is_recording():
        request_id, method = getattr(request, "request_id", ""), method_of(request)
        _describe_answer(span, method, route_of(request), response.status_code, request_id)


def _describe_answer(span: Span, method: str, route: str, status: int, request_id: str) -> None:
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "agentauth.request_id": request_id,
        }
    )
    if status >= _SERVER_ERROR:
        span.set_status(FAILED)


def _traced_endpoint(call: Any) -> Any:
    async def traced(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await call(self, scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        links = links_to(sent.decode("latin-1"))
        with begin_trace("request", SpanKind.SERVER, links=links, answers=True) as span:
            if span.is_recording():
                send = functools.partial(_send, span, scope, send)
            await call(self, scope, receive, send)

    return traced


async def _send(span: Span, scope: Any, send: Any, message: Any) -> None:
    if message["type"] == "http.response.start":
        path, method = scope["raw_path"], scope["method"]
        ids = [value for name, value in message["headers"] if name.lower() == b"x-request-id"]
        _describe_answer(
            span,
            method if method in METHODS else "other",
            path.decode() if path in _ROUTES else "none",
            message["status"],
            ids[0].decode() if ids else "",
        )
    await send(message)


def _noted_error(count: Any) -> Any:
    def noted(error: AgentAuthError) -> None:
        span = request_span.get()
        if span is not None:
            span.set_attribute("error.type", error.code)
            if error.reason:
                span.set_attribute("agentauth.reason", error.reason)
        count(error)

    return noted


def _note_decision(body: Mapping[str, Any]) -> None:
    span = request_span.get()
    if span is not None and span.is_recording():
        names = ("error", "reason")
        found = {f"agentauth.{name}": body[name] for name in names if body.get(name)}
        valid = "allowed" if body["valid"] else "denied"
        span.set_attributes({"agentauth.decision": valid} | found)


def _noted_verify(verify: Any) -> Any:
    def noted(**given: Any) -> Any:
        answer = verify(**given)
        _note_decision(answer.body)
        return answer

    return noted


def _noted_loop_verify(verify: Any) -> Any:
    async def noted(self: Any, **given: Any) -> Any:
        answer = await verify(self, **given)
        _note_decision(answer.body)
        return answer

    return noted


def _traced_job(run: Any) -> Any:
    def traced(self: Job) -> None:
        with begin_trace(f"job {self.name}", SpanKind.INTERNAL) as span:
            span.set_attribute("agentauth.job", self.name)
            run(self)

    return traced


# Owner, method and what makes the traced one of it.
REPLACEMENTS: Final[list[tuple[Any, str, Any]]] = [
    (RequestIdMiddleware, "__call__", _traced_request),
    (Endpoint, "__call__", _traced_endpoint),
    (metrics, "count_error", _noted_error),
    (api, "verify", _noted_verify),
    (VerifierProcess, "verify", _noted_loop_verify),
    (Job, "_run", _traced_job),
]
