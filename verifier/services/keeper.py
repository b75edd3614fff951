"""Begins the epochs of the replay cache. Every process that verifies and every jobs process takes a turn twice a second.

Settings choose the cache: Redis where REDIS_URL is set, else the database. While Redis is unavailable the verifier answers
503, and nothing moves. When Redis is back and may have forgotten spent proofs, a new epoch begins in it at once.
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
from verifier.services import home
from verifier.services.connecting import use_own_connection
from verifier.services.home import LEASE_SECONDS, MARGIN_SECONDS, halt_of, is_unused
from verifier.services.moment import CLOCK_SECONDS
from verifier.stores.probe import EvictingServersError, RedisProbe, ServersAwayError
from verifier.stores.told import TOLD

logger = logging.getLogger(__name__)

# Half of the aim of one second from a replica's promotion to the next answer; the rest is for the processes to hear of it.
TURN_SECONDS = 0.5
_ACTOR = Actor("system", "home")


class Probe(Protocol):
    """What a keeper asks of Redis. Each raises ServersAwayError if one of its servers does not answer."""

    def run_ids(self) -> frozenset[str]:
        """The identity of each server that holds keys. A server that restarted, or was a replica in between, has another one.

        Raises EvictingServersError if one may drop keys to save memory.
        """
        ...

    def times(self) -> Sequence[datetime]:
        """The time by the clock of each server, which decides when a spent proof is forgotten."""
        ...

    def mark(self, epoch: int) -> None:
        """Write the epoch's marker into each shard, and begin its count of events."""
        ...

    def marked(self, epoch: int) -> bool:
        """Whether every shard still has it."""
        ...


class Keeper:
    """Any number may run at once: each step is a compare-and-swap on the row. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        # The epoch that this keeper has seen being left, with the time in its row, and since when by our clock.
        self._leaving: tuple[int, datetime] | None = None
        self._since = 0.0
        # Why no epoch can begin or go on, as last logged.
        self._trouble = ""

    def keep(self, probe: Probe | None, now: datetime) -> None:
        """One turn. `probe` is None where no REDIS_URL is set; `now` is the time of the events.

        Raises django.db errors and TemporarilyUnavailableError while the database is unavailable.
        """
        began = self.clock()
        row, database_now = home.look()
        if halt_of(row):
            # The Redis of this process may not be the others', or this history may not continue.
            return
        if row.target != home.configured():
            # The first epoch, where `migrate` put it.
            home.leave(epoch=row.epoch, for_kind=home.configured(), reason="fresh", actor=_ACTOR, now=now)
            row, database_now = home.look()
        read = database_now, began, self.clock()
        try:
            if row.leaving_at is not None:
                self._arrive(row, probe, read, now)
            elif probe is not None:
                self._watch(row, probe, read, now)
            self._trouble = ""
        except ServersAwayError as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                logger.error("Redis cannot be the replay cache now, the verifier answers 503: %s", error)  # noqa: TRY400 — no bug

    def _watch(self, row: Home, probe: Probe, read: tuple[datetime, float, float], now: datetime) -> None:
        """Whether Redis still knows all that was spent in this epoch; if it may not, begin another."""
        try:
            servers = probe.run_ids()
            self._check_clocks(probe, read)
        except (EvictingServersError, ClocksApartError) as error:
            # What it dropped it has forgotten, whatever it does next. Nothing is decided until an epoch can begin.
            home.leave(epoch=row.epoch, for_kind=row.kind, reason=error.reason, actor=_ACTOR, now=now)
            raise
        if not servers <= set(row.servers):
            # A restart, or a replica that took over: either may have lost the last moments.
            self._begin(row, probe, servers, "another_server", now)
        elif not probe.marked(row.epoch):
            self._begin(row, probe, servers, "forgotten", now)

    def _arrive(
        self, row: Home, probe: Probe | None, read: tuple[datetime, float, float], now: datetime
    ) -> None:
        """Begin the next epoch after every lease under the former has run out, by the database's clock and by ours.

        By ours since we saw the row: `leaving_at` is written before its commit, and a lease may be renewed in between.
        """
        if row.leaving_at is None:
            return
        if self._leaving != (row.epoch, row.leaving_at):
            self._leaving, self._since = (row.epoch, row.leaving_at), self.clock()
        if self.clock() - self._since < LEASE_SECONDS + MARGIN_SECONDS:
            return
        servers: frozenset[str] = frozenset()
        if probe is not None:
            # The identities before the markers: a server that is started anew after this is another one.
            servers = probe.run_ids()
            self._check_clocks(probe, read)
        self._begin(row, probe, servers, "as_planned", now)

    def _begin(
        self, row: Home, probe: Probe | None, servers: frozenset[str], reason: str, now: datetime
    ) -> None:
        following = row.epoch if is_unused(row) else row.epoch + 1
        # The marker under the row's lock: one that is written after another process began this epoch would call servers
        # whole that have forgotten some of it.
        with transaction.atomic():
            began_at = home.due(row)
            if began_at is None:
                return
            if probe is not None:
                probe.mark(following)
            home.begin(
                row,
                following=following,
                servers=servers,
                began_at=began_at,
                reason=reason,
                actor=_ACTOR,
                now=now,
            )
        logger.warning("epoch %s of the replay cache begins in %s: %s", following, row.target, reason)
        began = self.clock()
        home.LEASE.take(*home.read_row(), began)

    def _check_clocks(self, probe: Probe, read: tuple[datetime, float, float]) -> None:
        """Raise ClocksApartError if a server's clock differs from the database's by more than a host's may.

        `read` is the database's time, and between which two moments it was read.
        """
        database_now, began, ended = read
        asked = self.clock()
        told = probe.times()
        earliest = database_now + timedelta(seconds=asked - ended - CLOCK_SECONDS)
        latest = database_now + timedelta(seconds=self.clock() - began + CLOCK_SECONDS)
        if not all(earliest <= each <= latest for each in told):
            raise ClocksApartError(
                f"its clock differs by more than {CLOCK_SECONDS} s from the database's: set it right"
            )


class ClocksApartError(ServersAwayError):
    """By a clock that runs ahead, Redis forgets spent proofs too early."""

    reason = "clock"


# This process's own.
KEEPER = Keeper()
_PROBE = RedisProbe()


def keep_home(*, now: datetime) -> None:
    """One turn of this process's keeper, with what REDIS_URL names."""
    KEEPER.keep(_PROBE if settings.REDIS_URL else None, now)


class Keeping:
    """A thread that takes the turns, for a process that verifies: it must not depend on another process being up."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentauth-keeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the turn that is under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        use_own_connection("agentauth-keeping")
        failing = False
        while not self._stopping.wait(TURN_SECONDS):
            try:
                keep_home(now=timezone.now())
                TOLD.write_down(before=home.LEASE.held().epoch)
                failing = False
            except (DatabaseError, InterfaceError, TemporarilyUnavailableError):
                # Without the database nothing is decided anyway, and the thread that follows its state has logged it.
                connections.close_all()
            except Exception:
                # Logged once, until a turn succeeds.
                if not failing:
                    logger.exception("no epoch of the replay cache can begin; trying until one can")
                failing = True
                connections.close_all()
        try:
            TOLD.write_down()
        except Exception:
            logger.exception("what this process was told of decisions is lost with it")
        connections.close_all()
