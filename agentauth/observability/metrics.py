"""The series of /metrics. Labels are our own words only (routes, states, codes), never an id."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.db.models import Count
from django.utils import timezone
from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from agentauth.protocol.errors import AgentAuthError
from audit import kinds
from audit.checkpoints.copy_locations import store_name
from audit.checkpoints.cosigning import witnesses
from audit.db.role_rights import may_read_log
from audit.log.load_shedding import MAX_WAITING_EVENTS
from audit.models import Event, QueueEntry
from audit.row_ids import made_at
from audit.verify.log_status import log_coverage, read_log_status
from kms.models import Key
from registry.models import Grant
from verifier.services import outbox_drain
from verifier.stores.scripts import MAX_STREAM

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 35)

REQUESTS = Histogram(
    "agentauth_http_request_seconds",
    "Requests and their duration; long polls wait on purpose",
    ["method", "route", "status"],
    buckets=BUCKETS,
)
ERRORS = Counter(
    "agentauth_errors", "Refusals and failures, by code and reason", ["error", "reason"]
)
DECISIONS = Counter(
    "agentauth_decisions",
    "Decisions of verify, committed; error and reason are empty if the call was allowed",
    ["decision", "error", "reason"],
)
MISSES = Counter(
    "agentauth_verifier_misses",
    "Calls to the verifier whose token or credentials the process had not cached",
    ["what"],
)
EVENTS = Counter("agentauth_events", "Events written to the audit log, by kind", ["kind"])
JOB_SECONDS = Histogram(
    "agentauth_job_seconds",
    "Runs of periodic work and their duration, by outcome: ok or failed",
    # Not `job`: Prometheus has a label of its own by that name.
    ["name", "outcome"],
    buckets=(0.01, 0.05, 0.25, 1, 5, 30, 120, 600),
)
JOB_ENDED = Gauge(
    "agentauth_job_ended_timestamp_seconds",
    "When this process last finished a job",
    ["name"],
    multiprocess_mode="mostrecent",
)
CHECKS = Gauge(
    "agentauth_ready",
    "1 if a readiness check passes, in the process that was asked last",
    ["check"],
    multiprocess_mode="mostrecent",
)
KEY_CALLS = Counter(
    "agentauth_key_calls", "Calls to the key backends, by outcome", ["home", "outcome"]
)
KEY_CALL_SECONDS = Histogram(
    "agentauth_key_call_seconds", "Duration of the calls that were made", ["home"], buckets=BUCKETS
)
KEY_HOME_AWAY = Gauge(
    "agentauth_key_home_away",
    "Processes that do not call the backend, because it does not answer",
    ["home"],
    multiprocess_mode="livesum",
)


def observe_request(*, method: str, route: str, status: int, seconds: float) -> None:
    """One answered request. `method` and `route` come from our own lists, never from a client."""
    _requests(method, route, status).observe(seconds)


def add_requests(
    *, method: str, route: str, status: int, buckets: Mapping[int, int], seconds: float
) -> None:
    """Many requests: `buckets` counts them by index into BUCKETS (one past the last: longer).

    `seconds` is the sum of their times.
    """
    series = _requests(method, route, status)
    for place, number in buckets.items():
        series._buckets[place].inc(number)  # noqa: SLF001 — the library only counts one at a time
    series._sum.inc(seconds)  # noqa: SLF001 — the same


# Cached: the library looks a series up under a lock each time. The size covers all there can be.
@lru_cache(maxsize=1024)
def _requests(method: str, route: str, status: int) -> Histogram:
    return REQUESTS.labels(method, route, str(status))


@lru_cache(maxsize=256)
def _decisions(decision: str, error: str, reason: str) -> Counter:
    return DECISIONS.labels(decision, error, reason)


def count_error(error: AgentAuthError) -> None:
    """One refusal or failure as answered, including those that the audit log sums up."""
    ERRORS.labels(error.code, error.reason or "").inc()


def count_events(kind: str, number: int, event: Event | None) -> None:
    """Count `number` committed events of one kind, e.g. issued tokens (`settings.AUDIT_OBSERVER`).

    `event` is set if it was recorded alone. Events written in bulk report decisions that the
    process which made them has already counted.
    """
    EVENTS.labels(kind).inc(number)
    if event is not None and kind.startswith("verifier.decision."):
        denied = event.kind == kinds.DECISION_DENIED
        error, reason = (event.data["error"], event.reason or "") if denied else ("", "")
        decision, stands_for = event.kind.rpartition(".")[2], event.data.get("count", 1)
        count_decision(decision, error, "" if reason == error else reason, stands_for)


def count_decision(decision: str, error: str, reason: str, number: int = 1) -> None:
    """Count decisions: committed as events, or held in Redis until they are written to the log."""
    _decisions(decision, error, reason).inc(number)


def observe_key_call(*, home: str, outcome: str, seconds: float | None, is_open: bool) -> None:
    """One call to a key backend (`settings.KEY_OBSERVER`). `seconds` is None if it was not made.

    `is_open`: the circuit breaker is open, so the next call will not be made.
    """
    KEY_CALLS.labels(home, outcome).inc()
    if seconds is not None:
        KEY_CALL_SECONDS.labels(home).observe(seconds)
    KEY_HOME_AWAY.labels(home).set(is_open)


def observe_job(*, job: str, outcome: str, seconds: float, ended_at: float) -> None:
    """One run of periodic work; `ended_at` in seconds since 1970."""
    JOB_SECONDS.labels(job, outcome).observe(seconds)
    if outcome == "ok":
        JOB_ENDED.labels(job).set(ended_at)


class StateCollector(Collector):
    """The state in the database at the time of the scrape, whichever process answers."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        yield from _streams()
        for families in (_database, _log):
            try:
                yield from list(families(now))
            except (DatabaseError, InterfaceError):
                # The database is away: the counters matter most then; missing series show the rest.
                return


