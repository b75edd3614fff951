"""The outbox: moves decisions from the Redis streams into the log exactly once, and records losses.

The script that writes the entries numbers them 1, 2, 3 in each shard and epoch. The cursor moves in
the transaction that writes the events, and entries are trimmed only after its commit. A crash in
between leaves entries that are in the log already; the next run finds their ids there and skips
them.
"""

import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from django.conf import settings
from django.db import DataError, IntegrityError, OperationalError, connection, transaction
from django.db.models import F
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.fault_injection import fault_point
from audit.models import Event
from audit.new_ids import new_id
from audit.services import SYSTEM, NewEvent, check_data, find_recorded, record_many
from kms.row_seals import DEMAND
from registry.models import Grant, Human
from registry.services.agent_owners import owners_of
from registry.services.idempotency import waited_too_long
from verifier.models import GrantLedger, StreamCursor
from verifier.services.replay_epochs import read_or_create_row
from verifier.stores.decision_stream_reader import Batch, is_past, read_batch
from verifier.stores.redis_keys import SHARDS, events_key
from verifier.stores.redis_py_client import sync_client
from verifier.stores.stream_entry_decoding import debits

logger = logging.getLogger(__name__)

# Most entries in one commit, of all shards together.
BATCH = 8_000
# A run ends after this time, so that other jobs get their turn.
RUN_SECONDS = 5.0

_MOVE = "UPDATE verifier_streamcursor SET number = %s WHERE id = %s"

_ADD_USES = """
UPDATE verifier_grantledger SET uses = uses + added.number
FROM unnest(%s::uuid[], %s::bigint[]) AS added (grant_id, number)
WHERE verifier_grantledger.grant_id = added.grant_id
"""

# What redis-py raises if Redis does not answer.
AWAY = (RedisError, RedisClusterException, OSError)
# What is raised if the database refuses rows.
REFUSED = (TemporarilyUnavailableError, IntegrityError, DataError)


class Streams(Protocol):
    """The Redis client that is needed here; it returns names and values as bytes."""

    def xrange(self, name: bytes, *, count: int) -> Any: ...
    def xtrim(self, name: bytes, *, minid: str, approximate: bool) -> Any: ...
    def xlen(self, name: bytes) -> Any: ...


# By epoch and shard.
_Cursors = dict[tuple[int, int], StreamCursor]


def drain_redis(*, now: datetime) -> int:
    """`drain` the Redis of REDIS_URL. Raises TemporarilyUnavailableError if it does not answer.

    Without REDIS_URL no stream can be read: decisions of past epochs that verifiers acknowledged
    are recorded as lost. If the streams come back later, they are still moved into the log.
    """
    if not settings.REDIS_URL:
        if not StreamCursor.objects.filter(told__gt=F("number")).exists():
            return 0
        return _state_forgotten(range(SHARDS), read_or_create_row()[0].epoch, now)
    try:
        with sync_client() as client:
            return drain(client, now=now)
    except AWAY as error:
        logger.exception("decisions that are waiting in Redis could not be read")
        raise TemporarilyUnavailableError from error


def count_waiting_in_redis() -> list[int] | None:
    """How many entries wait in each shard; None without Redis, or if it does not answer.

    At MAX_STREAM a shard decides nothing more.
    """
    if not settings.REDIS_URL:
        return None
    try:
        with sync_client() as client:
            return count_waiting(client)
    except AWAY:
        logger.exception("Redis could not be asked how many decisions are waiting")
        return None


def count_waiting(client: Streams) -> list[int]:
    """How many entries wait in each shard."""
    return [int(client.xlen(events_key(shard))) for shard in range(SHARDS)]


