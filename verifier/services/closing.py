"""Closing the registry before a planned restore: its log ends with an event that says so, and all of it stands outside.

Only then do the copies outside prove what did *not* happen between a backup and the restore: without a closing event, something
may have been committed after the last checkpoint outside.
"""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from django.db import connection, transaction
from django.db.models import F

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.archive.archiving import archive_audit
from audit.breaks import log_store
from audit.checkpoints import checkpoint_log
from audit.copies import check_place
from audit.models import Head
from audit.sequencer import sequence_until_empty
from audit.services import Actor, record, seal_audit
from verifier.models import StreamCursor
from verifier.services import history
from verifier.services.draining import drain_redis
from verifier.services.home import LEASE_SECONDS, MARGIN_SECONDS, look

BECAUSE: Final = "An operator closed it before a restore."
_OTHERS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename IS NOT NULL"
    " AND pid <> pg_backend_pid()"
)


def close_history(
    *, operator: str, actor: Actor, now: datetime, wait: Callable[[float], object] = time.sleep
) -> int:
    """Close this database for good and put all of its log outside; returns how many events the log has.

    1. Nothing else is connected. 2. The hold, with an event: servers and jobs that still run answer 503 once their lease has
    run out, which `wait` (seconds) is called for. Then nothing else is connected still, so no transaction can commit any more.
    3. Decisions that wait in Redis go into the log, and the closing event is its end. 4. The log is signed, copied and
    archived. After a failure, run it again: it makes a new end.

    Raises InvalidStateError where AUDIT_STORE is not set, something else is connected, or the database is held already because
    it was restored; ChainError where the log and its copies disagree; TemporarilyUnavailableError where Redis, the store or the
    home of keys does not answer.
    """
    store = log_store()
    if store is None:
        raise InvalidStateError("AUDIT_STORE is not set: nothing outside would prove how the log ended.")
    check_place()
    row, _now = look()
    if row.held_at is not None and row.held_because != BECAUSE:
        raise InvalidStateError(f"The database is held already: {row.held_because}")
    _check_alone()  # 1
    with transaction.atomic():  # 2
        history.hold(row, BECAUSE)
        _record(operator, actor, now, ended=False)
    # A verifier between two looks has no connection, and decides until its lease ends.
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
    """`missing`: in how many streams verifiers were told of decisions that are not in the log."""
    missing = StreamCursor.objects.filter(told__gt=F("number")).count()
    data = {"operator": operator, "ended": ended, "missing": missing}
    record(kind=kinds.HISTORY_CLOSED, actor=actor, at=now, data=data)


def _check_alone() -> None:
    """Raise InvalidStateError where another session is connected to this database. SQLite does not say."""
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        # PostgreSQL answers a second look in one transaction from its first.
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(_OTHERS)
        [others] = cursor.fetchone()
    if others:
        raise InvalidStateError(
            f"{others} other connections to the database are open. Stop every server, job, connection pool and psql session,"
            " then run this again."
        )
