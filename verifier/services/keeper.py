"""When the verifier moves between Redis and the database: the policy, run once a second by whoever is up."""

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
from registry.models import SpentProof
from verifier.models import GrantLedger, Home
from verifier.services.connecting import use_own_connection
from verifier.services.home import (
    LEASE,
    LEASE_SECONDS,
    MARGIN_SECONDS,
    begin,
    due,
    halt_of,
    leave,
    look,
)
from verifier.services.moment import CLOCK_SECONDS
from verifier.stores.connection import DEADLINE_SECONDS
from verifier.stores.probe import EvictingServersError, RedisProbe, ServersAwayError
from verifier.stores.told import TOLD

logger = logging.getLogger(__name__)

# Redis may be away for so long before the home is left, and must have answered for so long before it is gone back to.
TURN_SECONDS = 1
AWAY_SECONDS = 2
BACK_SECONDS = 30
# Where it was lost again before so much time was over, twice as long as the last time, up to the longest.
CALM_SECONDS = 600
LONGEST_BACK_SECONDS = 600
_ACTOR = Actor("system", "home")


class Probe(Protocol):
    """What a keeper asks of Redis. Each raises ServersAwayError where one of its servers does not answer."""

    def run_ids(self) -> frozenset[str]:
        """Who holds keys: a server that was started anew, or was another's replica in between, is another one.

        Raises EvictingServersError where one may drop them to save memory.
        """
        ...

    def in_time(self) -> bool:
        """Whether each of them answers as soon as a decision needs it, at one of a few tries; connecting does not count."""
        ...

    def times(self) -> Sequence[datetime]:
        """The time by the clock of each of them: it says when spent proofs are forgotten."""
        ...

    def mark(self, epoch: int) -> None:
        """Write the epoch's marker into each shard, and begin its count of events."""
        ...

    def marked(self, epoch: int) -> bool:
        """Whether every shard still has it."""
        ...

    def marked_later(self, epoch: int) -> bool:
        """Whether a shard has a later one: of another registry, or of ours before its database was restored."""
        ...


