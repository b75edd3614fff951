"""The replay cache: where spent proofs and rates are kept, and how long a process may act on what it knows of that.

Settings choose the cache (`configured`): Redis where REDIS_URL is set, else the database. The time in one cache without a
gap is an epoch. A proof that was spent in one epoch may be unknown to the next, so a new epoch must keep three promises
(docs/adr/0011-one-replay-cache-in-epochs.md):

1. A process decides under a lease that ends LEASE_SECONDS after its last look at the row *began*. A move to another cache
   waits until every lease has run out. A new epoch in the same Redis does not wait: only a server that the others have
   lost could still answer a process under an old lease.
2. No proof passes in two epochs. For CAREFUL_SECONDS after an epoch began a proof must carry a nonce of it, so the proof
   was made after that; by then any other is too old. The reckoning, with every clock at its worst: the last proof of the
   old epoch passes LEASE_SECONDS + MARGIN_SECONDS after the new one began, its `iat` at most the window and the 5 s of a
   clock ahead; it is good for one window more.
3. No rate begins with a burst: what is not known of a rate counts as if its burst was used when the epoch began.

The first epoch asks for none of this. `keeper.py` begins epochs.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import time as wall

from django.conf import settings
from django.db import connection, transaction
from django.db.models import DateTimeField, Func, Value
from django.utils import timezone

from agentauth.protocol.dpop import SPEND_SECONDS, WINDOW_SECONDS
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.limits import microseconds
from audit import kinds
from audit.services import Actor, record
from registry.models import SpentProof
from registry.services import installation
from registry.services.installation import Halt
from verifier.models import GrantLedger, Home
from verifier.services import history
from verifier.services.moment import CLOCK_SECONDS, longer

logger = logging.getLogger(__name__)

LEASE_SECONDS = 5
# Beyond the last lease, for what is under way when it ends.
MARGIN_SECONDS = 1
# A proof is made at most a window ahead and is good for a window; the rest is what clocks may differ, and old leases.
CAREFUL_SECONDS = SPEND_SECONDS + WINDOW_SECONDS + LEASE_SECONDS + MARGIN_SECONDS
# A look that is younger is not made again: at most one query a second in each process.
FRESH_SECONDS = 1
# A thread waits this long (s) while another compares the database with what is known outside, which mostly takes milliseconds.
COMPARE_SECONDS = 1
# A readiness probe, which comes to any process of a server, waits this long (s) for the comparison that it begins.
PROBE_SECONDS = 0.5
_WAIT = timedelta(seconds=LEASE_SECONDS + MARGIN_SECONDS)
# What every address says then, at both servers.
CLOCK_WRONG = "The clock of this host is wrong."


@dataclass(frozen=True, slots=True)
class Tenure:
    """What a process may act under, for as long as its lease holds. `kind` is a `Home.Kind`, `servers` Redis run ids."""

    epoch: int
    kind: str
    servers: frozenset[str]
    # By the database's clock, or that of the host that began it, whichever was later.
    began_at: datetime

    def careful(self, now: datetime) -> bool:
        """Whether proofs need a nonce of this epoch: at `now` (aware) one spent in the epoch before could still be good."""
        return self.epoch > 1 and now <= self.began_at + timedelta(seconds=CAREFUL_SECONDS)

    def floor_us(self, follows_at: datetime | None) -> int | None:
        """µs since 1970 from which a rate counts that nothing is known of, as if its burst had just been used then.

        When the epoch began, or, if that was later, the grant's approval where it follows another one. None in the first
        epoch, which forgot nothing, for a grant that follows none.
        """
        began_us = microseconds(self.began_at) if self.epoch > 1 else None
        return began_us if follows_at is None else max(began_us or 0, microseconds(follows_at))

    def nonce_server(self, service_provider_id: str) -> str:
        """Whose nonces verify takes for this service provider (`registry.services.nonces`): each epoch has its own."""
        return service_provider_id if self.epoch == 1 else f"{service_provider_id}/{self.epoch}"


@dataclass(frozen=True, slots=True)
class ClockOff:
    """By how much this host's clock is ahead of the database's, behind where negative, and the time by the database's."""

    seconds_ahead: int
    database_now: datetime


@dataclass(frozen=True, slots=True)
class _Look:
    """What one reading of the row said. `began` is when it was begun, by the monotonic clock: the lease counts from it; `at` is
    the same by the host's clock.
    """

    tenure: Tenure
    leaving: bool
    clock_off: ClockOff | None
    began: float
    at: float
    halt: Halt | None = None


