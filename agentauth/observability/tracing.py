"""Traces by OpenTelemetry, if its own environment variables ask for them (docs/operations.md).

Only then do we import the libraries (requirements-production.txt), and only then does `start`
replace methods with traced ones (`traced_calls`). docs/adr/0081-spans-hold-names-and-no-values.md
says what a span may hold.
"""

import threading
from typing import Any, Final

from django.conf import settings

from audit.optional_packages import Package

# How long (s) a process that ends waits for the collector, within the 30 s in which it drains.
FLUSH_SECONDS: Final = 3.0
_SDK: Final = Package("opentelemetry-sdk", "opentelemetry.sdk.trace")
_EXPORTER: Final = Package(
    "opentelemetry-exporter-otlp-proto-http", "opentelemetry.exporter.otlp.proto.http"
)
# What this process traces with, or None.
_provider: Any = None


def package_error() -> str:
    """Which package traces lack, in one line; empty if none, or if there are no traces."""
    if not settings.TRACING:
        return ""
    by = "OTEL_EXPORTER_OTLP_ENDPOINT"
    return _SDK.missing(by) or _EXPORTER.missing(by)


def load() -> None:
    """Import what traces need, before a fork, if the settings ask for traces. Starts nothing."""
    if settings.TRACING:
        from agentauth.observability import trace_export, traced_calls  # noqa: F401 — loaded


def start(process: str) -> None:
    """Trace this process from now on, if the settings say so. `process` names its kind.

    Call it in the process that serves, not before a fork: it starts the thread that exports.
    """
    global _provider  # noqa: PLW0603 — of this process
    if not settings.TRACING or _provider is not None:
        return
    # Imported here, since they are optional.
    from agentauth.observability import traced_calls
    from agentauth.observability.trace_export import create_provider

    _provider = create_provider(process)
    traced_calls.install(_provider, sends=process in {"jobs", "worker"})


def stop() -> None:
    """Export what is left, for at most FLUSH_SECONDS, and trace no more."""
    global _provider
    provider, _provider = _provider, None
    if provider is None:
        return
    from agentauth.observability import traced_calls

    traced_calls.remove()
    # The library would wait for half a minute. A daemon thread ends with the process.
    flushing = threading.Thread(target=provider.shutdown, name="trace-flush", daemon=True)
    flushing.start()
    flushing.join(FLUSH_SECONDS)
