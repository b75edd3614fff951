"""Begins the epochs of the replay cache. Verifiers check twice a second, jobs once.

Settings choose the cache: Redis where REDIS_URL is set, else the database. While Redis is
unavailable the verifier answers 503, and nothing moves. When Redis is back and may have forgotten
spent proofs, a new epoch begins in it at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.services import Actor
from verifier.models import Home
from verifier.services import replay_cache_lease, replay_epochs
from verifier.services.clock_readings import CLOCK_SKEW_SECONDS
from verifier.services.replay_cache_lease import halt_of
from verifier.services.replay_epochs import LEASE_SECONDS, MARGIN_SECONDS, is_unused
from verifier.services.short_timeout_connection import use_own_connection
from verifier.stores.acknowledged_events import ACKNOWLEDGED
from verifier.stores.redis_probe import EvictingServersError, RedisProbe, ServersAwayError

logger = logging.getLogger(__name__)

# Seconds between checks. The aim is one second from a replica's promotion to the next answer; the
# other half is for the processes to notice the new epoch.
TURN_SECONDS = 0.5
_ACTOR = Actor("system", "home")


class Probe(Protocol):
    """What a keeper asks Redis. Each method raises ServersAwayError if a server does not answer."""

    def run_ids(self) -> frozenset[str]:
        """The identity of each server with keys; a restart or a time as a replica changes it.

        Raises EvictingServersError if a server may evict keys.
        """
        ...

    def times(self) -> Sequence[datetime]:
        """The time by each server's clock, which decides when a spent proof expires."""
        ...

    def claim(self) -> None:
        """Write whose Redis it is. Raises OtherRegistryError if it is another registry's."""
        ...

    def mark(self, epoch: int) -> None:
        """Write the epoch's marker into each shard and start its event counter."""
        ...

    def is_marked(self, epoch: int) -> bool:
        """Whether every shard still has the epoch's marker."""
        ...


