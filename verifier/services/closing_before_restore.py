"""Closes the registry before a planned restore: ends its log and copies all of it outside.

Only then do the copies outside prove what did *not* happen between a backup and the restore.
Without a closing event, something may have been committed after the last checkpoint outside.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from django.db import connection, transaction
from django.db.models import F

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.archive.parquet import check_package
from audit.archive.segment_writing import archive_audit
from audit.checkpoints.copy_locations import check_place
from audit.checkpoints.log_breaks import log_store
from audit.checkpoints.signing import checkpoint_log
from audit.log.sequencer import sequence_until_empty
from audit.models import Head
from audit.services import Actor, record, seal_audit
from verifier.models import StreamCursor
from verifier.services import rollback_detection
from verifier.services.outbox_drain import drain_redis
from verifier.services.replay_epochs import LEASE_SECONDS, MARGIN_SECONDS, read_or_create_row

BECAUSE: Final = "An operator closed it before a restore."
_OTHERS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename IS "
    "NOT NULL"
    " AND pid <> pg_backend_pid()"
)


def close_history(
    *, operator: str, actor: Actor, now: datetime, wait: Callable[[float], object] = time.sleep
) -> int:
    """Close this database permanently and copy all of its log outside; return the number of events.

    1. Check that nothing else is connected.
    2. Hold the database, with an event. Servers and jobs that still run answer 503 once their lease
       has expired; `wait` (seconds) is called for that time. Then check the connections again:
       without any, no transaction can commit any more.
    3. Move the decisions that wait in Redis into the log and end it with the closing event.
    4. Sign, copy and archive the log.

    After a failure, run it again: it writes a new end. Raises InvalidStateError if AUDIT_STORE is
    not set, a package that archiving needs is missing, something else is connected, or the database
    is held after a restore; ChainError if the log and its copies disagree;
    TemporarilyUnavailableError if Redis, the store or the key backend does not answer.
    """
    store = log_store()
    if store is None:
        raise InvalidStateError(
            "AUDIT_STORE is not set: no record outside the database would prove how the log ended."
        )
    check_package()
    check_place()
    row, _now = read_or_create_row()
    if row.held_at is not None and row.held_because != BECAUSE:
        raise InvalidStateError(f"The database is held already: {row.held_because}")
    _check_alone()  # 1
    with transaction.atomic():  # 2
        rollback_detection.hold(row, BECAUSE)
        _record(operator, actor, now, ended=False)
    # A verifier may have no connection at the moment and still decides until its lease ends.
    wait(LEASE_SECONDS + MARGIN_SECONDS)
    _check_alone()
    while drain_redis(now=now):  # 3
        pass
    seal_audit(now=now)
    with transaction.atomic():
        _record(operator, actor, now, ended=True)
    sequence_until_empty(now=now)
    checkpoint_log(now=now, at_once=True)  # 4
    while archive_audit(now=now, store=store) is not None:
        pass
    return Head.objects.get(id=Head.ONLY).size


def _record(operator: str, actor: Actor, now: datetime, *, ended: bool) -> None:
    """Record the event. `missing`: streams with decisions that were answered but are not logged."""
    missing = StreamCursor.objects.filter(told__gt=F("number")).count()
    data = {"operator": operator, "ended": ended, "missing": missing}
    record(kind=kinds.HISTORY_CLOSED, actor=actor, at=now, data=data)


def _check_alone() -> None:
    """Raise InvalidStateError if another session uses this database. SQLite cannot tell."""
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        # Within a transaction PostgreSQL caches these statistics, so a second check
        # would see the first.
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(_OTHERS)
        [others] = cursor.fetchone()
    if others:
        raise InvalidStateError(
            f"{others} other connections to the database are open. Stop every server, job, "
            "connection pool and psql session,"
            " then run this again."
        )