class Keeper:
    """Watches the home and moves it. Any number may run at once: each step is a compare-and-swap, and one makes it.

    They do not ask each other. A process that alone cannot reach Redis in time therefore moves everybody to the database,
    and again each time the others have moved back, which they do later and later: the events name it as `away`.
    `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        # What is being watched, (epoch, when it began to be left), and since when.
        self._watched: tuple[int, datetime | None] | None = None
        self._since = 0.0
        self._away_since: float | None = None
        self._answers_since: float | None = None
        # The database's time, and between which two moments it was read.
        self._database_time: tuple[datetime, float, float]

    def keep(self, probe: Probe | None, now: datetime) -> None:
        """One turn. `probe` is None where no REDIS_URL is set; `now` is the time of the events.

        Raises django.db errors and TemporarilyUnavailableError where the database is away: then there is nothing to do.
        """
        row = self._look()
        if halt_of(row):
            # This process moves no home: its Redis may not be the others', or this history may not continue.
            return
        if row.leaving_at is not None:
            self._arrive(row, probe, now)
        elif row.kind == Home.Kind.REDIS:
            self._in_redis(row, probe, now)
        elif probe is not None:
            self._in_database(row, probe, now)

    def _look(self) -> Home:
        began = self.clock()
        row, database_now = look()
        self._database_time = database_now, began, self.clock()
        if self._watched != (row.epoch, row.leaving_at):
            self._watched = (row.epoch, row.leaving_at)
            self._since = self.clock()
            self._away_since = self._answers_since = None
        return row

    def _leave(
        self, row: Home, for_kind: str, reason: str, now: datetime, *, back_after: int | None = None
    ) -> None:
        if leave(
            epoch=row.epoch,
            for_kind=for_kind,
            reason=reason,
            actor=_ACTOR,
            now=now,
            back_after=row.back_after if back_after is None else back_after,
        ):
            logger.warning("the verifier leaves %s for %s: %s", row.kind, for_kind, reason)
            # The wait counts from a look, so that one is made now and not at the next turn.
            self._look()

    def _arrive(self, row: Home, probe: Probe | None, now: datetime) -> None:
        """Begin the next epoch once the wait is over, by the database's clock and by ours.

        By ours since we saw the row: `leaving_at` is written before it is committed, and if that commit took long, leases
        were renewed in between.
        """
        if self.clock() - self._since < LEASE_SECONDS + MARGIN_SECONDS:
            return
        # Before the row is held: PostgreSQL ends a transaction that stands idle while slow servers are asked.
        kind, servers, reason = self._next_home(row, probe)
        # Under the row's lock: a marker that is written after another process began this epoch would call servers
        # whole that have forgotten some of it.
        with transaction.atomic():
            if due(row.epoch) is None:
                return
            # Where nothing was ever used there is nothing to be careful about: the first epoch begins again.
            following = row.epoch if _is_unused(row) else row.epoch + 1
            if probe is not None and kind == Home.Kind.REDIS:
                try:
                    probe.mark(following)
                except ServersAwayError as error:
                    kind, servers, reason = _not_had(error)
            begun = begin(
                epoch=row.epoch,
                following=following,
                kind=kind,
                servers=servers,
                reason=reason,
                actor=_ACTOR,
                now=now,
                back_after=self._back_after(row) if _is_lost(row, kind) else row.back_after,
            )
        if begun:
            logger.warning("the verifier is at home in %s: %s", kind, reason)

    def _in_redis(self, row: Home, probe: Probe | None, now: datetime) -> None:
        if probe is None:
            self._leave(row, Home.Kind.DATABASE, "not_configured", now, back_after=self._back_after(row))
            return
        asked = self.clock()
        try:
            servers = _asked_in_time(probe)
            marked, right = probe.marked(row.epoch), self._is_right(probe)
        except ServersAwayError as error:
            # From when it was asked: a server that hangs has been away for as long as it was waited for.
            self._away_since = asked if self._away_since is None else self._away_since
            # An evicting one at once: what it dropped it has forgotten, whatever it may do next.
            evicting = isinstance(error, EvictingServersError)
            if evicting or self.clock() - self._away_since >= AWAY_SECONDS:
                logger.warning("Redis is left: %s", error)
                self._leave(row, Home.Kind.DATABASE, error.reason, now, back_after=self._back_after(row))
            return
        self._away_since = None
        if not servers <= set(row.servers):
            # Started anew, or another took over: either may have forgotten the last moments.
            self._leave_forgetful(row, "another_server", now)
        elif not marked:
            self._leave_forgetful(row, "forgotten", now)
        elif not right:
            # What it held to be over it has forgotten, whatever its clock says next.
            self._leave(row, Home.Kind.DATABASE, "clock", now, back_after=self._back_after(row))

    def _leave_forgetful(self, row: Home, reason: str, now: datetime) -> None:
        """For another epoch of Redis; for the database where Redis was lost before, and not calm since."""
        flapping = row.back_after > 0 and not self._is_calm(row)
        kind = Home.Kind.DATABASE if flapping else Home.Kind.REDIS
        self._leave(row, kind, reason, now, back_after=self._back_after(row))

    def _in_database(self, row: Home, probe: Probe, now: datetime) -> None:
        try:
            _asked_in_time(probe)
            foreign, right = probe.marked_later(row.epoch), self._is_right(probe)
        except ServersAwayError as error:
            if isinstance(error, EvictingServersError):
                logger.warning("Redis is not gone to: %s", error)
            self._answers_since = None
            return
        if foreign:
            # No epoch of ours can begin there, and each attempt would stop everybody for as long as leases last.
            logger.error("Redis was marked with an epoch later than %s: empty it, or name another", row.epoch)
            self._answers_since = None
            return
        if not right:
            logger.error("the clock of Redis differs by more than %s s from the database's", CLOCK_SECONDS)
            self._answers_since = None
            return
        self._answers_since = self.clock() if self._answers_since is None else self._answers_since
        if _is_unused(row) and not row.back_after:
            # Nobody has asked anything yet, so nobody has to wait; unless it was lost on the way there.
            self._leave(row, Home.Kind.REDIS, "fresh", now)
        elif self.clock() - self._answers_since >= (row.back_after or BACK_SECONDS):
            self._leave(row, Home.Kind.REDIS, "back", now)

    def _next_home(self, row: Home, probe: Probe | None) -> tuple[str, frozenset[str], str]:
        """Where the next epoch is to begin: kind, run ids and why. What cannot be had is no reason to go on deciding nothing."""
        if row.leaving_for == Home.Kind.DATABASE:
            return Home.Kind.DATABASE, frozenset(), "as_planned"
        if probe is None:
            return Home.Kind.DATABASE, frozenset(), "not_configured"
        try:
            # The ids before the markers: a server that is started anew after this is another one.
            servers = _asked_in_time(probe)
            if not self._is_right(probe):
                return Home.Kind.DATABASE, frozenset(), "clock"
        except ServersAwayError as error:
            return _not_had(error)
        return Home.Kind.REDIS, servers, "as_planned"

    def _back_after(self, row: Home) -> int:
        """How long (s) to wait for Redis, which is lost: it alone says when everybody moves the next time."""
        again = min(2 * row.back_after or BACK_SECONDS, LONGEST_BACK_SECONDS)
        return BACK_SECONDS if self._is_calm(row) else again

    def _is_calm(self, row: Home) -> bool:
        """Whether the home has been in Redis for so long that what was lost before does not count."""
        lasted = self._database_time[0] - row.began_at
        return row.kind == Home.Kind.REDIS and lasted >= timedelta(seconds=CALM_SECONDS)

    def _is_right(self, probe: Probe) -> bool:
        """Whether no server's clock differs from the database's by more than a host's may."""
        database_now, began, ended = self._database_time
        asked = self.clock()
        told = probe.times()
        earliest = database_now + timedelta(seconds=asked - ended - CLOCK_SECONDS)
        latest = database_now + timedelta(seconds=self.clock() - began + CLOCK_SECONDS)
        return all(earliest <= each <= latest for each in told)