class Keeper:
    """Any number may run at once: each step is a compare-and-swap on the row.

    `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        # The epoch that this keeper saw ending, with `leaving_at` of its row, and since
        # when by our clock.
        self._leaving: tuple[int, datetime] | None = None
        self._since = 0.0
        # Why no epoch can begin or continue, as last logged.
        self._trouble = ""

    def keep(self, probe: Probe | None, now: datetime) -> None:
        """Check once. `probe` is None if no REDIS_URL is set; `now` is the time of the events.

        Raises django.db errors and TemporarilyUnavailableError while the database is unavailable.
        """
        began = self.clock()
        row, database_now = replay_epochs.read_or_create_row()
        if halt_of(row):
            # This process may use another Redis than the others, or the database may be held.
            return
        if row.target != replay_epochs.configured_cache():
            # `migrate` created the first epoch in the database; move it where the settings say.
            replay_epochs.end_epoch(
                epoch=row.epoch,
                for_kind=replay_epochs.configured_cache(),
                reason="fresh",
                actor=_ACTOR,
                now=now,
            )
            row, database_now = replay_epochs.read_or_create_row()
        read = database_now, began, self.clock()
        try:
            if row.leaving_at is not None:
                self._arrive(row, probe, read)
            elif probe is not None:
                self._watch(row, probe, read, now)
            self._trouble = ""
        except ServersAwayError as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                logger.error(  # noqa: TRY400 — expected, no traceback
                    "Redis cannot be the replay cache now, so the verifier answers 503: %s", error
                )

    def _watch(
        self, row: Home, probe: Probe, read: tuple[datetime, float, float], now: datetime
    ) -> None:
        """Begin another epoch if Redis may have forgotten proofs spent in this one."""
        probe.claim()
        try:
            servers = probe.run_ids()
            self._check_clocks(probe, read)
        except (EvictingServersError, ClocksApartError) as error:
            # Proofs may be lost already, even once this is repaired: end the epoch, and decide
            # nothing until the next can begin.
            replay_epochs.end_epoch(
                epoch=row.epoch, for_kind=row.kind, reason=error.reason, actor=_ACTOR, now=now
            )
            raise
        if not servers <= set(row.servers):
            # A server restarted or a replica took over: either may have lost the latest writes.
            self._begin(row, probe, servers, "another_server")
        elif not probe.is_marked(row.epoch):
            self._begin(row, probe, servers, "forgotten")

    def _arrive(self, row: Home, probe: Probe | None, read: tuple[datetime, float, float]) -> None:
        """Begin the next epoch once all leases have expired.

        Our clock counts from when we saw the row. `leaving_at` only says which leaving it is: it is
        written before its commit, in between a lease may be renewed, and the database's clock may
        have been hours ahead when it was written.
        """
        if row.leaving_at is None:
            return
        if self._leaving != (row.epoch, row.leaving_at):
            self._leaving, self._since = (row.epoch, row.leaving_at), self.clock()
        if self.clock() - self._since < LEASE_SECONDS + MARGIN_SECONDS:
            return
        servers: frozenset[str] = frozenset()
        if probe is not None:
            # Read the identities before writing the markers, so that a restart
            # in between is noticed.
            servers = probe.run_ids()
            self._check_clocks(probe, read)
        self._begin(row, probe, servers, "as_planned")

    def _begin(self, row: Home, probe: Probe | None, servers: frozenset[str], reason: str) -> None:
        following = row.epoch if is_unused(row) else row.epoch + 1
        # Write the marker under the row's lock: written after another process began this epoch, it
        # would mark servers as complete that have lost some of the epoch since.
        with transaction.atomic():
            began_at = replay_epochs.next_epoch_start(row)
            if began_at is None:
                return
            if probe is not None:
                probe.claim()
                probe.mark(following)
            replay_epochs.start_epoch(
                row,
                following=following,
                servers=servers,
                began_at=began_at,
                reason=reason,
                actor=_ACTOR,
            )
        logger.warning(
            "epoch %s of the replay cache begins in %s: %s", following, row.target, reason
        )
        began = self.clock()
        replay_cache_lease.LEASE.renew(*replay_epochs.read_row(), began)

    def _check_clocks(self, probe: Probe, read: tuple[datetime, float, float]) -> None:
        """Raise ClocksApartError if a server's clock is off by more than CLOCK_SKEW_SECONDS.

        `read` is the database's time and our clock before and after it was read.
        """
        database_now, began, ended = read
        asked = self.clock()
        told = probe.times()
        earliest = database_now + timedelta(seconds=asked - ended - CLOCK_SKEW_SECONDS)
        latest = database_now + timedelta(seconds=self.clock() - began + CLOCK_SKEW_SECONDS)
        if not all(earliest <= each <= latest for each in told):
            raise ClocksApartError(
                f"its clock differs by more than {CLOCK_SKEW_SECONDS} s from the database's: "
                "correct it"
            )


class ClocksApartError(ServersAwayError):
    """A Redis server's clock is off: if it runs ahead, Redis forgets spent proofs too early."""

    reason = "clock"


# One for the process.
KEEPER = Keeper()
_PROBE = RedisProbe()


def keep_home(*, now: datetime) -> None:
    """Check once with this process's keeper, and the Redis that REDIS_URL names."""
    KEEPER.keep(_PROBE if settings.REDIS_URL else None, now)


class EpochKeeperThread:
    """A thread that runs the keeper, so that a verifying process depends on no other."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentauth-keeping", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current check."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        use_own_connection("agentauth-keeping")
        failing = False
        while not self._stopping.wait(TURN_SECONDS):
            try:
                keep_home(now=timezone.now())
                ACKNOWLEDGED.save(before=replay_cache_lease.LEASE.last_epoch().number)
                failing = False
            except (DatabaseError, InterfaceError, TemporarilyUnavailableError):
                # Without the database nothing is decided anyway, and the state watcher
                # has logged the outage.
                connections.close_all()
            except Exception:
                # Log once until a check succeeds.
                if not failing:
                    logger.exception("no epoch of the replay cache can begin; retrying")
                failing = True
                connections.close_all()
        try:
            ACKNOWLEDGED.save()
        except Exception:
            logger.exception(
                "the numbers of the last decisions could not be saved: a loss in Redis may go "
                "unnoticed"
            )
        connections.close_all()
