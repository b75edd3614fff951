"""What is traced: requests, jobs, and their calls to SQL, Redis, key backends and other hosts.

`install` replaces each method by a traced one, and `remove` puts it back. A span holds names, codes
and numbers of ours only. Why the instrumentations of OpenTelemetry are not used:
docs/adr/0081-spans-hold-names-and-no-values.md.
"""

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from typing import Any, Final
from urllib.parse import urlsplit

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)

from agentauth.job_table import Job
from agentauth.middleware import RequestIdMiddleware
from agentauth.observability import metrics
from agentauth.observability.logging_config import trace_id
from agentauth.observability.request_observation import route_of
from agentauth.observability.span_names import (
    command_name,
    pipeline_name,
    read_traceparent,
    statement_name,
)
from agentauth.postgresql.base import DatabaseWrapper
from agentauth.protocol.errors import AgentAuthError
from kms.services import _KeySigner
from registry.refusal_recording import METHODS, method_of
from verifier import api
from verifier.endpoint import BESIDE, Endpoint
from verifier.endpoint_paths import LEAN_PATHS
from verifier.services.loop_verification import VerifierProcess
from verifier.stores import group_commit, lua_scripts
from verifier.stores.group_commit import GroupCommitter
from verifier.stores.redis_servers import Servers

_FAILED: Final = Status(StatusCode.ERROR)
_SERVER_ERROR: Final = 500
_ROUTES: Final = frozenset({path.encode() for path in LEAN_PATHS} | BESIDE)
_SCRIPTS: Final = {
    getattr(lua_scripts, name): name.lower()
    for name in ("JUDGE", "GIVE_BACK", "NOTE", "MARK", "MARKER")
}
_tracer: Tracer
_undo: list[Callable[[], None]] = []
# The span of the request that this context answers; None outside one.
_request_span: ContextVar[Span | None] = ContextVar("request_span", default=None)
# Of calls that wait for the database: the span that waits, by the identity of what is asked.
_waiting: dict[int, Span] = {}


def install(provider: TracerProvider, *, sends: bool) -> None:
    """Trace with `provider` from now on. `sends`: this process sends to other hosts."""
    global _tracer  # noqa: PLW0603 — of this process
    _tracer = provider.get_tracer("agentauth")
    for owner, name, made in _REPLACEMENTS:
        _replace(owner, name, made)
    if sends:
        _trace_sending()


def remove() -> None:
    """Put every method back."""
    while _undo:
        _undo.pop()()


