"""Record events. Every app calls this; it imports no other app.

`audit.log.sequencer` numbers the events later.
"""

import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, Required, TypedDict, Unpack

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.utils.module_loading import import_string

from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.log_hashes import SALT_BYTES, canonical_field_commitment
from audit import kinds
from audit.db.partition_creation import ensure_partitions
from audit.db.prebuilt_sql import Statement, fill_model
from audit.log.event_encoding import data_text
from audit.log.event_inserts import (
    KINDS,
    CommitmentTemplate,
    Data,
    NewEvent,
    OpeningValue,
    check_data,
    find_recorded,
    insert_event,
    insert_events,
    insert_events_together,
)
from audit.log.load_shedding import check_backlog, check_backlog_of_many
from audit.log.refusal_counts import count_refusal, summarise_refusals
from audit.log.sequencer import sequence_until_empty
from audit.models import Event
from audit.new_ids import new_id

__all__ = [
    "SYSTEM",
    "Actor",
    "CommitmentTemplate",
    "Data",
    "Draft",
    "NewEvent",
    "OpeningValue",
    "check_data",
    "draft",
    "find_recorded",
    "record",
    "record_drafts",
    "record_many",
    "record_refusal",
    "seal_audit",
]

logger = logging.getLogger(__name__)

_Id = uuid.UUID | str | None


@per_call(frozen=True, slots=True)
class Actor:
    """Who acted. `kind` is human, agent, service_provider, system or anonymous; `id` may be ""."""

    kind: str
    id: str
    request_id: str = ""


SYSTEM = Actor("system", "")


class Columns(TypedDict, total=False):
    """The arguments of `draft`."""

    kind: Required[str]
    actor: Required[Actor]
    at: Required[datetime]
    outcome: str
    reason: str | None
    agent_id: _Id
    human_id: _Id
    service_provider_id: _Id
    grant_id: _Id
    token_jti: str | None
    data: Mapping[str, Any] | None
    personal: Mapping[str, Any] | None


class Draft(NamedTuple):
    """A checked, unwritten event with its canonical data (`text`) and its openings."""

    event: Event
    text: bytes
    openings: Sequence[OpeningValue]


