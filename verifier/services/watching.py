"""Hearing of every change of state: called out by PostgreSQL as it commits, and looked up twice a second in any case."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

from django.db import connection, connections
from django.utils import timezone

from agentauth.protocol.token import TokenKey
from kms.certificates import token_keys
from kms.state import Subject
from verifier.services import home
from verifier.services.clocks import CLOCK
from verifier.services.connecting import use_own_connection
from verifier.services.moment import Moment
from verifier.services.state import CHANNEL, Change, present_position, state_since

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
# After a failure the next look is tried this much later, for ever.
_RETRY_SECONDS: Final = 0.25
_NAME: Final = "agentauth-watching"
_LISTEN: Final = f"LISTEN {CHANNEL}"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the database saw that began then."""

    began: Moment
    # The keys whose signatures under tokens count, by `kid`.
    token_keys: Mapping[str, TokenKey]
    # How far the database's clock is ahead of this host's, in seconds.
    clock_ahead: float
    # Which history of the database that was: another one after a restore.
    history: str = ""


@dataclass(frozen=True, slots=True)
class News:
    """What changed: these, or perhaps everything. With a `look`, all that was committed before it began is told."""

    changes: tuple[Change, ...] = ()
    everything: bool = False
    look: Look | None = None


class Watcher:
    """A thread that hands `tell` all news, in its own time; `tell` is called in that thread.

    Each look also renews the process's lease of the verifier's home (`verifier.services.home.LEASE`), and tells the log
    where this host's clock is off.

    It listens before it looks, and forgets everything with each new connection: what was missed in between cannot
    be asked for, since a server that crashed may give the number of a change that was rolled back to another one.
    Its failures are logged once until a look succeeds again; meanwhile nothing is told, and knowledge gets old.
    """

    def __init__(self, tell: Callable[[News], None]) -> None:
        self._tell = tell
        self._stopping = threading.Event()
        self._failing = False
        self._history: str | None = None
        self._thread = threading.Thread(target=self._run, name=_NAME, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End the thread; waits `seconds` for it."""
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
                        logger.exception("changes of state cannot be seen; trying until they can")
                    self._failing = True
                    connection.close()
                    self._stopping.wait(_RETRY_SECONDS)
        finally:
            connections.close_all()

    def _follow(self) -> None:
        """Over one connection, until it fails or the end."""
        _listen()
        position = self._look(None, ())
        while not self._stopping.is_set():
            position = self._look(position, self._heard())

    def _heard(self) -> tuple[Change, ...]:
        """Tell what is called out until the next look is due; a change of keys is left to that look, and makes it due."""
        due = monotonic() + LOOK_SECONDS
        while (left := due - monotonic()) > 0 and not self._stopping.is_set():
            changes = self._wait(left)
            if any(change.subject == Subject.KEY for change in changes):
                return changes
            if changes:
                self._tell(News(changes))
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
        """Look at everything, tell it with what was `heard`, and give the position to look from next."""
        began = Moment.now()
        changes: tuple[Change, ...] = ()
        try:
            if position is None:
                complete, position = False, present_position()
            else:
                feed = state_since(position)
                changes, complete, position = feed.changes, feed.complete, feed.position
            look = Look(began, token_keys(now=timezone.now()), *_look_home())
        except Exception:
            # What was heard is true all the same.
            self._tell(News(heard))
            raise
        # A feed that was set back with its database may look as if it went on.
        complete, self._history = complete and look.history == self._history, look.history
        self._tell(News(heard + changes, not complete, look))
        self._failing = False
        return position


def _listen() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_LISTEN)


def _look_home() -> tuple[float, str]:
    """Renew this process's lease; how far the database's clock is ahead of this host's, in seconds, and `Look.history`."""
    began, before = monotonic(), timezone.now()
    row, database_now = home.look()
    passed = timezone.now() - before
    home.LEASE.take(row, database_now, began)
    CLOCK.tell(home.LEASE.clock_off())
    # It was read some time between the two.
    return (database_now - before - passed / 2).total_seconds(), row.history
