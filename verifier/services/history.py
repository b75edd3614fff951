"""Whether this database was set back: after each of its starts nothing is decided before that was asked, and nothing if it was.

A row cannot say that it is old: a backup holds whatever the row held. So what vouches for the row is the start of the
database itself, which no backup holds (`instance`). Where the row names another start, its history is compared with what is
known outside (`audit.history`). Until that is done, and for as long as the database is held, every process answers 503;
`manage.py continue_after_restore` ends it (docs/restore.md).
"""

import logging
import threading
import time
from typing import Final

from django.conf import settings
from django.db import connection, transaction
from django.db.models import CharField, Func, Value
from django.utils import timezone

from agentauth.protocol.errors import ChainError, TemporarilyUnavailableError
from audit.copies import StoreChangedError
from audit.history import Mark, check_history
from audit.roles import may_read_log
from registry.services.installation import Halt
from verifier.models import Home

logger = logging.getLogger(__name__)

# As readiness names it.
CHECK: Final = "history"
# A store or a Redis that is away is not asked at each look.
RETRY_SECONDS: Final = 2.0
# Redis may be gone for good, and may be lost at any time: after so long the store outside is believed alone.
REDIS_SECONDS: Final = 10.0
# The start of the server, the database, and the table's file: another where a dump was read back, also into a server that runs.
_INSTANCE: Final = (
    "concat_ws('/', extract(epoch from pg_postmaster_start_time()),"
    " (SELECT oid FROM pg_database WHERE datname = current_database()), pg_relation_filenode('verifier_home'))"
)


def instance() -> Func | Value:
    """Which start of the database this is, as an annotation. SQLite runs in each process anew, so each asks for itself."""
    if connection.vendor == "postgresql":
        return Func(template=_INSTANCE, output_field=CharField())
    return Value("sqlite", output_field=CharField())


def hold_of(row: Home) -> Halt | None:
    """Why nothing may be decided on this database until an operator continues; None where it is not held."""
    if row.held_at is None:
        return None
    return Halt(
        "The registry was restored from a backup. It answers once an operator has decided how it goes on.",
        f"held since {row.held_at:%Y-%m-%d %H:%M:%S} UTC: {row.held_because} Read docs/restore.md,"
        " then run manage.py continue_after_restore",
        check=CHECK,
    )


def halt(row: Home) -> Halt | None:
    """Why nothing may be decided by what a look found, annotated with `instance`; None where its history is as known outside."""
    if hold := hold_of(row):
        return hold
    if not VOUCHED.holds(row):
        return Halt(
            "Whether the database was set back is not known yet. Try again shortly.",
            "the database was started, and its history was not compared with what is known outside: that needs"
            " AUDIT_STORE and REDIS_URL to answer, and a process that may read the log (web or jobs)",
            check=CHECK,
        )
    return None


class Vouched:
    """For which start of the database this process knows that its history was compared, for all its threads."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._own = ""
        self._next = 0.0
        # Since when Redis was asked for this start of the database in vain.
        self._redis_away: float | None = None

    def holds(self, row: Home) -> bool:
        """Whether it was, by this process or, as the row says, by another."""
        present: str = row.instance  # type: ignore[attr-defined]  # annotated
        return present in {self._own, row.vouched_for if connection.vendor == "postgresql" else ""}

    def ask(self, row: Home) -> None:
        """Compare if nobody did and this process can, and write into `row` and the database what was found.

        One thread at a time, at most once in RETRY_SECONDS; what is away leaves everything as it is. Raises django.db errors.
        """
        if row.held_at is not None or self.holds(row) or not self._asking.acquire(blocking=False):
            return
        try:
            if time.monotonic() >= self._next and may_read_log():
                self._next = time.monotonic() + RETRY_SECONDS
                self._compare(row)
        finally:
            self._asking.release()

    def forget(self) -> None:
        """Know nothing, as a process that has just begun."""
        self._own, self._next, self._redis_away = "", 0.0, None

    def _compare(self, row: Home) -> None:
        try:
            check_history(self._mark())
        except (TemporarilyUnavailableError, StoreChangedError):
            logger.exception("whether the database was set back cannot be told now")
        except ChainError as error:
            hold(row, error.description)
        else:
            self._redis_away = None
            self._own = row.instance  # type: ignore[attr-defined]  # annotated
            if connection.vendor == "postgresql":
                # Only of this start: where it was started again meanwhile, nobody has compared yet.
                same = Home.objects.annotate(present=instance()).filter(present=self._own)
                Home.objects.filter(pk__in=same.values("pk"), held_at=None).update(vouched_for=self._own)

    def _mark(self) -> Mark | None:
        """What Redis knows. Raises TemporarilyUnavailableError where it does not answer, for REDIS_SECONDS."""
        if not settings.REDIS_URL:
            return None
        # Late: stores are made of what a home is.
        from verifier.stores.mark import read_mark

        try:
            return read_mark()
        except TemporarilyUnavailableError:
            now = time.monotonic()
            self._redis_away = now if self._redis_away is None else self._redis_away
            if now - self._redis_away < REDIS_SECONDS:
                raise
            logger.exception("Redis is away: what is outside is believed without it")
            return None


# This process's own.
VOUCHED = Vouched()


def hold(row: Home, because: str) -> None:
    """From now on nothing is decided, until an operator says how to go on. Once: who comes later changes nothing.

    No event says so: whatever is written now would begin another history under the log's name.
    """
    now = timezone.now()
    with transaction.atomic():
        held = Home.objects.filter(pk=Home.ONLY, held_at=None).update(held_at=now, held_because=because)
    row.held_at, row.held_because = row.held_at or now, row.held_because or because
    if held:
        logger.error("nothing is decided any more: %s", because)
