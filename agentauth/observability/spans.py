"""Begins and closes spans. They hold names, codes and numbers of ours only.

`traced_requests` and `traced_calls` say of what. docs/adr/0081-spans-hold-names-and-no-values.md
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final

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

from agentauth.observability.logging_config import trace_id
from agentauth.observability.trace_context import read_traceparent

FAILED: Final = Status(StatusCode.ERROR)
# The span of the request that this context answers; None outside one.
request_span: ContextVar[Span | None] = ContextVar("request_span", default=None)
_tracer: Tracer


def use(provider: TracerProvider) -> None:
    """Start spans with `provider` from now on."""
    global _tracer  # noqa: PLW0603 — of this process
    _tracer = provider.get_tracer("agentauth")


@contextmanager
def begin_trace(
    name: str, kind: SpanKind, *, links: Sequence[Link] = (), answers: bool = False
) -> Iterator[Span]:
    """A new trace, whose id log lines carry. `answers`: it is of a request."""
    # A new context: nothing that a caller sent, and no earlier request of this connection.
    span = _tracer.start_span(name, Context(), kind=kind, links=links)
    current = attach(set_span_in_context(span, Context()))
    traced = trace_id.set(format_trace_id(span.get_span_context().trace_id))
    request = request_span.set(span if answers else None)
    try:
        with close_span(span):
            yield span
    finally:
        request_span.reset(request)
        trace_id.reset(traced)
        detach(current)


@contextmanager
def close_span(span: Span) -> Iterator[None]:
    """End the span; of an exception only the class: its text may hold values."""
    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(FAILED)
        raise
    finally:
        span.end()


def start_child(name: str, attributes: Mapping[str, Any]) -> Span | None:
    """A span below the current one; None outside a trace, and in one that is not sampled."""
    if not get_current_span().is_recording():
        return None
    return _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def child_span(name: str, attributes: Mapping[str, Any]) -> AbstractContextManager[None]:
    span = start_child(name, attributes)
    return nullcontext() if span is None else close_span(span)


def links_to(traceparent: str | None) -> list[Link]:
    """A link to the caller's trace, whose sampling and ids have no effect here."""
    found = read_traceparent(traceparent) if traceparent else None
    return [Link(SpanContext(*found, is_remote=True))] if found else []


def start_shared(name: str, waiting: Sequence[Span]) -> Span:
    """A span below the first of `waiting`, with links to the others it works for."""
    parent = set_span_in_context(waiting[0], Context())
    return _tracer.start_span(
        name, parent, links=[Link(each.get_span_context()) for each in waiting[1:]]
    )