def draft(
    *,
    kind: str,
    actor: Actor,
    at: datetime,
    outcome: str = "success",
    reason: str | None = None,
    agent_id: _Id = None,
    human_id: _Id = None,
    service_provider_id: _Id = None,
    grant_id: _Id = None,
    token_jti: str | None = None,
    data: Mapping[str, Any] | None = None,
    personal: Mapping[str, Any] | None = None,
) -> Draft:
    """Check one event and prepare it for `record_drafts`.

    `data` is JSON without floats, secrets or personal values.
    `personal` holds names, addresses and free text: in the event each member is a salted
    commitment, and its value is kept in an opening, which erasure may delete (docs/protocol.md
    section 9). `at` is aware, to the microsecond.

    Raises ValueError for an unknown kind, a naive time, or a member that is both plain and
    personal; EncodingError if a value has no canonical JSON, or the data is too long for the
    archive.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of event: {kind}; add it to audit/kinds.py")
    if at.tzinfo is None:
        raise ValueError("an event's time must have a time zone")
    plain, hidden = dict(data or {}), dict(personal or {})
    if plain.keys() & hidden.keys():
        raise ValueError("a member of an event's data must be either plain or personal")
    openings = [
        OpeningValue(member, os.urandom(SALT_BYTES), canonical_json(hidden[member]))
        for member in hidden
    ]
    committed = {
        each.member: {"commitment": canonical_field_commitment(each.text, each.salt)}
        for each in openings
    }
    columns = {
        "id": new_id(),
        "kind": kind,
        "at": at,
        "actor_kind": actor.kind,
        "actor_id": actor.id,
        "agent_id": _uuid(agent_id),
        "human_id": _uuid(human_id),
        "service_provider_id": _uuid(service_provider_id),
        "grant_id": _uuid(grant_id),
        "token_jti": token_jti,
        "outcome": outcome,
        "reason": reason,
        "request_id": actor.request_id,
        "data": plain | committed,
        "salt": os.urandom(SALT_BYTES),
    }
    event = fill_model(Event, columns, adding=True)
    # Refuse data that cannot be hashed or read back: such an event would stop the sequencer and so
    # the log.
    return Draft(event, data_text(event.data), openings)


def record(*, act: Statement | None = None, **columns: Unpack[Columns]) -> Event:
    """Write one event in the caller's transaction, so that the act and its record commit together.

    `columns` as for `draft`. `act` is an INSERT that runs in the same statement as the event's, so
    the two need no transaction.

    Raises ValueError outside a transaction (without `act`), and as `draft`;
    TemporarilyUnavailableError if the database refuses the event or too many events wait for their
    number: an act that cannot be recorded must not happen.
    """
    if act is None and not connection.in_atomic_block:
        raise ValueError("record an event inside the transaction of the act that it records")
    made = draft(**columns)
    event = made.event
    with _or_unavailable():
        check_backlog(kind=event.kind, actor_kind=event.actor_kind)
        ensure_partitions([event.id])
        insert_event(event, made.text, made.openings, act)
    _observe_later([event])
    return event


def record_drafts(drafts: Sequence[Draft], acts: Sequence[Statement] = ()) -> None:
    """Run `acts` and write the events that record them, in order, in the caller's transaction.

    Raises as `record`, and django.db errors if a statement fails, such as an act's lock timeout.
    """
    if not connection.in_atomic_block:
        raise ValueError("record events inside the transaction of the acts that they record")
    if not drafts:
        if acts:
            raise ValueError("an act needs an event that records it")
        return
    events = [each.event for each in drafts]
    with _or_unavailable():
        for event in events:
            check_backlog(kind=event.kind, actor_kind=event.actor_kind)
        ensure_partitions([event.id for event in events])
    insert_events_together(drafts, acts)
    _observe_later(events)


def _observe_later(events: Sequence[Event]) -> None:
    # Notify the observer only after the commit; its errors are logged and change nothing
    # (`robust`).
    observe = import_string(settings.AUDIT_OBSERVER)

    def told() -> None:
        for event in events:
            observe(event.kind, 1, event)

    transaction.on_commit(told, robust=True)


def record_many(entries: Sequence[NewEvent], *, now: datetime) -> int:
    """Write events made elsewhere, in the caller's transaction, and number them; returns how many.

    If they cannot be numbered at once, they wait in the queue. `NewEvent` has made the checks of
    `record`. The ids are the caller's: if one exists already, all fail. Raises ValueError outside a
    transaction, TemporarilyUnavailableError if the database refuses them or too many events wait
    already.
    """
    if not connection.in_atomic_block:
        raise ValueError("record events inside the transaction of the acts that they record")
    if not entries:
        return 0
    with _or_unavailable():
        check_backlog_of_many()
        insert_events(entries, now=now)
    observe = import_string(settings.AUDIT_OBSERVER)
    numbers = Counter(entry.kind for entry in entries)

    def count() -> None:
        for kind, number in numbers.items():
            observe(kind, number, None)

    transaction.on_commit(count, robust=True)
    return len(entries)


def record_refusal(
    *,
    kind: str,
    actor: Actor,
    at: datetime,
    error: AgentAuthError,
    route: str,
    stands_for: int | None = None,
    agent_id: _Id = None,
    human_id: _Id = None,
    service_provider_id: _Id = None,
    grant_id: _Id = None,
    token_jti: str | None = None,
) -> Event | None:
    """Record one refusal in its own transaction, after the refused work was rolled back.

    `route` is the URL pattern, never the path a caller chose: it keys the flood counter. Refusals
    of anonymous callers beyond RECORDED_PER_MINUTE, per route and error, are only counted, and None
    is returned. The same holds for batched refusals of any caller: `stands_for` is how many this
    one represents, itself included.

    Raises TemporarilyUnavailableError if the database refuses it; the caller then answers with
    that.
    """
    counted = actor.kind == "anonymous" or stands_for is not None
    with _or_unavailable(), transaction.atomic():
        if counted and not count_refusal(
            route=route, error=error.code, at=at, count=stands_for or 1
        ):
            return None
        return record(
            kind=kind,
            actor=actor,
            at=at,
            outcome=Event.Outcome.DENIED,
            reason=error.reason or error.code,
            agent_id=agent_id,
            human_id=human_id,
            service_provider_id=service_provider_id,
            grant_id=grant_id,
            token_jti=token_jti,
            data={"error": error.code, "route": route}
            | ({"count": stands_for} if (stands_for or 1) > 1 else {}),
        )


def seal_audit(*, now: datetime, at_once: bool = False) -> int:
    """Record sums of suppressed refusals, then number every waiting event; returns how many.

    The current minute has its sum once it is over, or `at_once` if no refusal can follow.
    """
    before = now if at_once else now.replace(second=0, microsecond=0)
    with transaction.atomic():
        for flood in summarise_refusals(before=before):
            record(
                kind=kinds.REFUSALS_SUPPRESSED,
                actor=SYSTEM,
                at=now,
                outcome=Event.Outcome.DENIED,
                reason=flood.error,
                data={
                    "error": flood.error,
                    "route": flood.route,
                    "minute": flood.minute,
                    "count": flood.count,
                },
            )
    return sequence_until_empty(now=now)


@contextmanager
def _or_unavailable() -> Iterator[None]:
    """Turn any database error, also a trigger's or constraint's, into 503, and log the details."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        logger.exception("an event could not be written")
        raise TemporarilyUnavailableError from error


def _uuid(value: _Id) -> uuid.UUID | None:
    return uuid.UUID(value) if isinstance(value, str) else value
