"""Detects a database that was set back: checked after each start, before anything is decided.

A row cannot show that it is old, since a backup holds whatever the row held. So the row names a
start of the database, which no backup can hold (`instance`). If it names another start than the
current one, the history is compared with what is known outside
(`audit.checkpoints.rollback_check`). Until that is done, and while the database is held, every
process answers 503. `manage.py continue_after_restore` lifts the hold (docs/restore.md).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from django.conf import settings
from django.db import Error, connection, transaction
from django.db.models import CharField, Func, Value
from django.utils import timezone

from agentauth.protocol.errors import ChainError, TemporarilyUnavailableError
from audit.checkpoints.checkpoint_copies import ContradictedError, StoreChangedError
from audit.checkpoints.rollback_check import Mark, check_history
from audit.db.role_rights import may_read_log
from registry.services import settings_agreement
from registry.services.settings_agreement import Halt
from verifier.models import Home

logger = logging.getLogger(__name__)

# Why `closing_before_restore` holds the database.
CLOSED: Final = "An operator closed it before a restore."
# The name of this check in readiness.
CHECK: Final = "history"
# Seconds between comparisons, so that an unavailable store or Redis is not retried at every read.
RETRY_SECONDS: Final = 2.0
# Redis may be lost permanently. After this long (s) without an answer, compare with the store only.
REDIS_SECONDS: Final = 10.0
# The server's start time, the database, and the table's file, which changes when a dump is restored
# into a running server.
_INSTANCE: Final = (
    "concat_ws('/', extract(epoch from pg_postmaster_start_time()),"
    " (SELECT oid FROM pg_database WHERE datname = current_database()), "
    "pg_relation_filenode('verifier_home'))"
)


def instance() -> Func | Value:
    """The current start of the database, as an annotation.

    SQLite runs inside each process, so there each process compares for itself.
    """
    if connection.vendor == "postgresql":
        return Func(template=_INSTANCE, output_field=CharField())
    return Value("sqlite", output_field=CharField())


def hold_of(row: Home) -> Halt | None:
    """Why this database is held until an operator continues; None if it is not held."""
    if row.held_at is None:
        return None
    if row.held_because == CLOSED:
        said = "The registry was closed and will be restored from a backup."
        next_step = "put the backup in place"
    else:
        said = "The registry was restored from a backup."
        next_step = f"run `{settings.COMMAND} continue_after_restore`"
    return Halt(
        f"{said} It answers again once an operator has decided how to continue.",
        f"held since {row.held_at:%Y-%m-%d %H:%M:%S} UTC: {row.held_because} Read docs/restore.md,"
        f" then {next_step}",
        check=CHECK,
    )


def halt(row: Home) -> Halt | None:
    """Why nothing may be decided, given a row annotated with `instance`; None if something may."""
    if hold := hold_of(row):
        return hold
    if not HISTORY_COMPARISON.holds(row):
        return Halt(
            "It is not known yet whether the database was set back. Try again shortly.",
            "the database was started, and its history was not yet compared with the records "
            "outside it. Start a process that may read the log (web or jobs), and check that "
            "AUDIT_STORE and REDIS_URL answer",
            check=CHECK,
            passes=True,
        )
    return None


class HistoryComparison:
    """Which start of the database this process knows was compared, for all its threads."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._own = ""
        self._next = 0.0
        # Since when Redis has not answered for this start of the database.
        self._redis_away: float | None = None

    def holds(self, row: Home) -> bool:
        """Whether this process or, by the row, another compared this start's history."""
        present: str = row.instance  # type: ignore[attr-defined]  # annotated
        return present in {self._own, row.vouched_for if connection.vendor == "postgresql" else ""}

    def ask(self, row: Home, *, patience: float = 0) -> bool:
        """Compare unless another process did or this one cannot; record the result.

        One thread compares, at most once in RETRY_SECONDS; others wait for it for `patience` (s).
        Returns whether a thread tried. An unavailable store or Redis changes nothing. Raises
        django.db errors.
        """
        if row.held_at is not None or self.holds(row):
            return False
        waited = not self._asking.acquire(blocking=False)
        if waited and not self._asking.acquire(timeout=patience):
            return False
        try:
            if waited:
                row.refresh_from_db(fields=["held_at", "held_because", "vouched_for"])
                return True
            # With deviating settings this process might compare with another
            # registry's Redis or store.
            if time.monotonic() < self._next or settings_agreement.halt(row) or not may_read_log():  # type: ignore[arg-type]  # annotated
                return False
            self._next = time.monotonic() + RETRY_SECONDS
            self._compare(row)
        finally:
            self._asking.release()
        return True

    def ask_aside(self, row: Home, look: Callable[[], object], *, patience: float) -> bool:
        """Compare in a new thread, by `look`, unless that is done or running.

        Returns whether the thread ended within `patience` (s).
        """
        if (
            row.held_at is not None
            or self.holds(row)
            or self.is_comparing()
            or time.monotonic() < self._next
        ):
            return False

        def run() -> None:
            try:
                look()
            except Error:
                logger.exception("cannot check now whether the database was set back; retrying")
            finally:
                connection.close()

        comparing = threading.Thread(target=run, name="agentauth-comparing", daemon=True)
        comparing.start()
        comparing.join(patience)
        return not comparing.is_alive()

    def is_comparing(self) -> bool:
        """Whether a thread of this process is comparing."""
        return self._asking.locked()

    def _compare(self, row: Home) -> None:
        try:
            check_history(self._mark())
        except (TemporarilyUnavailableError, StoreChangedError):
            logger.exception("cannot check now whether the database was set back; retrying")
        except ChainError as error:
            hold(row, error.description)
        else:
            self._redis_away = None
            self._own = row.instance  # type: ignore[attr-defined]  # annotated
            if connection.vendor == "postgresql":
                # For this start only: if the database restarted meanwhile, it
                # must be compared again.
                same = Home.objects.annotate(present=instance()).filter(present=self._own)
                Home.objects.filter(pk__in=same.values("pk"), held_at=None).update(
                    vouched_for=self._own
                )

    def _mark(self) -> Mark | None:
        """The mark in Redis.

        Raises TemporarilyUnavailableError for the first REDIS_SECONDS without an answer, then
        returns None.
        """
        if not settings.REDIS_URL:
            return None
        # Imported late: the stores import `replay_epochs`, which imports this module.
        from verifier.stores.log_size_mark import read_mark

        try:
            return read_mark()
        except TemporarilyUnavailableError:
            now = time.monotonic()
            self._redis_away = now if self._redis_away is None else self._redis_away
            if now - self._redis_away < REDIS_SECONDS:
                raise
            logger.exception(
                "Redis does not answer: comparing the database with the external store only"
            )
            return None


# One for the process.
HISTORY_COMPARISON = HistoryComparison()


def hold(row: Home, because: str) -> None:
    """Hold the database: nothing is decided until an operator continues. An existing hold stays.

    This records no event, since any event written now would begin a second history under the log's
    name.
    """
    now = timezone.now()
    with transaction.atomic():
        held = Home.objects.filter(pk=Home.ONLY, held_at=None).update(
            held_at=now, held_because=because
        )
    # Another process may have been first, with a reason of its own.
    row.refresh_from_db(fields=["held_at", "held_because"])
    if held:
        logger.error(
            "the database is held, so nothing is decided until an operator continues "
            "(docs/restore.md): %s",
            because,
        )


@contextmanager
def holding() -> Iterator[None]:
    """Hold the database if the body raises ContradictedError; passes all errors on."""
    try:
        yield
    except StoreChangedError:
        # A replaced store says nothing about this database.
        raise
    except ContradictedError as error:
        # Imported late: both import this module.
        from verifier.services import replay_cache_lease, replay_epochs

        began = time.monotonic()
        row, database_now = replay_epochs.read_or_create_row()
        hold(row, error.description)
        # Stops this process now; the others notice within a second.
        replay_cache_lease.LEASE.renew(row, database_now, began)
        raise