class Lease:
    """One process's leave to decide, for all its threads. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: _Look | None = None
        self._taking = threading.Lock()
        self._looking = threading.Lock()

    def current(self) -> Tenure:
        """The tenure, after a new look where the last is older than FRESH_SECONDS.

        One thread looks, the others go on with what is held; where the lease has run out they wait for it. Raises what
        `held` raises, and django.db errors in the thread that looked.
        """
        self._look_again()
        return self.held()

    def clock_off(self, *, waits: bool = True) -> ClockOff | None:
        """How far this host's clock is off, None where it may be right; by a look as `current` makes one, wherever the home is.

        Without `waits`, no other thread is waited for. Raises TemporarilyUnavailableError where the last look is too old to tell,
        and django.db errors in the thread that looked.
        """
        self._look_again(waits=waits)
        last = self._last
        if last is None or self._age_of(last) > LEASE_SECONDS:
            raise TemporarilyUnavailableError("Whether the clock of this host is right is not known now.")
        return last.clock_off

    def halt(self, *, waits: bool = True) -> Halt | None:
        """Why this process may not act for the installation, None where it may; as `clock_off` in all else."""
        self._look_again(waits=waits)
        last = self._last
        if last is None or self._age_of(last) > LEASE_SECONDS:
            raise TemporarilyUnavailableError(
                "This process cannot check now whether it may act. Try again shortly."
            )
        return last.halt

    def check_halt(self) -> None:
        """Raises TemporarilyUnavailableError where this process may not act by the last look, however old; looks at nothing."""
        last = self._last
        if last is not None and last.halt:
            raise TemporarilyUnavailableError(last.halt.told)

    def _look_again(self, *, waits: bool = True) -> None:
        """Look, unless the last look is fresh. While the database is compared, wait for that, or all calls beside it would be 503."""
        age, comparing = self._age(), self._comparing()
        if age <= FRESH_SECONDS and not comparing:
            return
        patience: float = COMPARE_SECONDS if comparing else LEASE_SECONDS if age > LEASE_SECONDS else 0
        if self._looking.acquire(timeout=patience if waits else 0):
            try:
                # A thread that waited for another's look needs none, unless that look came too early to tell.
                if self._age() > FRESH_SECONDS or self._comparing():
                    self._look(waits=waits)
            finally:
                self._looking.release()

    def _look(self, *, waits: bool) -> None:
        began = self._clock()
        row, database_now = read_row()
        # First what was read: on a database that no process has compared, every thread stops here and now.
        self.take(row, database_now, began)
        if not waits:
            compared = history.VOUCHED.ask_aside(row, look, patience=PROBE_SECONDS)
        else:
            compared = history.VOUCHED.ask(row, patience=COMPARE_SECONDS)
        if compared:
            began = self._clock()
            self.take(*read_row(), began)

    def _comparing(self) -> bool:
        """Whether, at the last look, no process had yet compared the database with what is known outside."""
        last = self._last
        return bool(last and last.halt and last.halt.passes)

    def held(self, spare: float = 0) -> Tenure:
        """The tenure by the last look, without a new one: for a process that has a thread which looks.

        With `spare`, where it holds for so many seconds more. Raises TemporarilyUnavailableError where nobody may decide
        here: the process may not act for the installation, the home is being left, the last look was begun more than LEASE_SECONDS ago,
        or this host's clock is not the database's.
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
        return last.tenure

    def take(self, row: Home, database_now: datetime, looked_at: float) -> None:
        """Go on with a look that was made; `looked_at` is when it was *begun*, by the monotonic clock."""
        latest, passed = timezone.now(), self._clock() - looked_at
        earliest = latest - timedelta(seconds=passed)
        taken = _Look(
            Tenure(row.epoch, row.kind, frozenset(row.servers), row.began_at),
            # Nothing is decided where the settings do not lead, also before the first epoch has begun.
            leaving=row.leaving_at is not None or row.kind != configured(),
            clock_off=_clock_off(database_now, earliest, latest),
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
        return longer(self._clock() - last.began, wall() - last.at)


# This process's own.
LEASE = Lease()


def _clock_off(database_now: datetime, earliest: datetime, latest: datetime) -> ClockOff | None:
    """How far this host's clock is off, where the database read its own some time between these two by ours."""
    allowed = timedelta(seconds=CLOCK_SECONDS)
    if earliest - allowed <= database_now <= latest + allowed:
        return None
    ahead = earliest + (latest - earliest) / 2 - database_now
    return ClockOff(round(ahead.total_seconds()), database_now)


def halt_of(row: Home) -> Halt | None:
    """Why this process may not act by what a look found, None where it may."""
    if halt := installation.halt(row):  # type: ignore[arg-type]  # annotated
        return halt
    if reason := contradiction(row):
        return Halt("This process is not set up as the others are.", reason)
    return history.halt(row)


def configured() -> Home.Kind:
    """The replay cache that the settings of this process choose."""
    return Home.Kind.REDIS if settings.REDIS_URL else Home.Kind.DATABASE


def contradiction(row: Home) -> str | None:
    """How the settings of this process contradict the row, and what to do; None if they choose the same replay cache.

    The first epoch in the database, where `migrate` puts every registry, contradicts nothing: a keeper moves it to where
    the settings lead.
    """
    if row.target == configured() or (row.epoch == 1 and row.target == Home.Kind.DATABASE):
        return None
    return (
        f"the replay cache is {row.target}, but REDIS_URL is {'' if settings.REDIS_URL else 'not '}set. Correct this environment,"
        f" or move the cache: `{settings.COMMAND} verifier_home --move-to {configured()}`"
    )


def _tell_halt(before: Halt | None, halt: Halt | None) -> None:
    """Log that this process stops acting, or goes on, once each time."""
    if halt is not None and halt != before:
        if halt.passes:
            logger.info("this process answers nothing yet: %s", halt.reason)
        else:
            logger.error("this process answers nothing until an operator acts: %s", halt.reason)
    elif halt is None and before is not None and not before.passes:
        logger.warning("this process may act again")


def look() -> tuple[Home, datetime]:
    """The row, the time by the database's clock, and what is recorded of the installation, in one query.

    A missing row is created: the first epoch begins. After a start of the database this process, if it can, first compares its
    history with what is known outside.
    """
    row, database_now = read_row()
    history.VOUCHED.ask(row)
    return row, database_now


def read_row() -> tuple[Home, datetime]:
    """As `look`, without the comparison."""
    looked = Home.objects.annotate(
        database_now=database_clock(), instance=history.instance(), **installation.looked_at()
    )
    row = looked.filter(pk=Home.ONLY).first()
    if row is None:
        # Of two at once, one makes it.
        Home.objects.bulk_create([Home(began_at=timezone.now())], ignore_conflicts=True)
        row = looked.get(pk=Home.ONLY)
    return row, row.database_now


def is_unused(row: Home) -> bool:
    """Whether this is the first epoch, and no proof was spent and no rate used in it: the first epoch may begin again."""
    return (
        row.epoch == 1
        and not row.servers
        and not (SpentProof.objects.exists() or GrantLedger.objects.exists())
    )


def leave(*, epoch: int, for_kind: str, reason: str, actor: Actor, now: datetime) -> bool:
    """From now on nothing is decided, until the next epoch begins in `for_kind`. False where it is left for that already.

    `reason` is a word for the event, `now` its time.
    """
    with transaction.atomic():
        staying = Home.objects.filter(pk=Home.ONLY, epoch=epoch).exclude(leaving_for=for_kind)
        if not staying.update(leaving_at=database_clock(), leaving_for=for_kind):
            return False
        data = {"epoch": epoch, "kind": for_kind, "reason": reason}
        record(kind=kinds.HOME_LEFT, actor=actor, at=now, data=data)
    return True


def due(seen: Home) -> datetime | None:
    """From when the next epoch counts if it may begin now: the row is still as `seen`, and no lease under another cache holds.

    None also while this host's clock and the database's differ: one of them is wrong, and where it is the database's no host
    that is right decides anyway. By a beginning in the past, once that clock is right again, what was spent before would pass.

    Inside a transaction, and holds the row to its end: of several processes that would begin the next, one does.
    """
    earliest = timezone.now()
    same = Home.objects.select_for_update().filter(pk=Home.ONLY, epoch=seen.epoch, leaving_at=seen.leaving_at)
    row = same.annotate(database_now=database_clock()).first()
    if row is None or row.servers != seen.servers:
        return None
    if row.leaving_at is not None and row.leaving_at + _WAIT > row.database_now:
        return None
    latest = timezone.now()
    off = _clock_off(row.database_now, earliest, latest)
    if off is not None:
        logger.error("no epoch begins here: this host is %s s ahead of the database", off.seconds_ahead)
        return None
    # Neither is wrong by much; what an epoch is careful about only lasts longer by the later one.
    began_at: datetime = max(row.database_now, latest)
    return began_at


def begin(
    seen: Home,
    *,
    following: int,
    servers: frozenset[str],
    began_at: datetime,
    reason: str,
    actor: Actor,
    now: datetime,
) -> None:
    """Begin epoch `following` where the row as `seen` leads. Under the lock that `due` took, which gave `began_at`.

    `following` is the next number; the same where nothing was used in it, so that nothing can come back. `servers` are the
    identities of the Redis servers, none for the database; `reason` is a word for the event, `now` its time.
    """
    Home.objects.filter(pk=Home.ONLY).update(
        epoch=following,
        kind=seen.target,
        began_at=began_at,
        servers=sorted(servers),
        leaving_at=None,
        leaving_for="",
    )
    data = {"epoch": following, "kind": seen.target, "reason": reason}
    record(kind=kinds.HOME_BEGAN, actor=actor, at=now, data=data)


def database_clock() -> Func | Value:
    """The time by the database's clock, read as the statement runs. SQLite runs on this host and has no clock but ours."""
    if connection.vendor == "postgresql":
        return Func(function="clock_timestamp", output_field=DateTimeField())
    return Value(timezone.now(), output_field=DateTimeField())
