"""The replay cache of spent proofs and rates, and its epochs.

Settings choose the cache (`configured_cache`): Redis if REDIS_URL is set, else the database. An
epoch is the time in one cache without a gap. The next epoch may not know the proofs spent in this
one, so a new epoch must keep three promises (docs/adr/0011-one-replay-cache-in-epochs.md):

1. A process decides under a lease (`replay_cache_lease`) that ends LEASE_SECONDS after its last
   read of the row *began*. A move to another cache waits until every lease has expired. A new epoch
   in the same Redis does not wait: only a server that the others have lost could answer a process
   under an old lease.
2. No proof passes in two epochs. For CAREFUL_SECONDS after an epoch began, a proof must carry a
   nonce of that epoch, so it was made after the start; afterwards older proofs have expired. The
   worst case: the old epoch accepts its last proof LEASE_SECONDS + MARGIN_SECONDS after the new one
   began; the `iat` is ahead by the window and 5 s of clock error; the proof is valid for one more
   window.
3. No rate restarts with a full burst: an unknown rate counts as if its burst was used when the
   epoch began.

None of this applies to the first epoch. `replay_epoch_keeper.py` begins epochs.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection, transaction
from django.db.models import DateTimeField, Func, Value
from django.utils import timezone

from agentauth.protocol.dpop import SPEND_SECONDS, WINDOW_SECONDS
from agentauth.protocol.usage_counters import microseconds
from audit import kinds
from audit.services import Actor, record
from registry.models import SpentProof
from registry.services import settings_agreement
from verifier.models import GrantLedger, Home
from verifier.services import rollback_hold
from verifier.services.clock_readings import CLOCK_SKEW_SECONDS

logger = logging.getLogger(__name__)

LEASE_SECONDS = 5
# Added (s) to the last lease, for calls that are running when it ends.
MARGIN_SECONDS = 1
# A proof's `iat` is at most a window ahead and valid for a window; add clock error and old leases.
CAREFUL_SECONDS = SPEND_SECONDS + WINDOW_SECONDS + LEASE_SECONDS + MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class ReplayEpoch:
    """The epoch that a lease covers. `kind` is a `Home.Kind`, `servers` are Redis run ids."""

    number: int
    kind: str
    servers: frozenset[str]
    # By the database's clock or that of the host that began it, whichever was later.
    began_at: datetime

    def requires_nonce(self, now: datetime) -> bool:
        """Whether proofs need a nonce at `now`: one spent before the epoch may still be valid."""
        return self.number > 1 and now <= self.began_at + timedelta(seconds=CAREFUL_SECONDS)

    def floor_us(self, follows_at: datetime | None) -> int | None:
        """When (µs since 1970) the burst of an unknown rate counts as used.

        This is the start of the epoch or, if later, the approval of a grant that follows another.
        None for a grant that follows none in the first epoch, which forgot nothing.
        """
        began_us = microseconds(self.began_at) if self.number > 1 else None
        return began_us if follows_at is None else max(began_us or 0, microseconds(follows_at))

    def nonce_server(self, service_provider_id: str) -> str:
        """Its nonce server (`registry.services.nonces`): each epoch has its own nonces."""
        return service_provider_id if self.number == 1 else f"{service_provider_id}/{self.number}"


@dataclass(frozen=True, slots=True)
class ClockOff:
    """How far this host's clock is ahead of the database's (negative: behind), and its time."""

    seconds_ahead: int
    database_now: datetime

    @property
    def text(self) -> str:
        """For operators: what is wrong, where, and what to do."""
        by, way = abs(self.seconds_ahead), "ahead of" if self.seconds_ahead > 0 else "behind"
        return (
            f"the clock of this host is {by} s {way} the database's: repair the time service of "
            "the host that is wrong; until then this host answers 503"
        )


def host_clock_error(
    database_now: datetime, earliest: datetime, latest: datetime
) -> ClockOff | None:
    """How far this host is off, given that `database_now` is between `earliest` and `latest`."""
    allowed = timedelta(seconds=CLOCK_SKEW_SECONDS)
    if earliest - allowed <= database_now <= latest + allowed:
        return None
    ahead = earliest + (latest - earliest) / 2 - database_now
    return ClockOff(round(ahead.total_seconds()), database_now)


def configured_cache() -> Home.Kind:
    """The replay cache that the settings of this process choose."""
    return Home.Kind.REDIS if settings.REDIS_URL else Home.Kind.DATABASE


def contradiction(row: Home) -> str | None:
    """How the settings of this process contradict the row, and what to do; None if they agree.

    `migrate` begins the first epoch in the database. It contradicts nothing: a keeper moves it to
    the cache that the settings name.
    """
    if row.target == configured_cache() or (row.epoch == 1 and row.target == Home.Kind.DATABASE):
        return None
    return (
        f"the replay cache is {row.target}, but REDIS_URL is "
        f"{'' if settings.REDIS_URL else 'not '}set. Correct this environment,"
        f" or move the cache: `{settings.COMMAND} replay_cache --move-to {configured_cache()}`"
    )


def read_or_create_row() -> tuple[Home, datetime]:
    """The row, annotated with the installation's record, and the database's time, in one query.

    Creates a missing row, which begins the first epoch. After a start of the database, it first
    compares the history with what is known outside, if this process can.
    """
    row, database_now = read_row()
    rollback_hold.HISTORY_COMPARISON.ask(row)
    return row, database_now


def read_row() -> tuple[Home, datetime]:
    """As `read_or_create_row`, but never compares."""
    looked = Home.objects.annotate(
        database_now=database_clock(),
        instance=rollback_hold.instance(),
        **settings_agreement.looked_at(),
    )
    row = looked.filter(pk=Home.ONLY).first()
    if row is None:
        # Several processes may try at once; one of them creates it.
        Home.objects.bulk_create([Home(began_at=timezone.now())], ignore_conflicts=True)
        row = looked.get(pk=Home.ONLY)
    return row, row.database_now


def is_unused(row: Home) -> bool:
    """Whether this is the first epoch and nothing was used in it, so that it may begin again."""
    return (
        row.epoch == 1
        and not row.servers
        and not (SpentProof.objects.exists() or GrantLedger.objects.exists())
    )


def end_epoch(*, epoch: int, for_kind: str, reason: str, actor: Actor, now: datetime) -> bool:
    """End the epoch: nothing is decided until the next begins in `for_kind`. False if it does.

    `reason` is a word for the event, `now` its time.
    """
    with transaction.atomic():
        staying = Home.objects.filter(pk=Home.ONLY, epoch=epoch).exclude(leaving_for=for_kind)
        if not staying.update(leaving_at=database_clock(), leaving_for=for_kind):
            return False
        data = {"epoch": epoch, "kind": for_kind, "reason": reason}
        record(kind=kinds.HOME_LEFT, actor=actor, at=now, data=data)
    return True


def next_epoch_start(seen: Home) -> datetime | None:
    """The start time of the next epoch; None if it may not begin now.

    It may begin if the row is still as `seen`. The caller has waited until no lease under another
    cache can hold. It may not begin while this host's clock and the database's differ: a start time
    in the past would let spent proofs pass again once the wrong clock is corrected, and hosts with
    a right clock do not decide meanwhile.

    Call it inside a transaction. It locks the row, so that only one process begins the next epoch.
    """
    earliest = timezone.now()
    same = Home.objects.select_for_update().filter(
        pk=Home.ONLY, epoch=seen.epoch, leaving_at=seen.leaving_at
    )
    row = same.annotate(database_now=database_clock()).first()
    if row is None or row.servers != seen.servers:
        return None
    latest = timezone.now()
    off = host_clock_error(row.database_now, earliest, latest)
    if off is not None:
        logger.error("not starting an epoch: %s", off.text)
        return None
    # Both are about right. The later one is safe: it only prolongs the careful time.
    began_at: datetime = max(row.database_now, latest)
    return began_at


def start_epoch(
    seen: Home,
    *,
    following: int,
    servers: frozenset[str],
    began_at: datetime,
    reason: str,
    actor: Actor,
) -> None:
    """Begin epoch `following` in `seen.target`.

    Call it under the lock of `next_epoch_start`, which returned `began_at`.

    `following` is the next number, or the same one if the epoch is unused. `servers` are the
    identities of the Redis servers, empty for the database; `reason` is a word for the event. The
    event's time is `began_at`: rates count as used up from then on.
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
    record(kind=kinds.HOME_BEGAN, actor=actor, at=began_at, data=data)


def database_clock() -> Func | Value:
    """The database's time as the statement runs. SQLite runs on this host and uses our clock."""
    if connection.vendor == "postgresql":
        return Func(function="clock_timestamp", output_field=DateTimeField())
    return Value(timezone.now(), output_field=DateTimeField())
