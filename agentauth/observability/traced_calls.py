"""Traces calls to SQL, Redis, key backends and other hosts.

`install` replaces each method by a traced one, and `remove` puts it back. Why the instrumentations
of OpenTelemetry are not used: docs/adr/0081-spans-hold-names-and-no-values.md.
"""

import functools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Any, Final
from urllib.parse import urlsplit

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, TracerProvider, get_current_span, set_span_in_context

from agentauth.observability import spans, traced_requests
from agentauth.observability.span_name_redaction import command_name, pipeline_name, statement_name
from agentauth.observability.spans import child_span, close_span, start_child
from agentauth.postgresql.base import DatabaseWrapper
from kms.services import _KeySigner
from verifier.stores import group_commit, lua_scripts
from verifier.stores.group_commit import GroupCommitter
from verifier.stores.redis_servers import Servers

_SCRIPTS: Final = {
    getattr(lua_scripts, name): name.lower()
    for name in ("JUDGE", "GIVE_BACK", "NOTE", "MARK", "MARKER")
}
_undo: list[Callable[[], None]] = []
# Of calls that wait for the database: the span that waits, by the identity of what is asked.
_waiting: dict[int, Span] = {}


def install(provider: TracerProvider, *, sends: bool) -> None:
    """Trace with `provider` from now on. `sends`: this process sends to other hosts."""
    spans.use(provider)
    for owner, name, made in [*traced_requests.REPLACEMENTS, *_REPLACEMENTS]:
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


# The database.


def _sql(vendor: str, sql: object) -> AbstractContextManager[None]:
    if not get_current_span().is_recording():
        return nullcontext()
    # psycopg can compose statements from parts; none of ours is.
    operation, table = statement_name(sql if isinstance(sql, str) else "")
    attributes = {"db.system.name": vendor, "db.operation.name": operation}
    if table:
        attributes["db.collection.name"] = table
    return child_span(f"{operation} {table}".rstrip(), attributes)


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
        with child_span(name, attributes):
            return run(self, statements)

    return traced


def _traced_connection(name: str) -> Callable[[Any], Any]:
    def made(call: Any) -> Any:
        def traced(self: Any) -> Any:
            with child_span(name, {"db.system.name": self.vendor, "db.operation.name": name}):
                return call(self)

        return traced

    return made


def _traced_wait(decide: Any) -> Any:
    async def traced(self: Any, asked: Any) -> Any:
        span = start_child("group commit", {})
        if span is None:
            return await decide(self, asked)
        _waiting[id(asked)] = span
        try:
            with close_span(span):
                return await decide(self, asked)
        finally:
            del _waiting[id(asked)]

    return traced


def _traced_commit(decide: Any) -> Any:
    """The transaction is shown in the trace of its first call, with links to those it shares."""

    def traced(asked: Sequence[Any], **how: Any) -> Any:
        waiting = [span for each in asked if (span := _waiting.get(id(each)))]
        if not waiting:
            return decide(asked, **how)
        span = spans.start_shared("transaction", waiting)
        span.set_attribute("agentauth.decisions", len(asked))
        token = attach(set_span_in_context(span, Context()))
        try:
            with close_span(span):
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
        span = start_child(f"EVALSHA {name}", attributes)
        return work if span is None else _awaited(work, span)

    return traced


async def _awaited(work: Awaitable[Any], span: Span) -> Any:
    with close_span(span):
        return await work


def _traced_command(execute: Any) -> Any:
    def traced(self: Any, *given: Any, **options: Any) -> Any:
        name = command_name(given[0])
        with child_span(name, {"db.system.name": "redis", "db.operation.name": name}):
            return execute(self, *given, **options)

    return traced


def _traced_signature(sign: Any) -> Any:
    def traced(self: _KeySigner, message: bytes) -> Any:
        what = {"agentauth.key.backend": self.backend, "agentauth.key.purpose": str(self.purpose)}
        with child_span("sign", what):
            return sign(self, message)

    return traced


def _traced_post(post: Any) -> Any:
    def traced(url: str, *given: Any, **how: Any) -> Any:
        attributes: dict[str, Any] = {"http.request.method": "POST"}
        if how.get("may_connect") is None:
            # An operator's server. Otherwise a person chose it, and its name may say who they are.
            attributes["server.address"] = urlsplit(url).hostname or ""
        span = start_child("POST", attributes)
        if span is None:
            return post(url, *given, **how)
        with close_span(span):
            answer = post(url, *given, **how)
            if answer is not None:
                span.set_attribute("http.response.status_code", answer.status)
            return answer

    return traced


def _traced_store(call: Any) -> Any:
    def traced(self: Any, operation: str, parameters: Any) -> Any:
        service = self.meta.service_model.service_name
        host = urlsplit(self.meta.endpoint_url).hostname or ""
        with child_span(f"{service} {operation}", {"server.address": host}):
            return call(self, operation, parameters)

    return traced


def _trace_sending() -> None:
    """The libraries of processes that send: others would import them in vain."""
    from django.conf import settings

    from audit import bounded_http_post

    _replace(bounded_http_post, "post", _traced_post)
    if settings.REDIS_URL:
        from redis.client import Redis
        from redis.cluster import RedisCluster

        _replace(Redis, "execute_command", _traced_command)
        _replace(RedisCluster, "execute_command", _traced_command)
    if settings.AUDIT_STORE.startswith("s3:"):
        from botocore.client import BaseClient

        _replace(BaseClient, "_make_api_call", _traced_store)


_REPLACEMENTS: Final[list[tuple[Any, str, Callable[[Any], Any]]]] = [
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