def drain(client: Streams, *, now: datetime) -> int:
    """Move waiting entries into the log, in batches of all shards, for at most RUN_SECONDS.

    Returns how many events were written. Skips a shard that another process is draining. The
    entries below stay in their stream and hold up no other shard; for any of them it raises
    TemporarilyUnavailableError at the end:

    - entries that a later release wrote,
    - entries that the database refuses,
    - entries on an unavailable node of a cluster whose other nodes go on without it
      (`cluster-require-full-coverage no`).

    Any other error of Redis or of the database connection is raised at once.
    """
    # Read the epoch before the streams: entries of earlier epochs are in them by now, or lost.
    present = read_or_create_row()[0].epoch
    # A process of release 3, which may still run during an upgrade, writes entries without a MAC.
    proved = DEMAND.holds()
    end = time.monotonic() + RUN_SECONDS
    shards, written, failed = list(range(SHARDS)), 0, False
    while shards and time.monotonic() < end:
        most = max(1, BATCH // len(shards))
        batches, away = _read_all(client, shards, most, proved=proved)
        failed = failed or away or any(each.held for each in batches)
        over = [each.shard for each in batches if is_past(each, present)]
        try:
            written += _state_forgotten(over, present, now)
        except REFUSED:
            logger.exception("decisions that Redis lost could not be recorded")
            failed = True
        done, refused = _take_over_all(client, [each for each in batches if each.read], now)
        written += done
        failed = failed or bool(refused)
        shards = [
            each.shard
            for each in batches
            if len(each.read) == most and not each.held and each.shard not in refused
        ]
    if failed:
        raise TemporarilyUnavailableError
    return written


def _read_all(
    client: Streams, shards: Sequence[int], most: int, *, proved: bool
) -> tuple[list[Batch], bool]:
    """Read up to `most` entries of each shard; also tell whether a cluster node is unavailable.

    The other shards of such a node are skipped, so that only one read waits for it.
    """
    batches, away = [], set()
    for shard in shards:
        key = events_key(shard)
        node = None
        try:
            if isinstance(client, RedisCluster):
                node = client.get_node_from_key(key.decode())  # type: ignore[no-untyped-call]  # the library's own
                if node is None or node.name in away:
                    continue
            batches.append(read_batch(shard, client.xrange(key, count=most), proved=proved))
        except AWAY:
            if node is None:
                raise
            logger.exception("the decisions waiting in shard %s could not be read", shard)
            away.add(node.name)
    return batches, bool(away)


def _take_over_all(
    client: Streams, batches: Sequence[Batch], now: datetime
) -> tuple[int, set[int]]:
    """Write all in one commit or, if the database refuses that, each shard by itself.

    Returns the number of events and the refused shards.
    """
    if not batches:
        return 0, set()
    try:
        return _take_over(client, batches, now, careful=False), set()
    except (*REFUSED, OperationalError) as error:
        _raise_unless_refused(error)
        logger.warning(
            "decisions of all shards could not be taken over together; taking over each shard by "
            "itself"
        )
    written, refused = 0, set()
    for batch in batches:
        try:
            written += _take_over(client, [batch], now, careful=True)
        except (*REFUSED, OperationalError) as error:
            _raise_unless_refused(error)
            logger.exception("decisions of shard %s could not be taken over", batch.shard)
            refused.add(batch.shard)
    return written, refused


def _raise_unless_refused(error: Exception) -> None:
    """Raise `error` if the database itself failed; a lock timeout concerns only these rows."""
    if isinstance(error, OperationalError) and not waited_too_long(error):
        raise error


def _take_over(client: Streams, batches: Sequence[Batch], now: datetime, *, careful: bool) -> int:
    """Write cursors, events and counters in one transaction, then trim the streams."""
    with transaction.atomic():
        cursors = _held_cursors(
            {(epoch, batch.shard) for batch in batches for epoch in batch.epochs}
        )
        mine = [
            each for each in batches if all((epoch, each.shard) in cursors for epoch in each.epochs)
        ]
        events = _without_erased(_with_humans(_new(mine, cursors, now, careful=careful)))
        # Before the log's head is locked: all writers wait for the head, so do not wait
        # for a grant then.
        _count_uses(events)
        written = record_many(events, now=now)
        with connection.cursor() as cursor:
            cursor.executemany(_MOVE, [(each.number, each.pk) for each in cursors.values()])
        fault_point("drain.before_commit")
    fault_point("drain.after_commit")
    for batch in mine:
        # Drop up to and including the last entry read.
        milliseconds, _, sequence = batch.last.partition("-")
        client.xtrim(
            events_key(batch.shard), minid=f"{milliseconds}-{int(sequence) + 1}", approximate=False
        )
    return written


def _state_forgotten(shards: Sequence[int], present: int, now: datetime) -> int:
    """Record acknowledged decisions of epochs before `present` as lost, as none wait any more."""
    over = StreamCursor.objects.filter(shard__in=shards, epoch__lt=present, told__gt=F("number"))
    if not over.exists():
        return 0
    with transaction.atomic():
        cursors = list(over.select_for_update(skip_locked=True))
        events = []
        for cursor in cursors:
            first = cursor.number + 1
            count = cursor.told - cursor.number
            events.append(_loss("forgotten", cursor.shard, cursor.epoch, first, count, now))
            cursor.number = cursor.told
        StreamCursor.objects.bulk_update(cursors, ["number"])
        return record_many(events, now=now)


def _held_cursors(wanted: set[tuple[int, int]]) -> _Cursors:
    """Lock the cursors of these epochs and shards until the commit; skip those already locked."""
    epochs, shards = {epoch for epoch, _ in wanted}, {shard for _, shard in wanted}
    rows = StreamCursor.objects.filter(epoch__in=epochs, shard__in=shards)
    if missing := wanted - set(rows.values_list("epoch", "shard")):
        # Several processes may create them at once. The same order, and no lock
        # held, prevents a deadlock.
        StreamCursor.objects.bulk_create(
            [StreamCursor(epoch=epoch, shard=shard) for epoch, shard in sorted(missing)],
            ignore_conflicts=True,
        )
    return {(row.epoch, row.shard): row for row in rows.select_for_update(skip_locked=True)}


def _new(
    batches: Sequence[Batch], cursors: _Cursors, now: datetime, *, careful: bool
) -> list[NewEvent]:
    """The events not yet in the log, and those of losses. Moves the cursors past all entries."""
    # An entry beyond the cursor is new, unless its id was written twice. Then the database refuses
    # the batch, and the retry with `careful` looks up every id.
    known = find_recorded(
        each.event.id
        for batch in batches
        for each in batch.read
        if each.event is not None
        and (careful or not each.number or each.number <= cursors[each.epoch, batch.shard].number)
    )
    events: list[NewEvent] = []
    for batch in batches:
        mine = {epoch: cursors[epoch, batch.shard] for epoch in batch.epochs}
        for epoch, number, event, lost in batch.read:
            cursor = mine.get(epoch)
            passed = cursor is not None and number <= cursor.number
            if cursor is not None and not passed:
                if missing := number - cursor.number - 1:
                    events.append(
                        _loss("missing", batch.shard, epoch, cursor.number + 1, missing, now)
                    )
                cursor.number = number
            if event is not None and event.id not in known:
                # Even below the cursor: a Redis replica that lagged behind assigns
                # numbers a second time.
                known.add(event.id)
                events.append(event)
            elif not passed:
                reason = lost if event is None else "repeated"
                events.append(_loss(reason, batch.shard, epoch, number, 1, now))
    return events


def _loss(reason: str, shard: int, epoch: int, first: int, count: int, now: datetime) -> NewEvent:
    """The event for decisions missing from the log. Epoch and number are 0 if they are unknown."""
    logger.error(
        "shard %s, epoch %s: %s decisions from %s are lost: %s", shard, epoch, count, first, reason
    )
    return NewEvent(
        id=str(new_id()),
        kind=kinds.DECISIONS_LOST,
        at=now,
        actor_kind=SYSTEM.kind,
        actor_id=SYSTEM.id,
        request_id=SYSTEM.request_id,
        outcome=Event.Outcome.FAILED,
        reason=reason,
        data=check_data({"epoch": epoch, "shard": shard, "first": first, "count": count}),
    )


def _with_humans(events: Sequence[NewEvent]) -> list[NewEvent]:
    """Add the human whose feed each belongs to: a refusal before the state was read lacks one."""
    agents = {
        event.agent_id for event in events if event.human_id is None and event.agent_id is not None
    }
    if not agents:
        return list(events)
    humans = {str(agent): str(human) for agent, human in owners_of(agents).items()}
    return [
        event._replace(human_id=humans[event.agent_id])
        if event.human_id is None and event.agent_id in humans
        else event
        for event in events
    ]


def _without_erased(events: Sequence[NewEvent]) -> list[NewEvent]:
    """Drop what opens a commitment from the events of humans who were deleted meanwhile."""
    humans = {
        event.human_id
        for event in events
        if event.hidden is not None and event.human_id is not None
    }
    deleted = Human.objects.filter(pk__in=humans, status=Human.Status.DELETED).values_list(
        "pk", flat=True
    )
    gone = {str(pk) for pk in deleted} if humans else set()
    return [event._replace(hidden=None) if event.human_id in gone else event for event in events]


def _count_uses(events: Sequence[NewEvent]) -> None:
    """Add the uses of these events to the grants' ledgers, in the caller's transaction."""
    counted = Counter(event.grant_id for event in events if event.grant_id and debits(event))
    if not counted:
        return
    uses = {uuid.UUID(grant_id): number for grant_id, number in counted.items()}
    ledgers = GrantLedger.objects.filter(pk__in=uses)
    if new := uses.keys() - set(ledgers.values_list("pk", flat=True)):
        # First uses. An unknown grant gets no row, so that it does not block the others.
        grants = Grant.objects.filter(pk__in=new).order_by("pk").values_list("pk", flat=True)
        GrantLedger.objects.bulk_create(
            [GrantLedger(grant_id=pk) for pk in grants], ignore_conflicts=True
        )
    # Lock the rows in the order of their ids, as decisions that share a commit do: no deadlock.
    list(ledgers.select_for_update().order_by("pk").values_list("pk", flat=True))
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_ADD_USES, [list(uses), list(uses.values())])
    else:
        for grant_id, number in uses.items():
            GrantLedger.objects.filter(pk=grant_id).update(uses=F("uses") + number)
