"""The series of /metrics that processes count. Labels are our own words only, never an id."""

from collections.abc import Mapping
from functools import lru_cache

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    Summary,
)

from agentauth.protocol.errors import AgentAuthError
from audit import kinds
from audit.models import Event

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
PAYMENTS = Summary(
    "agentauth_payment_amount",
    "Amounts of allowed payments, in units of the currency",
    ["currency"],
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
    "1 if a readiness check passes, in the process that answered this scrape",
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
        if event.kind == kinds.DECISION_ALLOWED:
            _count_payment((event.data.get("action") or {}).get("amount"))


def _count_payment(amount: Mapping[str, str] | None) -> None:
    """A payment is always decided in the database, so its event comes alone and with its data."""
    if amount is not None:
        # A float: for a graph, not for accounts. Verified: a decimal and a code of ISO 4217.
        PAYMENTS.labels(amount["currency"]).observe(float(amount["value"]))


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
