"""The series of /metrics, and who may read them. Labels are words of ours only: routes, states, codes; never an id."""

import os
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.db.models import Count, Min
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.views.decorators.http import require_safe
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from agentauth.protocol.errors import AgentAuthError
from audit import kinds
from audit.models import Event, QueueEntry
from kms.models import Key
from registry.models import Grant
from verifier.services import draining
from verifier.stores.scripts import MAX_STREAM

LOOPBACK = frozenset({"127.0.0.1", "::1"})
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 35)

REQUESTS = Histogram(
    "agentauth_http_request_seconds",
    "Requests and how long they took; long polls are meant to wait",
    ["method", "route", "status"],
    buckets=BUCKETS,
)
ERRORS = Counter(
    "agentauth_errors", "Refusals and failures answered, by code and reason", ["error", "reason"]
)
DECISIONS = Counter(
    "agentauth_decisions",
    "Decisions of verify, committed; error and reason are empty where it was a yes",
    ["decision", "error", "reason"],
)
EVENTS = Counter("agentauth_events", "Events written to the audit log, by kind", ["kind"])


def observe_request(*, method: str, route: str, status: int, seconds: float) -> None:
    """One answered request. `method` and `route` are from our own lists, never what a client made up."""
    _requests(method, route, status).observe(seconds)


# Which series it is, found once: the library looks it up under a lock each time. As many as there can be.
@lru_cache(maxsize=1024)
def _requests(method: str, route: str, status: int) -> Histogram:
    return REQUESTS.labels(method, route, str(status))


@lru_cache(maxsize=256)
def _decisions(decision: str, error: str, reason: str) -> Counter:
    return DECISIONS.labels(decision, error, reason)


def count_error(error: AgentAuthError) -> None:
    """One refusal or failure as it was answered, also those the log sums up."""
    ERRORS.labels(error.code, error.reason or "").inc()


def count_events(kind: str, number: int, event: Event | None) -> None:
    """So many committed events of one kind; `settings.AUDIT_OBSERVER`. Tokens issued are the events of that kind, and so on.

    `event` is the one, where it was recorded alone. Those written many at a time tell of decisions that the process which
    made them has counted.
    """
    EVENTS.labels(kind).inc(number)
    if event is not None and kind.startswith("verifier.decision."):
        denied = event.kind == kinds.DECISION_DENIED
        error, reason = (event.data["error"], event.reason or "") if denied else ("", "")
        count_decision(event.kind.rpartition(".")[2], error, "" if reason == error else reason)


def count_decision(decision: str, error: str, reason: str) -> None:
    """One decision: of an event that was committed, or of one that Redis holds until it is written down."""
    _decisions(decision, error, reason).inc()


class StateCollector(Collector):
    """What the database says at the moment it is asked: the same from whichever process answers."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        yield from _streams()
        try:
            yield from (_grants(), *_audit(now), *_keys(now))
        except (DatabaseError, InterfaceError):
            # The counters are worth reading just then; the missing series say the rest.
            return


def _grants() -> GaugeMetricFamily:
    family = GaugeMetricFamily("agentauth_grants", "Grants by recorded state", labels=["state"])
    found = dict(Grant.objects.values_list("status").annotate(Count("pk")))
    for state in Grant.Status.values:
        family.add_metric([state], found.get(state, 0))
    return family


def _audit(now: datetime) -> Iterator[GaugeMetricFamily]:
    waiting = QueueEntry.objects.aggregate(count=Count("pk"), oldest=Min("event__at"))
    yield GaugeMetricFamily(
        "agentauth_audit_queue_events", "Events that wait for their number", value=waiting["count"]
    )
    age = (now - waiting["oldest"]).total_seconds() if waiting["oldest"] else 0
    yield GaugeMetricFamily(
        "agentauth_audit_queue_oldest_seconds", "How long the oldest of them has waited", value=max(0.0, age)
    )


def _streams() -> Iterator[GaugeMetricFamily]:
    waiting = draining.waiting_in_redis()
    if waiting is None:
        # As with the database.
        return
    family = GaugeMetricFamily(
        "agentauth_verifier_stream_events", "Decisions in Redis that are not in the log yet", labels=["shard"]
    )
    for shard, number in enumerate(waiting):
        family.add_metric([f"{shard:02d}"], number)
    yield family
    yield GaugeMetricFamily(
        "agentauth_verifier_stream_bound",
        "How many of one shard may wait; then nothing more is decided there",
        value=MAX_STREAM,
    )


def _keys(now: datetime) -> Iterator[GaugeMetricFamily]:
    states = GaugeMetricFamily(
        "agentauth_keys", "Signing keys by recorded state", labels=["purpose", "state"]
    )
    ages = GaugeMetricFamily(
        "agentauth_key_age_seconds", "How long the signing key has been signing", labels=["purpose"]
    )
    found: dict[tuple[str, str], int] = {}
    for purpose, state, active_from in Key.objects.values_list("purpose", "state", "active_from"):
        found[purpose, state] = found.get((purpose, state), 0) + 1
        if state == Key.State.ACTIVE:
            ages.add_metric([purpose], (now - active_from).total_seconds())
    for purpose in Key.Purpose.values:
        for state in Key.State.values:
            states.add_metric([purpose, state], found.get((purpose, state), 0))
    yield from (states, ages)


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """`GET /metrics`. To whoever may not read it, it does not exist."""
    if not _may_read(request):
        raise Http404
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        # Under gunicorn each process writes to files of its own, and any of them reads all (agentauth/web_server.py).
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's own
        registry.register(StateCollector())
        return _text(generate_latest(registry))
    registry.register(StateCollector())
    return _text(generate_latest(REGISTRY) + generate_latest(registry))


def _may_read(request: HttpRequest) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if settings.METRICS_TOKEN:
        return scheme.lower() == "bearer" and constant_time_compare(token, settings.METRICS_TOKEN)
    # In production a proxy on the same machine would make everybody a neighbour: there it takes the token.
    return bool(settings.DEVELOPMENT) and request.META.get("REMOTE_ADDR") in LOOPBACK


def _text(content: bytes) -> HttpResponse:
    return HttpResponse(content, content_type=CONTENT_TYPE_LATEST)
