"""Metrics that are read from the database and Redis at each scrape."""

from collections.abc import Iterator
from datetime import datetime

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.db.models import Count, Min
from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from approvals.models import Notification
from audit.checkpoints.checkpoint_copies import store_name
from audit.checkpoints.cosigning import witnesses
from audit.db.role_rights import may_read_log
from audit.log.load_shedding import MAX_WAITING_EVENTS
from audit.models import QueueEntry
from audit.new_ids import made_at
from audit.verify.log_status import log_coverage, read_log_status
from kms.models import Key
from registry.models import Grant
from verifier.services import decision_stream_drain
from verifier.stores.lua_scripts import MAX_STREAM


class StateCollector(Collector):
    """The state in the database at the time of the scrape.

    Every process of the registry reports the same. A verifier process leaves out the log and the
    notifications, which its role may not read.
    """

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = timezone.now()
        yield from _streams()
        for families in (_database, _log, _notifications):
            try:
                yield from list(families(now))
            except (DatabaseError, InterfaceError):
                # The database is unavailable. Stop, so that the scrape still delivers the process's
                # own counters; the missing series show the outage.
                return


def _database(now: datetime) -> Iterator[GaugeMetricFamily]:
    yield from (*_grants(now), *_audit(now), *_keys(now))


def _grants(now: datetime) -> Iterator[GaugeMetricFamily]:
    family = GaugeMetricFamily("agentauth_grants", "Grants by recorded state", labels=["state"])
    found = dict(Grant.objects.values_list("status").annotate(Count("pk")))
    for state in Grant.Status.values:
        family.add_metric([state], found.get(state, 0))
    yield family
    waiting = Grant.objects.filter(status=Grant.Status.PENDING)
    oldest = waiting.aggregate(oldest=Min("created_at"))["oldest"]
    yield GaugeMetricFamily(
        "agentauth_grants_pending_oldest_seconds",
        "How long the oldest pending request has waited for a person; 0 if none waits",
        value=max(0.0, (now - oldest).total_seconds()) if oldest else 0,
    )


def _audit(now: datetime) -> Iterator[GaugeMetricFamily]:
    oldest = QueueEntry.objects.order_by("pk").values_list("pk", flat=True).first()
    yield GaugeMetricFamily(
        "agentauth_audit_queue_events",
        "Events that are waiting for their number",
        value=QueueEntry.objects.count(),
    )
    # The id has the time of the event (UUIDv7). Reading it from the events could scan the whole
    # table.
    age = now.timestamp() - made_at(oldest) if oldest else 0
    yield GaugeMetricFamily(
        "agentauth_audit_queue_oldest_seconds",
        "How long the oldest of these events has waited",
        value=max(0.0, age),
    )
    yield GaugeMetricFamily(
        "agentauth_audit_queue_bound",
        "How many events may wait; at this bound, calls that start something new get 503",
        value=MAX_WAITING_EVENTS,
    )


def _notifications(_now: datetime) -> Iterator[GaugeMetricFamily]:
    """The outbox. A verifier's role may not read it; the registry reports it instead."""
    if not may_read_log():
        return
    family = GaugeMetricFamily(
        "agentauth_notifications",
        "Messages to people: pending, and those of the last week that were sent, are dead (failed "
        "too often) or moot (decided or ended first)",
        labels=["state"],
    )
    # `approvals.services.expiry` deletes those that ended more than seven days (KEPT) ago.
    found = dict(Notification.objects.values_list("state").annotate(Count("pk")))
    for state in Notification.State.values:
        family.add_metric([state], found.get(state, 0))
    yield family


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
        "agentauth_audit_cosigned_leaves",
        "Events that the newest checkpoint covers that this witness cosigned",
        labels=["witness"],
    )
    # Only configured witnesses: one that was removed must raise no alert, and one that never
    # cosigned must be reported as 0.
    for name in (witness.verifier.name for witness in witnesses()):
        cosigned.add_metric([name], coverage.cosigned.get(name, 0))
    yield cosigned


def _streams() -> Iterator[GaugeMetricFamily]:
    if not settings.REDIS_URL:
        return
    waiting = decision_stream_drain.count_waiting_in_redis()
    yield GaugeMetricFamily(
        "agentauth_redis_up",
        "1 if Redis answered this scrape, else 0",
        value=waiting is not None,
    )
    if waiting is None:
        # Report no series for a count that could not be read: 0 would look healthy.
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
        "How many decisions of one shard may wait; at this bound, verify answers 503 for the shard",
        value=MAX_STREAM,
    )


def _keys(now: datetime) -> Iterator[GaugeMetricFamily]:
    states = GaugeMetricFamily(
        "agentauth_keys", "Signing keys by recorded state", labels=["purpose", "state"]
    )
    ages = GaugeMetricFamily(
        "agentauth_key_age_seconds",
        "Seconds since the active signing key became active",
        labels=["purpose"],
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
