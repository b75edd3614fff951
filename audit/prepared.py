"""Events made elsewhere and written here many at a time: each is checked where it is made, not where it is written."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection

from agentauth.protocol.chain import SALT_BYTES
from agentauth.protocol.encoding import canonical_json
from audit import kinds
from audit.copying import NULL, binary, copy_in, escaped, line
from audit.models import Event, QueueEntry

KINDS = frozenset(value for name, value in vars(kinds).items() if name.isupper())
_OUTCOMES = frozenset(Event.Outcome.values)
_MAX_ACTOR_KIND = 32
_MAX_TEXT = 64
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_COPY_EVENTS = """COPY audit_event (id, kind, at, actor_kind, actor_id, agent_id, human_id, service_provider_id, grant_id,
 token_jti, outcome, reason, request_id, data, salt) FROM STDIN"""
_COPY_QUEUE = "COPY audit_queueentry (event_id) FROM STDIN"
_FIND = "SELECT id::text FROM audit_event WHERE id = ANY(%s::uuid[])"


@dataclass(frozen=True, slots=True)
class Entry:
    """An event to be: the columns of `audit.models.Event` but its salt. Ids are lower-case text, `at` is aware.

    Whatever would keep the database from taking it, or the sequencer from hashing it, is said here, where it can be
    told from its neighbours. Raises ValueError and EncodingError.
    """

    id: str
    kind: str
    at: datetime
    actor_kind: str
    actor_id: str
    request_id: str
    outcome: str
    data: Mapping[str, Any]
    reason: str | None = None
    agent_id: str | None = None
    human_id: str | None = None
    service_provider_id: str | None = None
    grant_id: str | None = None
    token_jti: str | None = None
    # `data` as canonical JSON.
    data_text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of event: {self.kind}; add it to audit/kinds.py")
        if self.at.tzinfo is None:
            raise ValueError("an event's time carries its zone")
        if self.outcome not in _OUTCOMES:
            raise ValueError(f"unknown outcome of an event: {self.outcome}")
        if not _ID.fullmatch(self.id):
            raise ValueError("an event's id is a UUID")
        for value in (self.agent_id, self.human_id, self.service_provider_id, self.grant_id):
            if value is not None and not _ID.fullmatch(value):
                raise ValueError("an id in an event is a UUID")
        for text in (
            self.actor_kind,
            self.actor_id,
            self.request_id,
            self.reason or "",
            self.token_jti or "",
        ):
            # Printable is more than a database asks: no NUL and no half character, but no new line either.
            if len(text) > _MAX_TEXT or not text.isprintable():
                raise ValueError("a text of an event is too long or not printable")
        if len(self.actor_kind) > _MAX_ACTOR_KIND:
            raise ValueError("the kind of an actor is too long")
        object.__setattr__(self, "data_text", canonical_json(self.data).decode())


def recorded(entries: Iterable[Entry]) -> set[str]:
    """The ids of those that are in the log already."""
    ids = [entry.id for entry in entries]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_FIND, [ids])
            return {found for (found,) in cursor.fetchall()}
    return {str(pk) for pk in Event.objects.filter(pk__in=ids).values_list("pk", flat=True)}


def write(entries: Sequence[Entry]) -> None:
    """Insert the events and their queue entries, salts made here. Raises django.db errors; the transaction is the caller's."""
    salts = os.urandom(SALT_BYTES * len(entries))
    if connection.vendor == "postgresql":
        _copy(entries, salts)
    else:
        _insert(entries, salts)


def _copy(entries: Sequence[Entry], salts: bytes) -> None:
    copy_in(
        _COPY_EVENTS,
        (
            line(
                entry.id,
                entry.kind,
                entry.at.isoformat(),
                escaped(entry.actor_kind),
                escaped(entry.actor_id),
                entry.agent_id or NULL,
                entry.human_id or NULL,
                entry.service_provider_id or NULL,
                entry.grant_id or NULL,
                NULL if entry.token_jti is None else escaped(entry.token_jti),
                entry.outcome,
                NULL if entry.reason is None else escaped(entry.reason),
                escaped(entry.request_id),
                escaped(entry.data_text),
                binary(salts[start : start + SALT_BYTES]),
            )
            for start, entry in zip(range(0, len(salts), SALT_BYTES), entries, strict=True)
        ),
    )
    copy_in(_COPY_QUEUE, (line(entry.id) for entry in entries))


def _insert(entries: Sequence[Entry], salts: bytes) -> None:
    events = [
        Event(
            id=entry.id,
            kind=entry.kind,
            at=entry.at,
            actor_kind=entry.actor_kind,
            actor_id=entry.actor_id,
            agent_id=entry.agent_id,
            human_id=entry.human_id,
            service_provider_id=entry.service_provider_id,
            grant_id=entry.grant_id,
            token_jti=entry.token_jti,
            outcome=entry.outcome,
            reason=entry.reason,
            request_id=entry.request_id,
            data=entry.data,
            salt=salts[start : start + SALT_BYTES],
        )
        for start, entry in zip(range(0, len(salts), SALT_BYTES), entries, strict=True)
    ]
    Event.objects.bulk_create(events)
    QueueEntry.objects.bulk_create(QueueEntry(event_id=entry.id) for entry in entries)
