"""A double of a collector of traces: it decodes what OTLP/HTTP brings and keeps the spans."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pytest_django.fixtures import Settings

from agentauth.observability import tracing
from tests.http_server import Quiet


class Collector(ThreadingHTTPServer):
    """Listens at `url`. While `hangs`, it reads requests and answers none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[ExportTraceServiceRequest] = []
        self.asked, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()

    @property
    def text(self) -> str:
        """Everything that was sent, as text: names, attributes, events, links, resources."""
        return "\n".join(MessageToJson(each) for each in self.requests)

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def services(self) -> set[str]:
        return {
            attributes(resource.resource)["service.name"]
            for request in self.requests
            for resource in request.resource_spans
        }


class _Handler(Quiet):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.requests.append(ExportTraceServiceRequest.FromString(self.body()))
        self.server.asked.set()
        self.server.goes_on.wait(60)
        self.say(200)


def attributes(carrier: Any) -> dict[str, Any]:
    """The attributes of a span or resource."""
    found = {}
    for each in carrier.attributes:
        kind = each.value.WhichOneof("value")
        found[each.key] = getattr(each.value, kind)
    return found


@contextmanager
def collector() -> Iterator[Collector]:
    """One that runs."""
    made = Collector()
    thread = threading.Thread(target=made.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.goes_on.set()
        made.shutdown()
        made.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[Collector]:
    """One to which this process sends its traces, once the test starts them."""
    with collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        settings.TRACING = True
        yield made
        made.goes_on.set()
        tracing.stop()
