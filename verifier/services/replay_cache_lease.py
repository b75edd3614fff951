"""The lease of this process on the replay cache: it decides only while the lease holds.

`replay_epochs` says what the lease is for, and how long it lasts.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import time as wall

from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from registry.services import settings_agreement
from registry.services.settings_agreement import Halt
from verifier.models import Home
from verifier.services import replay_epochs, rollback_hold
from verifier.services.clock_readings import elapsed_seconds
from verifier.services.replay_epochs import (
    LEASE_SECONDS,
    ClockOff,
    ReplayEpoch,
    configured_cache,
    contradiction,
    host_clock_error,
)

logger = logging.getLogger(__name__)

# A younger read (s) is reused: each process makes at most one query a second.
FRESH_SECONDS = 1
# How long (s) a thread waits while another compares the history, which usually takes milliseconds.
COMPARE_SECONDS = 1
# How long (s) a readiness probe waits for the comparison that it starts.
PROBE_SECONDS = 0.5
# The error of every endpoint, in both servers, while this host's clock is off.
CLOCK_WRONG = "The clock of this host is wrong."


@dataclass(frozen=True, slots=True)
class _Look:
    """One read of the row. The lease counts from its start: `began` (monotonic), `at` (wall)."""

    replay_epoch: ReplayEpoch
    leaving: bool
    clock_off: ClockOff | None
    began: float
    at: float
    halt: Halt | None = None


class Lease:
    """One process's permission to decide, for all its threads. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: _Look | None = None
        self._taking = threading.Lock()
        self._looking = threading.Lock()

    def current(self) -> ReplayEpoch:
        """The epoch, after a new read if the last is older than FRESH_SECONDS.

        One thread reads; the others use the last read, and wait only if the lease has expired.
        Raises as `last_epoch`, and django.db errors in the thread that reads.
        """
        self._look_again()
        return self.last_epoch()

    def clock_off(self, *, waits: bool = True) -> ClockOff | None:
        """How far this host's clock is off, None if it may be right; reads as `current` does.

        Without `waits`, it does not wait for other threads. Raises TemporarilyUnavailableError if
        the last read is too old to tell, and django.db errors in the thread that reads.
        """
        self._look_again(waits=waits)
        last = self._last
        if last is None or self._age_of(last) > LEASE_SECONDS:
            raise TemporarilyUnavailableError(
                "This process cannot tell right now whether the clock of this host is right."
            )
        return last.clock_off

    def halt(self, *, waits: bool = True) -> Halt | None:
        """Why this process may not act for the installation, if so; otherwise as `clock_off`."""
        self._look_again(waits=waits)
        last = self._last
        if last is None or self._age_of(last) > LEASE_SECONDS:
            raise TemporarilyUnavailableError(
                "This process cannot check now whether it may act. Try again shortly."
            )
        return last.halt

    def check_halt(self) -> None:
        """Raise TemporarilyUnavailableError if by the last read, however old, it may not act."""
        last = self._last
        if last is not None and last.halt:
            raise TemporarilyUnavailableError(last.halt.told)

    def _look_again(self, *, waits: bool = True) -> None:
        """Read if the last read is stale. Wait for a comparison, or other calls would get 503."""
        age, comparing = self._age(), self._comparing()
        if age <= FRESH_SECONDS and not comparing:
            return
        patience: float = (
            COMPARE_SECONDS if comparing else LEASE_SECONDS if age > LEASE_SECONDS else 0
        )
        if self._looking.acquire(timeout=patience if waits else 0):
            try:
                # After a wait for another thread's read, do not repeat it
                # unless it was inconclusive.
                if self._age() > FRESH_SECONDS or self._comparing():
                    self._look(waits=waits)
            finally:
                self._looking.release()

    def _look(self, *, waits: bool) -> None:
        began = self._clock()
        row, database_now = replay_epochs.read_row()
        # Take this first: if no process has compared the database yet, all threads must stop now.
        self.renew(row, database_now, began)
        if not waits:
            compared = rollback_hold.HISTORY_COMPARISON.ask_aside(
                row, replay_epochs.read_or_create_row, patience=PROBE_SECONDS
            )
        else:
            compared = rollback_hold.HISTORY_COMPARISON.ask(row, patience=COMPARE_SECONDS)
        if compared:
            began = self._clock()
            self.renew(*replay_epochs.read_row(), began)

    def _comparing(self) -> bool:
        """Whether at the last read no process had compared the database's history yet."""
        last = self._last
        return bool(last and last.halt and last.halt.passes)

    def last_epoch(self, spare: float = 0) -> ReplayEpoch:
        """The epoch by the last read, for a process with a thread that reads; never reads itself.

        With `spare`, it must hold for that many more seconds. Raises TemporarilyUnavailableError if
        the last read began more than LEASE_SECONDS ago, the process may not act for the
        installation, the epoch is ending, or this host's clock is off.
        """
        last = self._last
        if last is None or self._age_of(last) > LEASE_SECONDS - spare:
            raise TemporarilyUnavailableError(
                "This process has not been able to look up the replay cache lately."
            )
        if last.halt:
            raise TemporarilyUnavailableError(last.halt.told)
        if last.leaving:
            raise TemporarilyUnavailableError(
                "An epoch of the replay cache is about to begin. Try again in a few seconds."
            )
        if last.clock_off:
            raise TemporarilyUnavailableError(CLOCK_WRONG)
        return last.replay_epoch

    def renew(self, row: Home, database_now: datetime, looked_at: float) -> None:
        """Use a read that *began* at `looked_at` (monotonic): it renews the lease."""
        latest, passed = timezone.now(), self._clock() - looked_at
        earliest = latest - timedelta(seconds=passed)
        taken = _Look(
            ReplayEpoch(row.epoch, row.kind, frozenset(row.servers), row.began_at),
            # Decide nothing in a cache that the settings do not name, not even before
            # the first epoch begins.
            leaving=row.leaving_at is not None or row.kind != configured_cache(),
            clock_off=host_clock_error(database_now, earliest, latest),
            began=looked_at,
            at=wall() - passed,
            halt=halt_of(row),
        )
        with self._taking:
            if self._last is None or self._last.began < looked_at:
                before, self._last = self._last, taken
                _tell_halt(before.halt if before else None, taken.halt)

    def _age(self) -> float:
        return float("inf") if self._last is None else self._age_of(self._last)

    def _age_of(self, last: _Look) -> float:
        return elapsed_seconds(self._clock() - last.began, wall() - last.at)


# One for the process.
LEASE = Lease()


def halt_of(row: Home) -> Halt | None:
    """Why this process may not act, given the row; None if it may."""
    if halt := settings_agreement.halt(row):  # type: ignore[arg-type]  # annotated
        return halt
    if reason := contradiction(row):
        return Halt("This process has other settings than the rest of the installation.", reason)
    return rollback_hold.halt(row)


def _tell_halt(before: Halt | None, halt: Halt | None) -> None:
    """Log each time this process stops acting or may act again."""
    if halt is not None and halt != before:
        if halt.passes:
            logger.info("this process does not answer yet: %s", halt.reason)
        else:
            logger.error("this process does not answer until an operator acts: %s", halt.reason)
    elif halt is None and before is not None and not before.passes:
        logger.warning("this process may act again")