def _database(now: datetime) -> Iterator[GaugeMetricFamily]:
    yield from (_grants(), *_audit(now), *_keys(now))


def _grants() -> GaugeMetricFamily:
    family = GaugeMetricFamily("agentauth_grants", "Grants by recorded state", labels=["state"])
    found = dict(Grant.objects.values_list("status").annotate(Count("pk")))
    for state in Grant.Status.values:
        family.add_metric([state], found.get(state, 0))
    return family


def _audit(now: datetime) -> Iterator[GaugeMetricFamily]:
    # By the time in the id: a query on the events themselves might read all of them.
    oldest = QueueEntry.objects.order_by("pk").values_list("pk", flat=True).first()
    yield GaugeMetricFamily(
        "agentauth_audit_queue_events",
        "Events that are waiting for their number",
        value=QueueEntry.objects.count(),
    )
    age = now.timestamp() - made_at(oldest) if oldest else 0
    yield GaugeMetricFamily(
        "agentauth_audit_queue_oldest_seconds",
        "How long the oldest of these events has waited",
        value=max(0.0, age),
    )
    yield GaugeMetricFamily(
        "agentauth_audit_queue_bound",
        "How many events may wait; at this bound, nothing new is begun",
        value=MAX_WAITING_EVENTS,
    )


def _log(now: datetime) -> Iterator[GaugeMetricFamily]:
    """The state of the log. A verifier's role may not read it; the registry reports it instead."""
    if not may_read_log():
        return
    status, coverage = read_log_status(now=now), log_coverage()
    for name, text, value in (
        ("leaves", "Events that have their number", status.size),
        ("signed_leaves", "Events that the newest checkpoint covers", status.signed),
        (
            "checkpoint_age_seconds",
            "How long the oldest event with a number has waited for a signature; 0 if none waits",
            status.unsigned_for.total_seconds(),
        ),
        (
            "archived_leaves",
            "Events in the archive that were read back and proved",
            coverage.archived,
        ),
        (
            "consistent",
            "1 if the newest checkpoint and the head match the stored tree, else 0",
            not status.problem,
        ),
    ):
        yield GaugeMetricFamily(f"agentauth_audit_{name}", text, value=value)
    if settings.AUDIT_STORE:
        yield GaugeMetricFamily(
            "agentauth_audit_copied_leaves",
            "Events that a checkpoint in the external store covers",
            value=coverage.copied.get(store_name(), 0),
        )
    cosigned = GaugeMetricFamily(
        "agentauth_audit_cosigned_leaves", "Events that a witness cosigned", labels=["witness"]
    )
    # Only the configured witnesses: a removed one lacks nothing, a silent one everything.
    for name in (witness.verifier.name for witness in witnesses()):
        cosigned.add_metric([name], coverage.cosigned.get(name, 0))
    yield cosigned


def _streams() -> Iterator[GaugeMetricFamily]:
    waiting = outbox_drain.count_waiting_in_redis()
    if waiting is None:
        # Redis is unavailable: leave the series out, as with the database.
        return
    family = GaugeMetricFamily(
        "agentauth_verifier_stream_events",
        "Decisions in Redis that are not in the log yet",
        labels=["shard"],
    )
    for shard, number in enumerate(waiting):
        family.add_metric([f"{shard:02d}"], number)
    yield family
    yield GaugeMetricFamily(
        "agentauth_verifier_stream_bound",
        "How many decisions of one shard may wait; at this bound, the shard decides nothing more",
        value=MAX_STREAM,
    )


def _keys(now: datetime) -> Iterator[GaugeMetricFamily]:
    states = GaugeMetricFamily(
        "agentauth_keys", "Signing keys by recorded state", labels=["purpose", "state"]
    )
    ages = GaugeMetricFamily(
        "agentauth_key_age_seconds", "How long the signing key has signed", labels=["purpose"]
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
