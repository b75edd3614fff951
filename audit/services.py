"""Recording what happens. Every app calls this; it calls nobody. Numbering is in `audit.sequencer`."""

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

from agentauth.protocol.chain import SALT_BYTES, canonical_field_commitment
from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from agentauth.protocol.values import per_call
from audit import kinds
from audit.backlog import check_backlog, check_backlog_of_many
from audit.entries import data_text
from audit.identifiers import new_id
from audit.models import Event
from audit.partitions import make_room
from audit.prepared import (
    KINDS,
    Data,
    Entry,
    Hidden,
    Sealer,
    checked,
    recorded,
    write,
    write_one,
    write_together,
)
from audit.refusals import count_refusal, summarise_refusals
from audit.sequencer import sequence_until_empty
from audit.statements import Statement, filled

__all__ = [
    "SYSTEM",
    "Actor",
    "Data",
    "Draft",
    "Entry",
    "Hidden",
    "Sealer",
    "checked",
    "draft",
    "record",
    "record_drafts",
    "record_many",
    "record_refusal",
    "recorded",
    "seal_audit",
]

logger = logging.getLogger(__name__)

_Id = uuid.UUID | str | None


@per_call(frozen=True, slots=True)
class Actor:
    """Who did it, as text: `kind` is human, agent, service_provider, system or anonymous; `id` may be empty."""

    kind: str
    id: str
    request_id: str = ""


SYSTEM = Actor("system", "")


class Columns(TypedDict, total=False):
    """What `draft` takes."""

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
    """An event that is checked and not yet written, with its canonical data and what its commitments hide."""

    event: Event
    text: bytes
    openings: Sequence[Hidden]


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
    """One event, for `record_drafts`.

    `data` is JSON without floats of doubtful size, secrets or personal values; `personal` holds the names,
    addresses and free text: each member stands in `data` as a salted commitment and is kept beside it in an
    opening, which erasure may delete (docs/protocol.md section 9). `at` is aware, to the microsecond.

    Raises ValueError for an unknown kind, for a naive time, or where a member is both plain and personal;
    EncodingError where a value has no canonical JSON, or the archive would not take the data for its length.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of event: {kind}; add it to audit/kinds.py")
    if at.tzinfo is None:
        raise ValueError("an event's time carries its zone")
    plain, hidden = dict(data or {}), dict(personal or {})
    if plain.keys() & hidden.keys():
        raise ValueError("a member of an event's data is either plain or personal")
    openings = [Hidden(member, os.urandom(SALT_BYTES), canonical_json(hidden[member])) for member in hidden]
    committed = {
        each.member: {"commitment": canonical_field_commitment(each.text, each.salt)} for each in openings
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
    event = filled(Event, columns, adding=True)
    # Refuse here what could never be hashed or read back: an event the sequencer chokes on would stop the log.
    return Draft(event, data_text(event.data), openings)


def record(*, act: Statement | None = None, **columns: Unpack[Columns]) -> Event:
    """Write one event in the caller's transaction, so that what happened and its record live or die together.

    `columns` as for `draft`. With `act`, an INSERT, it is done here, by the statement that writes the event too: they need no transaction
    around them.

    Raises ValueError outside a transaction, and as `draft`; TemporarilyUnavailableError where the database does not take
    it, or too many events wait for their number: what cannot be put on record is not done.
    """
    if act is None and not connection.in_atomic_block:
        raise ValueError("record an event inside the transaction of what it tells")
    made = draft(**columns)
    event = made.event
    with _or_unavailable():
        check_backlog(kind=event.kind, actor_kind=event.actor_kind)
        make_room([event.id])
        write_one(event, made.text, made.openings, act)
    _observe_later([event])
    return event


def record_drafts(drafts: Sequence[Draft], acts: Sequence[Statement] = ()) -> None:
    """Do `acts`, which the events tell, and write the events, in their order, in the caller's transaction.

    Raises as `record`, and django.db errors where a statement fails: an act may have waited for somebody's lock.
    """
    if not connection.in_atomic_block:
        raise ValueError("record events inside the transaction of what they tell")
    if not drafts:
        if acts:
            raise ValueError("an act without its event")
        return
    events = [each.event for each in drafts]
    with _or_unavailable():
        for event in events:
            check_backlog(kind=event.kind, actor_kind=event.actor_kind)
        make_room([event.id for event in events])
    write_together(drafts, acts)
    _observe_later(events)


def _observe_later(events: Sequence[Event]) -> None:
    # Once it is true, and without a say in it.
    observe = import_string(settings.AUDIT_OBSERVER)

    def told() -> None:
        for event in events:
            observe(event.kind, 1, event)

    transaction.on_commit(told, robust=True)


def record_many(entries: Sequence[Entry], *, now: datetime) -> int:
    """Write events that were made elsewhere, in the caller's transaction, and number them; returns how many.

    Where another one numbers at this moment, or it fails, they wait in the queue as others do. What `record` asks of an
    event, `Entry` has asked already. The ids are the caller's: one that is there already fails them all. Raises ValueError outside a transaction, TemporarilyUnavailableError where the database does not take them, or too many wait already.
    """
    if not connection.in_atomic_block:
        raise ValueError("record events inside the transaction of what they tell")
    if not entries:
        return 0
    with _or_unavailable():
        check_backlog_of_many()
        write(entries, now=now)
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
    """Record one refusal in a transaction of its own, after what was refused has been rolled back.

    `route` is the pattern of the URL, never the path a caller chose: it keys the flood counter. An anonymous
    caller's refusals beyond RECORDED_PER_MINUTE, per route and error, are only counted: then None comes back. So are, whoever
    calls, those the edge puts together: `stands_for` is then how many this one stands for, itself among them.

    Raises TemporarilyUnavailableError where the database does not take it: that is then the answer.
    """
    counted = actor.kind == "anonymous" or stands_for is not None
    with _or_unavailable(), transaction.atomic():
        if counted and not count_refusal(route=route, error=error.code, at=at, count=stands_for or 1):
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


def seal_audit(*, now: datetime) -> int:
    """Sum up what floods suppressed, then number every waiting event. Returns how many were numbered."""
    with transaction.atomic():
        for flood in summarise_refusals(now=now):
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
    """Whatever the database raises is 503 to the caller, a trigger's or constraint's no as well; the log says more."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        logger.exception("an event could not be written")
        raise TemporarilyUnavailableError from error


def _uuid(value: _Id) -> uuid.UUID | None:
    return uuid.UUID(value) if isinstance(value, str) else value
