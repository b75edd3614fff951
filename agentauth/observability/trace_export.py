"""Creates OpenTelemetry's tracer provider, which exports spans over OTLP/HTTP.

OpenTelemetry's own environment variables configure it.
"""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def create_provider(process: str) -> TracerProvider:
    """A provider that exports in a thread of its own. Full queues drop spans; no caller waits."""
    # Not at exit: `tracing.stop` flushes, for a bounded time.
    provider = TracerProvider(resource=_resource(process), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _resource(process: str) -> Resource:
    found = Resource.create()
    if not str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        # OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES names it.
        return found
    return found.merge(Resource({SERVICE_NAME: f"agentauth-{process}"}))