def _replace(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
    original = vars(owner)[name]
    setattr(owner, name, functools.wraps(original)(made(original)))
    _undo.append(lambda: setattr(owner, name, original))


# Spans.


@contextmanager
def _root(
    name: str, kind: SpanKind, *, links: Sequence[Link] = (), answers: bool = False
) -> Iterator[Span]:
    """A new trace, whose id log lines carry. `answers`: it is of a request."""
    # A new context: nothing that a caller sent, and no earlier request of this connection.
    span = _tracer.start_span(name, Context(), kind=kind, links=links)
    current = attach(set_span_in_context(span, Context()))
    traced = trace_id.set(format_trace_id(span.get_span_context().trace_id))
    request = _request_span.set(span if answers else None)
    try:
        with _ended(span):
            yield span
    finally:
        _request_span.reset(request)
        trace_id.reset(traced)
        detach(current)


@contextmanager
def _ended(span: Span) -> Iterator[None]:
    """End the span; of an exception only the class: its text may hold values."""
    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(_FAILED)
        raise
    finally:
        span.end()


def _start_child(name: str, attributes: Mapping[str, Any]) -> Span | None:
    """A span below the current one; None outside a trace, and in one that is not sampled."""
    if not get_current_span().is_recording():
        return None
    return _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def _child(name: str, attributes: Mapping[str, Any]) -> AbstractContextManager[None]:
    span = _start_child(name, attributes)
    return nullcontext() if span is None else _ended(span)


def _links(traceparent: str | None) -> list[Link]:
    """A link to the caller's trace, whose sampling and ids have no effect here."""
    found = read_traceparent(traceparent) if traceparent else None
    return [Link(SpanContext(*found, is_remote=True))] if found else []


# Requests.


def _traced_request(call: Any) -> Any:
    def traced(self: Any, request: HttpRequest) -> HttpResponseBase:
        outer = _request_span.get()
        if outer is not None:
            # Handed on by the verifier's endpoint.
            response: HttpResponseBase = call(self, request)
            _describe(outer, request, response)
            return response
        links = _links(request.META.get("HTTP_TRACEPARENT"))
        with _root("request", SpanKind.SERVER, links=links, answers=True) as span:
            response = call(self, request)
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
        span.set_status(_FAILED)


def _traced_endpoint(call: Any) -> Any:
    async def traced(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await call(self, scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        links = _links(sent.decode("latin-1"))
        with _root("request", SpanKind.SERVER, links=links, answers=True) as span:
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
        span = _request_span.get()
        if span is not None:
            span.set_attribute("error.type", error.code)
            if error.reason:
                span.set_attribute("agentauth.reason", error.reason)
        count(error)

    return noted


def _note_decision(body: Mapping[str, Any]) -> None:
    span = _request_span.get()
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


# Jobs.


def _traced_job(run: Any) -> Any:
    def traced(self: Job) -> None:
        with _root(f"job {self.name}", SpanKind.INTERNAL) as span:
            span.set_attribute("agentauth.job", self.name)
            run(self)

    return traced


# The database.


def _sql(vendor: str, sql: object) -> AbstractContextManager[None]:
    if not get_current_span().is_recording():
        return nullcontext()
    # psycopg can compose statements from parts; none of ours is.
    operation, table = statement_name(sql if isinstance(sql, str) else "")
    attributes = {"db.system.name": vendor, "db.operation.name": operation}
    if table:
        attributes["db.collection.name"] = table
    return _child(f"{operation} {table}".rstrip(), attributes)


def _traced_execute(execute: Any) -> Any:
    def traced(self: Any, sql: Any, *rest: Any) -> Any:
        with _sql(self.db.vendor, sql):
            return execute(self, sql, *rest)

    return traced


def _traced_prepared(run: Any) -> Any:
    def traced(self: Any, sql: str, values: Sequence[Any]) -> Any:
        with _sql(self.vendor, sql):
            return run(self, sql, values)

    return traced


def _traced_pipeline(run: Any) -> Any:
    def traced(self: Any, statements: Sequence[tuple[str, Any]]) -> Any:
        if len(statements) == 1 or not get_current_span().is_recording():
            # One alone is traced by `run_prepared`.
            return run(self, statements)
        name = pipeline_name(tuple(sql for sql, _ in statements))
        attributes = {"db.system.name": self.vendor, "db.operation.batch.size": len(statements)}
        with _child(name, attributes):
            return run(self, statements)

    return traced


def _traced_connection(name: str) -> Callable[[Any], Any]:
    def made(call: Any) -> Any:
        def traced(self: Any) -> Any:
            with _child(name, {"db.system.name": self.vendor, "db.operation.name": name}):
                return call(self)

        return traced

    return made


def _traced_wait(decide: Any) -> Any:
    async def traced(self: Any, asked: Any) -> Any:
        span = _start_child("group commit", {})
        if span is None:
            return await decide(self, asked)
        _waiting[id(asked)] = span
        try:
            with _ended(span):
                return await decide(self, asked)
        finally:
            del _waiting[id(asked)]

    return traced


def _traced_commit(decide: Any) -> Any:
    """The transaction is shown in the trace of its first call, with links to those it shares."""

    def traced(asked: Sequence[Any], **how: Any) -> Any:
        spans = [span for each in asked if (span := _waiting.get(id(each)))]
        if not spans:
            return decide(asked, **how)
        links = [Link(each.get_span_context()) for each in spans[1:]]
        parent = set_span_in_context(spans[0], Context())
        span = _tracer.start_span("transaction", parent, links=links)
        span.set_attribute("agentauth.decisions", len(asked))
        token = attach(set_span_in_context(span, Context()))
        try:
            with _ended(span):
                return decide(asked, **how)
        finally:
            detach(token)

    return traced


def _with_context(run: Any) -> Any:
    def traced(self: Any, unit: Any, **how: Any) -> Any:
        return run(self, functools.partial(copy_context().run, unit), **how)

    return traced


# Redis, key backends, other hosts.


def _traced_script(evaluate: Any) -> Any:
    def traced(self: Any, script: Any, *rest: Any, **how: Any) -> Any:
        work = evaluate(self, script, *rest, **how)
        name = _SCRIPTS.get(script, "script")
        attributes = {
            "db.system.name": "redis",
            "db.operation.name": "EVALSHA",
            "db.stored_procedure.name": name,
        }
        span = _start_child(f"EVALSHA {name}", attributes)
        return work if span is None else _awaited(work, span)

    return traced


async def _awaited(work: Awaitable[Any], span: Span) -> Any:
    with _ended(span):
        return await work


def _traced_command(execute: Any) -> Any:
    def traced(self: Any, *given: Any, **options: Any) -> Any:
        name = command_name(given[0])
        with _child(name, {"db.system.name": "redis", "db.operation.name": name}):
            return execute(self, *given, **options)

    return traced


def _traced_commands(execute: Any) -> Any:
    def traced(self: Any, *given: Any, **options: Any) -> Any:
        with _child("pipeline", {"db.system.name": "redis", "db.operation.name": "pipeline"}):
            return execute(self, *given, **options)

    return traced


def _traced_signature(sign: Any) -> Any:
    def traced(self: _KeySigner, message: bytes) -> Any:
        what = {"agentauth.key.backend": self.backend, "agentauth.key.purpose": str(self.purpose)}
        with _child("sign", what):
            return sign(self, message)

    return traced


def _traced_post(post: Any) -> Any:
    def traced(url: str, *given: Any, **how: Any) -> Any:
        attributes: dict[str, Any] = {"http.request.method": "POST"}
        if how.get("may_connect") is None:
            # An operator's server. Otherwise a person chose it, and its name may say who they are.
            attributes["server.address"] = urlsplit(url).hostname or ""
        span = _start_child("POST", attributes)
        if span is None:
            return post(url, *given, **how)
        with _ended(span):
            answer = post(url, *given, **how)
            if answer is not None:
                span.set_attribute("http.response.status_code", answer.status)
            return answer

    return traced


def _traced_store(call: Any) -> Any:
    def traced(self: Any, operation: str, parameters: Any) -> Any:
        service = self.meta.service_model.service_name
        host = urlsplit(self.meta.endpoint_url).hostname or ""
        with _child(f"{service} {operation}", {"server.address": host}):
            return call(self, operation, parameters)

    return traced


def _trace_sending() -> None:
    """The libraries of processes that send: others would import them in vain."""
    from django.conf import settings

    from audit.checkpoints import bounded_http_post

    _replace(bounded_http_post, "post", _traced_post)
    if settings.REDIS_URL:
        from redis.client import Pipeline, Redis
        from redis.cluster import RedisCluster

        _replace(Redis, "execute_command", _traced_command)
        _replace(RedisCluster, "execute_command", _traced_command)
        _replace(Pipeline, "execute", _traced_commands)
    if settings.AUDIT_STORE.startswith("s3:"):
        from botocore.client import BaseClient

        _replace(BaseClient, "_make_api_call", _traced_store)


_REPLACEMENTS: Final[list[tuple[Any, str, Callable[[Any], Any]]]] = [
    (RequestIdMiddleware, "__call__", _traced_request),
    (Endpoint, "__call__", _traced_endpoint),
    (metrics, "count_error", _noted_error),
    (api, "verify", _noted_verify),
    (VerifierProcess, "verify", _noted_loop_verify),
    (Job, "_run", _traced_job),
    (CursorWrapper, "_execute", _traced_execute),
    (CursorWrapper, "_executemany", _traced_execute),
    (DatabaseWrapper, "run_prepared", _traced_prepared),
    (DatabaseWrapper, "run_pipelined", _traced_pipeline),
    (BaseDatabaseWrapper, "connect", _traced_connection("CONNECT")),
    (BaseDatabaseWrapper, "_commit", _traced_connection("COMMIT")),
    (GroupCommitter, "decide", _traced_wait),
    (GroupCommitter, "run", _with_context),
    (group_commit, "decide_all", _traced_commit),
    (Servers, "evaluate", _traced_script),
    (_KeySigner, "sign", _traced_signature),
]
