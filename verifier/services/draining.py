"""Taking the decisions that wait in Redis over into the log: each exactly once, whoever dies where, and each loss stated.

What it relies on: entries of one shard and epoch are numbered 1, 2, 3 by the script that writes them; the cursor moves in
the transaction that writes the events; an entry leaves the stream only after that commit. A crash in between leaves
entries that are in the log already: their ids are found there, and they are let go.
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
from audit.faults import fault_point
from audit.identifiers import new_id
from audit.models import Event
from audit.services import SYSTEM, Entry, checked, record_many, recorded
from kms.seals import DEMAND
from registry.models import Agent, Grant, Human
from registry.services.idempotency import waited_too_long
from verifier.models import GrantLedger, StreamCursor
from verifier.services.home import look
from verifier.stores.drained import debits
from verifier.stores.scripts import SHARDS, events_key
from verifier.stores.sync_connection import sync_client
from verifier.stores.waiting import Batch, is_past, read_batch

logger = logging.getLogger(__name__)

# So many at most in one commit, of all shards together.
BATCH = 8_000
# After so long a run ends, so that other work has its turn.
RUN_SECONDS = 5.0

_MOVE = "UPDATE verifier_streamcursor SET number = %s WHERE id = %s"

_ADD_USES = """UPDATE verifier_grantledger SET uses = uses + added.number
 FROM unnest(%s::uuid[], %s::bigint[]) AS added (grant_id, number) WHERE verifier_grantledger.grant_id = added.grant_id"""

# What redis-py raises where Redis does not answer.
AWAY = (RedisError, RedisClusterException, OSError)
# What the database answers to rows it does not take.
REFUSED = (TemporarilyUnavailableError, IntegrityError, DataError)


class Streams(Protocol):
    """What is asked of a client of Redis; names and values come back as bytes."""

    def xrange(self, name: bytes, *, count: int) -> Any: ...
    def xtrim(self, name: bytes, *, minid: str, approximate: bool) -> Any: ...
    def xlen(self, name: bytes) -> Any: ...


# By epoch and shard.
_Cursors = dict[tuple[int, int], StreamCursor]


def drain_redis(*, now: datetime) -> int:
    """`drain` what REDIS_URL names. Raises TemporarilyUnavailableError where Redis does not answer.

    Without it nobody looks into any stream: what verifiers were told of there in an epoch that is over is stated as lost. Where
    the streams come back after all, it is taken over all the same.
    """
    if not settings.REDIS_URL:
        if not StreamCursor.objects.filter(told__gt=F("number")).exists():
            return 0
        return _state_forgotten(range(SHARDS), look()[0].epoch, now)
    try:
        with sync_client() as client:
            return drain(client, now=now)
    except AWAY as error:
        logger.exception("decisions that wait in Redis could not be read")
        raise TemporarilyUnavailableError from error


def waiting_in_redis() -> list[int] | None:
    """How many entries wait in each shard; at MAX_STREAM nothing more is decided there. None: without Redis, or it is away."""
    if not settings.REDIS_URL:
        return None
    try:
        with sync_client() as client:
            return waiting(client)
    except AWAY:
        logger.exception("Redis could not be asked how many decisions wait")
        return None


def waiting(client: Streams) -> list[int]:
    """How many entries wait in each shard."""
    return [int(client.xlen(events_key(shard))) for shard in range(SHARDS)]


def drain(client: Streams, *, now: datetime) -> int:
    """Take over what waits, a batch from all shards together, until nothing does or RUN_SECONDS are over.

    Returns how many events were written. Another one at work on a shard is left alone there. What a later release wrote stays where
    it is and holds up its own shard alone; then raises TemporarilyUnavailableError at the end. What the database
    refuses stays where it is and holds up no other shard, and nor does a node of a cluster that is away (where the others go on
    without it, `cluster-require-full-coverage no`); then raises
    TemporarilyUnavailableError at the end. Whatever one server or the connection to the database raises goes to the caller.
    """
    # Asked before the streams: what was written in an earlier epoch is in them by now, or nowhere.
    present = look()[0].epoch
    # While a process of release 3 may run, entries come without a MAC.
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
            logger.exception("what was forgotten could not be stated")
            failed = True
        done, refused = _take_over_all(client, [each for each in batches if each.read], now)
        written, failed = written + done, failed or bool(refused)
        shards = [
            each.shard
            for each in batches
            if len(each.read) == most and not each.held and each.shard not in refused
        ]
    if failed:
        raise TemporarilyUnavailableError
    return written


def _read_all(client: Streams, shards: Sequence[int], most: int, *, proved: bool) -> tuple[list[Batch], bool]:
    """What waits, `most` of each shard, and whether a node of a cluster is away; of that one no other shard is asked for."""
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
            logger.exception("what waits in shard %s could not be read", shard)
            away.add(node.name)
    return batches, bool(away)


def _take_over_all(client: Streams, batches: Sequence[Batch], now: datetime) -> tuple[int, set[int]]:
    """All in one commit; where the database does not take that, each shard by itself. How many, and the shards refused."""
    if not batches:
        return 0, set()
    try:
        return _take_over(client, batches, now, careful=False), set()
    except (*REFUSED, OperationalError) as error:
        _raise_unless_refused(error)
        logger.warning("decisions of all shards could not be taken over together: each by itself")
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
    """A row that somebody holds for long is a refusal too, of what needs it; else the database itself is in trouble."""
    if isinstance(error, OperationalError) and not waited_too_long(error):
        raise error


def _take_over(client: Streams, batches: Sequence[Batch], now: datetime, *, careful: bool) -> int:
    """Cursors, events and counters of these shards in one transaction, and the streams after it."""
    with transaction.atomic():
        cursors = _held_cursors({(epoch, batch.shard) for batch in batches for epoch in batch.epochs})
        mine = [each for each in batches if all((epoch, each.shard) in cursors for epoch in each.epochs)]
        events = _without_erased(_with_humans(_new(mine, cursors, now, careful=careful)))
        # Before the log's head is held: nobody waits for a grant while everybody waits for the head.
        _count_uses(events)
        written = record_many(events, now=now)
        with connection.cursor() as cursor:
            cursor.executemany(_MOVE, [(each.number, each.pk) for each in cursors.values()])
        fault_point("drain.before_commit")
    fault_point("drain.after_commit")
    for batch in mine:
        # Up to the last one read, and that one too.
        milliseconds, _, sequence = batch.last.partition("-")
        client.xtrim(events_key(batch.shard), minid=f"{milliseconds}-{int(sequence) + 1}", approximate=False)
    return written


def _state_forgotten(shards: Sequence[int], present: int, now: datetime) -> int:
    """Where nothing waits of epochs before `present`: what verifiers were told of then and never came is lost."""
    over = StreamCursor.objects.filter(shard__in=shards, epoch__lt=present, told__gt=F("number"))
    if not over.exists():
        return 0
    with transaction.atomic():
        cursors = list(over.select_for_update(skip_locked=True))
        events = []
        for cursor in cursors:
            first, count = cursor.number + 1, cursor.told - cursor.number
            events.append(_loss("forgotten", cursor.shard, cursor.epoch, first, count, now))
            cursor.number = cursor.told
        StreamCursor.objects.bulk_update(cursors, ["number"])
        return record_many(events, now=now)


def _held_cursors(wanted: set[tuple[int, int]]) -> _Cursors:
    """The cursors of these epochs and shards, locked until the commit; without those that somebody else holds."""
    epochs, shards = {epoch for epoch, _ in wanted}, {shard for _, shard in wanted}
    rows = StreamCursor.objects.filter(epoch__in=epochs, shard__in=shards)
    if missing := wanted - set(rows.values_list("epoch", "shard")):
        # Of two at once, one makes it; in one order and while none is held, so that nobody waits in a circle.
        StreamCursor.objects.bulk_create(
            [StreamCursor(epoch=epoch, shard=shard) for epoch, shard in sorted(missing)],
            ignore_conflicts=True,
        )
    return {(row.epoch, row.shard): row for row in rows.select_for_update(skip_locked=True)}


def _new(batches: Sequence[Batch], cursors: _Cursors, now: datetime, *, careful: bool) -> list[Entry]:
    """The events that are not in the log yet, and those that state a loss. The cursors are moved past all of it."""
    # What has a number that was not passed is new, unless somebody wrote its id twice. That the database says, by
    # refusing it all; then everything is looked up.
    known = recorded(
        each.event.id
        for batch in batches
        for each in batch.read
        if each.event is not None
        and (careful or not each.number or each.number <= cursors[each.epoch, batch.shard].number)
    )
    events: list[Entry] = []
    for batch in batches:
        mine = {epoch: cursors[epoch, batch.shard] for epoch in batch.epochs}
        for epoch, number, event, lost in batch.read:
            cursor = mine.get(epoch)
            passed = cursor is not None and number <= cursor.number
            if cursor is not None and not passed:
                if missing := number - cursor.number - 1:
                    events.append(_loss("missing", batch.shard, epoch, cursor.number + 1, missing, now))
                cursor.number = number
            if event is not None and event.id not in known:
                # Also where its number was passed: a copy of Redis that lags behind gives numbers a second time.
                known.add(event.id)
                events.append(event)
            elif not passed:
                reason = lost if event is None else "repeated"
                events.append(_loss(reason, batch.shard, epoch, number, 1, now))
    return events


def _loss(reason: str, shard: int, epoch: int, first: int, count: int, now: datetime) -> Entry:
    """The event of decisions that were made and are not in the log. Epoch and number are 0 where they cannot be read."""
    logger.error("shard %s, epoch %s: %s decisions from %s are lost: %s", shard, epoch, count, first, reason)
    return Entry(
        id=str(new_id()),
        kind=kinds.DECISIONS_LOST,
        at=now,
        actor_kind=SYSTEM.kind,
        actor_id=SYSTEM.id,
        request_id=SYSTEM.request_id,
        outcome=Event.Outcome.FAILED,
        reason=reason,
        data=checked({"epoch": epoch, "shard": shard, "first": first, "count": count}),
    )


def _with_humans(events: Sequence[Entry]) -> list[Entry]:
    """Each with the human whose feed it belongs to: a refusal that came before the state was read names only the agent."""
    agents = {event.agent_id for event in events if event.human_id is None and event.agent_id is not None}
    if not agents:
        return list(events)
    found = Agent.objects.filter(pk__in=agents).values_list("pk", "human_id")
    humans = {str(agent): str(human) for agent, human in found if human is not None}
    return [
        event._replace(human_id=humans[event.agent_id])
        if event.human_id is None and event.agent_id in humans
        else event
        for event in events
    ]


def _without_erased(events: Sequence[Entry]) -> list[Entry]:
    """Each as it is, but of people who were deleted meanwhile nothing that opens a commitment."""
    humans = {event.human_id for event in events if event.hidden is not None and event.human_id is not None}
    deleted = Human.objects.filter(pk__in=humans, status=Human.Status.DELETED).values_list("pk", flat=True)
    gone = {str(pk) for pk in deleted} if humans else set()
    return [event._replace(hidden=None) if event.human_id in gone else event for event in events]


def _count_uses(events: Sequence[Entry]) -> None:
    """What was allowed, in the ledgers of the grants: as much as the events say, in the same transaction."""
    counted = Counter(event.grant_id for event in events if event.grant_id and debits(event))
    if not counted:
        return
    uses = {uuid.UUID(grant_id): number for grant_id, number in counted.items()}
    ledgers = GrantLedger.objects.filter(pk__in=uses)
    if new := uses.keys() - set(ledgers.values_list("pk", flat=True)):
        # Used for the first time. What is no grant of ours gets no row, and holds up nothing.
        grants = Grant.objects.filter(pk__in=new).order_by("pk").values_list("pk", flat=True)
        GrantLedger.objects.bulk_create([GrantLedger(grant_id=pk) for pk in grants], ignore_conflicts=True)
    # All of them there, and held in the order of their ids, as decisions that share a commit hold theirs.
    list(ledgers.select_for_update().order_by("pk").values_list("pk", flat=True))
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_ADD_USES, [list(uses), list(uses.values())])
    else:
        for grant_id, number in uses.items():
            GrantLedger.objects.filter(pk=grant_id).update(uses=F("uses") + number)
