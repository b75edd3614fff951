"""Closes the registry before a planned restore: ends its log and copies all of it to AUDIT_STORE.

Only a closed log lets these copies prove what did *not* happen between the backup and the restore.
Without a closing event, something may have been committed after the last copied checkpoint.
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
from audit.checkpoints.checkpoint_copies import check_store_unchanged
from audit.checkpoints.log_breaks import log_store
from audit.checkpoints.signing import checkpoint_log
from audit.log.sequencer import sequence_until_empty
from audit.models import Head
from audit.services import Actor, record, seal_audit
from verifier.models import StreamCursor
from verifier.services import rollback_hold
from verifier.services.decision_stream_drain import drain_redis
from verifier.services.replay_epochs import LEASE_SECONDS, MARGIN_SECONDS, read_or_create_row

# `usename` is null for PostgreSQL's own background workers.
_OTHERS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND usename IS NOT NULL AND pid <> pg_backend_pid()"
)


def close_history(
    *,
    operator: str,
    actor: Actor,
    clock: Callable[[], datetime],
    wait: Callable[[float], object] = time.sleep,
) -> int:
    """Close this database permanently; copy its whole log to AUDIT_STORE; return its event count.

    1. Check that nothing else is connected.
    2. Hold the database and record that. A verifier process without an open connection may decide
       until its lease expires; `wait` sleeps (seconds) until then. Check the connections again:
       without any, no transaction can commit any more.
    3. Move the decisions that wait in Redis into the log, and the sums of suppressed refusals, and
       end it with the closing event.
    4. Sign, copy and archive the log.

    `clock` is read before and after the wait. After a failure, run this again: it appends another
    closing event. Raises InvalidStateError if AUDIT_STORE is not set, a package that archiving
    needs is missing, something else is connected, or the database is held after a restore;
    ChainError if the log and its copies disagree; TemporarilyUnavailableError if Redis, the store
    or the key backend does not answer.
    """
    store = log_store()
    if store is None:
        raise InvalidStateError(
            "AUDIT_STORE is not set: no record outside the database would prove how the log ended."
        )
    check_package()
    check_store_unchanged()
    row = read_or_create_row()[0]
    if row.held_at is not None and row.held_because != rollback_hold.CLOSED:
        raise InvalidStateError(f"The database is held already: {row.held_because}")
    _check_alone()  # 1
    with transaction.atomic():  # 2
        rollback_hold.hold(row, rollback_hold.CLOSED)
        _record(operator, actor, clock(), ended=False)
    wait(LEASE_SECONDS + MARGIN_SECONDS)
    _check_alone()
    now = clock()
    while drain_redis(now=now):  # 3
        pass
    seal_audit(now=now, at_once=True)
    with transaction.atomic():
        _record(operator, actor, now, ended=True)
    sequence_until_empty(now=now)
    checkpoint_log(now=now, at_once=True)  # 4
    while archive_audit(now=now, store=store) is not None:
        pass
    return Head.objects.get(id=Head.ONLY).size


def _record(operator: str, actor: Actor, now: datetime, *, ended: bool) -> None:
    """Record the event.

    `missing`: the number of shard streams whose acknowledged decisions are not all in the log.
    """
    missing = StreamCursor.objects.filter(told__gt=F("number")).count()
    data = {"operator": operator, "ended": ended, "missing": missing}
    record(kind=kinds.HISTORY_CLOSED, actor=actor, at=now, data=data)


def _check_alone() -> None:
    """Raise InvalidStateError if another session uses this database.

    SQLite has no list of connections, so nothing is checked there.
    """
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
            f"Other connections to the database: {others}. Stop every server, job, connection "
            "pool and psql session, then run this again."
        )