def _asked_in_time(probe: Probe) -> frozenset[str]:
    """Its run ids. Raises ServersAwayError also where a server answers later than any decision waits for it."""
    servers = probe.run_ids()
    if not probe.in_time():
        raise ServersAwayError(f"it does not answer within {DEADLINE_SECONDS} s, as long as a decision waits")
    return servers


def _not_had(error: ServersAwayError) -> tuple[str, frozenset[str], str]:
    """The home that is begun instead of Redis."""
    logger.error("the verifier cannot begin in Redis: %s", error)
    return Home.Kind.DATABASE, frozenset(), error.reason


def _is_lost(row: Home, kind: str) -> bool:
    """Whether the home was to be in Redis and comes to be in the database."""
    return row.leaving_for == Home.Kind.REDIS and kind == Home.Kind.DATABASE


def _is_unused(row: Home) -> bool:
    """Whether the home is the first, and in the database, and holds neither a spent proof nor a rate."""
    used = SpentProof.objects.exists() or GrantLedger.objects.exists()
    return row.epoch == 1 and row.kind == Home.Kind.DATABASE and not used


# This process's own.
KEEPER = Keeper()
_PROBE = RedisProbe()


def keep_home(*, now: datetime) -> None:
    """One turn of this process's keeper, with what REDIS_URL names."""
    KEEPER.keep(_PROBE if settings.REDIS_URL else None, now)


class Keeping:
    """A thread that keeps the home, for a process that decides: it must not depend on another one being up."""

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
                TOLD.write_down(before=LEASE.held().epoch)
                failing = False
            except (DatabaseError, InterfaceError, TemporarilyUnavailableError):
                # Without the database nobody decides anyway. Whoever follows its state has said so in the log.
                connections.close_all()
            except Exception:
                # Said once, until a turn succeeds.
                if not failing:
                    logger.exception("the home cannot be kept; trying until it can")
                failing = True
                connections.close_all()
        try:
            TOLD.write_down()
        except Exception:
            logger.exception("what this process was told of decisions goes with it")
        connections.close_all()
