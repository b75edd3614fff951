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
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from django.conf import settings
from django.db import DataError, IntegrityError, connection, transaction
from django.db.models import F
from redis.exceptions import RedisClusterException, RedisError

from agentauth.protocol.encoding import MAX_INTEGER
from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.faults import fault_point
from audit.identifiers import new_id
from audit.models import Event
from audit.services import SYSTEM, Entry, record_many, recorded
from registry.models import Agent, Grant
from verifier.models import GrantLedger, StreamCursor
from verifier.services.home import look
from verifier.stores.drained import UnreadableError, debits, event_of
from verifier.stores.scripts import SHARDS, events_key
from verifier.stores.sync_connection import sync_client

logger = logging.getLogger(__name__)

BATCH = 1_000
# After so long a run ends, so that what it took over is numbered before more is.
RUN_SECONDS = 5.0

_ADD_USES = """UPDATE verifier_grantledger SET uses = uses + added.number
 FROM unnest(%s::uuid[], %s::bigint[]) AS added (grant_id, number) WHERE verifier_grantledger.grant_id = added.grant_id"""

# What redis-py raises where Redis does not answer.
AWAY = (RedisError, RedisClusterException, OSError)


class Streams(Protocol):
    """What is asked of a client of Redis; names and values come back as bytes."""

    def xrange(self, name: bytes, *, count: int) -> Any: ...
    def xtrim(self, name: bytes, *, minid: str, approximate: bool) -> Any: ...
    def xlen(self, name: bytes) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One entry of a stream. `event` is None where it cannot be read; without a number, `epoch` and `number` are 0."""

    entry_id: str
    epoch: int
    number: int
    event: Entry | None


def drain_redis(*, now: datetime) -> int:
    """`drain` what REDIS_URL names; without it, nothing waits. Raises TemporarilyUnavailableError where Redis does not answer."""
    if not settings.REDIS_URL:
        return 0
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
    """Take over what waits, a batch of each shard in turn, until nothing does or RUN_SECONDS are over.

    Returns how many events were written. Another one at work on a shard is left alone there. A batch that the database
    refuses stays where it is and holds up no other shard; then raises TemporarilyUnavailableError at the end. Whatever
    Redis or the connection to the database raises goes to the caller.
    """
    # Asked before the streams: what was written in an earlier epoch is in them by now, or nowhere.
    present = look()[0].epoch
    end = time.monotonic() + RUN_SECONDS
    shards, written, failed = list(range(SHARDS)), 0, False
    while shards and time.monotonic() < end:
        full = []
        for shard in shards:
            entries = client.xrange(events_key(shard), count=BATCH)
            try:
                if not entries or _read(shard, *entries[0]).epoch == present:
                    written += _state_forgotten(shard, present, now)
                if not entries:
                    continue
                written += _take_over(client, shard, entries, now)
            except (TemporarilyUnavailableError, IntegrityError, DataError):
                logger.exception("decisions of shard %s could not be taken over", shard)
                failed = True
            else:
                full += [shard] if len(entries) == BATCH else []
        shards = full
    if failed:
        raise TemporarilyUnavailableError
    return written


def _take_over(client: Streams, shard: int, entries: Sequence[Any], now: datetime) -> int:
    """One batch of one shard: cursor, events and counters in one transaction, and the stream after it."""
    read = [_read(shard, entry_id, fields) for entry_id, fields in entries]
    with transaction.atomic():
        cursors = _held_cursors(shard, {each.epoch for each in read if each.number})
        if cursors is None:
            return 0
        events = _with_humans(_new(shard, read, cursors, now))
        written = record_many(events)
        _count_uses(events)
        StreamCursor.objects.bulk_update(cursors.values(), ["number", "entry_id"])
        fault_point("drain.before_commit")
    fault_point("drain.after_commit")
    # Up to the last one read, and that one too.
    milliseconds, _, sequence = read[-1].entry_id.partition("-")
    client.xtrim(events_key(shard), minid=f"{milliseconds}-{int(sequence) + 1}", approximate=False)
    return written


def _state_forgotten(shard: int, present: int, now: datetime) -> int:
    """Where nothing waits of epochs before `present`: what verifiers were told of then and never came is lost."""
    over = StreamCursor.objects.filter(shard=shard, epoch__lt=present, told__gt=F("number"))
    if not over.exists():
        return 0
    with transaction.atomic():
        cursors = list(over.select_for_update(skip_locked=True))
        events = []
        for cursor in cursors:
            first, count = cursor.number + 1, cursor.told - cursor.number
            events.append(_loss("forgotten", shard, cursor.epoch, first, count, now))
            cursor.number = cursor.told
        StreamCursor.objects.bulk_update(cursors, ["number"])
        return record_many(events)


def _read(shard: int, entry_id: bytes, fields: dict[bytes, bytes]) -> _Waiting:
    place, epoch, number, event = entry_id.decode(), 0, 0, None
    try:
        epoch, number = _count(fields[b"e"]), _count(fields[b"n"])
        event = event_of(fields[b"b"], fields[b"o"])
    except (UnreadableError, KeyError, ValueError):
        logger.exception("entry %s of shard %s cannot be read", place, shard)
    return _Waiting(place, epoch if number else 0, number, event)


def _count(text: bytes) -> int:
    value = int(text)
    if not 0 < value <= MAX_INTEGER:
        raise ValueError("not a number that is counted to")
    return value


def _held_cursors(shard: int, epochs: set[int]) -> dict[int, StreamCursor] | None:
    """The cursors, locked until the commit; None if somebody else holds one of them."""
    rows = StreamCursor.objects.select_for_update(skip_locked=True).filter(shard=shard, epoch__in=epochs)
    held = {row.epoch: row for row in rows}
    if len(held) < len(epochs):
        # Not there yet, or held. Of two at once, one makes it.
        StreamCursor.objects.bulk_create(
            [StreamCursor(epoch=epoch, shard=shard) for epoch in epochs - held.keys()], ignore_conflicts=True
        )
        held = {row.epoch: row for row in rows.all()}
    return held if len(held) == len(epochs) else None


def _new(
    shard: int, read: Sequence[_Waiting], cursors: dict[int, StreamCursor], now: datetime
) -> list[Entry]:
    """The events that are not in the log yet, and those that state a loss. The cursors are moved past all of it."""
    known = recorded(each.event for each in read if each.event is not None)
    events: list[Entry] = []
    for each in read:
        cursor = cursors.get(each.epoch)
        passed = cursor is not None and each.number <= cursor.number
        if cursor is not None and not passed:
            if missing := each.number - cursor.number - 1:
                events.append(_loss("missing", shard, each.epoch, cursor.number + 1, missing, now))
            cursor.number, cursor.entry_id = each.number, each.entry_id
        if each.event is not None and each.event.id not in known:
            # Also where its number was passed: a copy of Redis that lags behind gives numbers a second time.
            known.add(each.event.id)
            events.append(each.event)
        elif not passed:
            reason = "unreadable" if each.event is None else "repeated"
            events.append(_loss(reason, shard, each.epoch, each.number, 1, now))
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
        data={"epoch": epoch, "shard": shard, "first": first, "count": count},
    )


def _with_humans(events: Sequence[Entry]) -> list[Entry]:
    """Each with the human whose feed it belongs to: a refusal that came before the state was read names only the agent."""
    agents = {event.agent_id for event in events if event.human_id is None and event.agent_id is not None}
    if not agents:
        return list(events)
    found = Agent.objects.filter(pk__in=agents).values_list("pk", "human_id")
    humans = {str(agent): str(human) for agent, human in found if human is not None}
    return [
        replace(event, human_id=humans[event.agent_id])
        if event.human_id is None and event.agent_id in humans
        else event
        for event in events
    ]


def _count_uses(events: Sequence[Entry]) -> None:
    """What was allowed, in the ledgers of the grants: as much as the events say, in the same transaction."""
    counted = Counter(event.grant_id for event in events if event.grant_id and debits(event))
    uses = {uuid.UUID(grant_id): number for grant_id, number in counted.items()}
    ledgers = GrantLedger.objects.filter(pk__in=uses)
    # In the order of their ids; a decision holds one of them and waits for no other.
    held = set(ledgers.select_for_update().order_by("pk").values_list("pk", flat=True))
    if new := uses.keys() - held:
        # Used for the first time. What is no grant of ours gets no row, and holds up nothing.
        grants = Grant.objects.filter(pk__in=new).order_by("pk").values_list("pk", flat=True)
        GrantLedger.objects.bulk_create([GrantLedger(grant_id=pk) for pk in grants], ignore_conflicts=True)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_ADD_USES, [list(uses), list(uses.values())])
    else:
        for grant_id, number in uses.items():
            GrantLedger.objects.filter(pk=grant_id).update(uses=F("uses") + number)
