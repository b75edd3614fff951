"""Watches for state changes: listens to PostgreSQL's notifications, and polls twice a second."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

from django.db import connection, connections
from django.utils import timezone

from agentauth.protocol.token import TokenKey
from kms.process_key_certificates import token_keys
from kms.state_change_publisher import Subject
from verifier.services import replay_cache_lease, replay_epochs
from verifier.services.clock_readings import ClockReading
from verifier.services.host_clock_check import CLOCK
from verifier.services.short_timeout_connection import use_own_connection
from verifier.services.state_change_feed import CHANNEL, Change, present_position, state_since

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
# Retry interval (s) after a failure, without end.
_RETRY_SECONDS: Final = 0.25
_NAME: Final = "agentauth-watching"
_LISTEN: Final = f"LISTEN {CHANNEL}"


@dataclass(frozen=True, slots=True)
class StateReading:
    """The result of one read of the database."""

    began: ClockReading
    # The keys that tokens may be signed with, by `kid`.
    token_keys: Mapping[str, TokenKey]
    # Seconds that the database's clock is ahead of this host's.
    clock_ahead: float
    # The name of the database's history, which changes with a restore.
    history: str = ""


@dataclass(frozen=True, slots=True)
class StateNews:
    """Changes, or perhaps `everything`. With a `look`, all changes committed before it are told."""

    changes: tuple[Change, ...] = ()
    everything: bool = False
    look: StateReading | None = None


class Watcher:
    """A thread that calls `tell` with all news.

    Each read also renews the process's lease (`replay_cache_lease.LEASE`) and records a wrong clock
    of this host.

    It listens before it reads, and invalidates everything with each new connection. It cannot ask
    for the changes missed in between, since a server that crashed may reuse the number of a rolled
    back one. A failure is logged once until a read succeeds; meanwhile it tells nothing, and the
    cached state ages.
    """

    def __init__(self, tell: Callable[[StateNews], None]) -> None:
        self._tell = tell
        self._stopping = threading.Event()
        self._failing = False
        self._history: str | None = None
        # The rows of the feed that were told, as `state_since` returned them.
        self._seen: frozenset[int] = frozenset()
        self._thread = threading.Thread(target=self._run, name=_NAME, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Stop the thread; waits `seconds` for it."""
        self._stopping.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        use_own_connection(_NAME)
        try:
            while not self._stopping.is_set():
                try:
                    self._follow()
                except Exception:
                    if not self._failing and not self._stopping.is_set():
                        logger.exception("cannot listen for changes of state; retrying")
                    self._failing = True
                    connection.close()
                    self._stopping.wait(_RETRY_SECONDS)
        finally:
            connections.close_all()

    def _follow(self) -> None:
        """Listen and read over one connection, until it fails or `stop` is called."""
        _listen()
        position = self._look(None, ())
        while not self._stopping.is_set():
            position = self._look(position, self._heard())

    def _heard(self) -> tuple[Change, ...]:
        """Tell notified changes until a read is due. Return key changes, which need a read now."""
        due = monotonic() + LOOK_SECONDS
        while (left := due - monotonic()) > 0 and not self._stopping.is_set():
            changes = self._wait(left)
            if any(change.subject == Subject.KEY for change in changes):
                return changes
            if changes:
                self._tell(StateNews(changes))
        return ()

    def _wait(self, seconds: float) -> tuple[Change, ...]:
        if connection.vendor != "postgresql":
            self._stopping.wait(seconds)
            return ()
        with connection.wrap_database_errors:
            calls = list(connection.connection.notifies(timeout=seconds, stop_after=1))
        told = (call.payload.partition(" ") for call in calls)
        return tuple(Change(subject, subject_id) for subject, _, subject_id in told)

    def _look(self, position: int | None, heard: tuple[Change, ...]) -> int:
        """Read everything, tell it together with `heard`, and return the position to go on from."""
        began = ClockReading.now()
        changes: tuple[Change, ...] = ()
        try:
            if position is None:
                complete, position, self._seen = False, present_position(), frozenset()
            else:
                feed = state_since(position, self._seen)
                changes, complete, position = feed.changes, feed.complete, feed.position
                self._seen = feed.seen
            look = StateReading(began, token_keys(now=timezone.now()), *_renew_lease())
        except Exception:
            # The notified changes hold even if the read failed.
            self._tell(StateNews(heard))
            raise
        # After a restore of the database, the feed may seem to continue.
        complete, self._history = complete and look.history == self._history, look.history
        self._tell(StateNews(heard + changes, not complete, look))
        self._failing = False
        return position


def _listen() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_LISTEN)


def _renew_lease() -> tuple[float, str]:
    """Renew this process's lease; return `clock_ahead` and `history` of a StateReading."""
    began, before = monotonic(), timezone.now()
    row, database_now = replay_epochs.read_or_create_row()
    passed = timezone.now() - before
    replay_cache_lease.LEASE.renew(row, database_now, began)
    CLOCK.record_wrong_clock(replay_cache_lease.LEASE.clock_off())
    # The database read its clock between the two; assume the middle.
    return (database_now - before - passed / 2).total_seconds(), row.history
