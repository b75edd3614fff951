"""Write events in bulk. Each event is checked when it is made (`NewEvent`), not when written."""

import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, Self

import orjson
from django.db import DatabaseError, connection, transaction

from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import ChainError
from agentauth.protocol.log_hashes import (
    SALT_BYTES,
    canonical_entry_hash,
    canonical_field_commitment,
)
from audit import kinds
from audit.db.bulk_copy import NULL, binary, copy_in, escape, line
from audit.db.partition_creation import ensure_partitions
from audit.db.prebuilt_sql import Insert, Statement, execute, run_together
from audit.log.event_encoding import COLUMN_TYPES, COLUMNS, data_text, event_body
from audit.log.sequencer import Numberable, number_at_once
from audit.models import Event, Opening, QueueEntry
from audit.new_ids import new_id, new_id_text

logger = logging.getLogger(__name__)

KINDS = frozenset(value for name, value in vars(kinds).items() if name.isupper())
_OUTCOMES = frozenset(Event.Outcome.values)
_MAX_ACTOR_KIND = 32
_MAX_TEXT = 64
_DATA = COLUMNS.index("data")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_COPY_EVENTS = """
COPY audit_event (
  id, kind, at, actor_kind, actor_id, agent_id, human_id, service_provider_id, grant_id, token_jti,
  outcome, reason, request_id, data, salt
) FROM STDIN
"""
# For a single event. No RETURNING, since the verifier's role may not read what it wrote.
_INSERT_ONE = (
    f"event AS (INSERT INTO audit_event ({', '.join(COLUMNS)}) VALUES "  # noqa: S608 — our own names
    f"({', '.join(['%s'] * len(COLUMNS))}))"
    " INSERT INTO audit_queueentry (event_id) SELECT %s"
)
# A function, since the verifier's role may not insert into the openings table.
_ADD_OPENING = "agentauth_add_opening(%s, %s, %s, %s, %s)"
_COPY_OPENINGS = "COPY audit_opening (id, event_id, member, salt, value) FROM STDIN"
_COPY_QUEUE = "COPY audit_queueentry (event_id) FROM STDIN"
# The id bounds let PostgreSQL skip the months (partitions) that hold none of them.
_FIND = (
    "SELECT id::text FROM audit_event WHERE id = ANY(%s::uuid[]) AND id BETWEEN %s::uuid AND "
    "%s::uuid"
)


class Data(NamedTuple):
    """An event's data and its canonical JSON, from `check_data`. Immutable, so it may be shared."""

    value: Mapping[str, Any]
    text: bytes


def check_data(value: Mapping[str, Any]) -> Data:
    """Raises EncodingError if the value cannot be hashed, stored, or read back from the archive."""
    return Data(value, data_text(value))


class OpeningValue(NamedTuple):
    """The opening of a personal member of an event's data; `text` is its RFC 8785 value."""

    member: str
    salt: bytes
    text: bytes


class CommitmentTemplate:
    """Makes data with one personal member many times, each with a new salt and commitment."""

    # A placeholder as long as a commitment (32 bytes in base64url).
    _PLACE = "-" * 43

    def __init__(self, plain: Mapping[str, Any], member: str, value: Any) -> None:
        """Raises EncodingError as `check_data`."""
        self._plain, self._member = plain, member
        self._value = canonical_json(value)
        self._text = data_text({**plain, member: {"commitment": self._PLACE}})

    def seal(self) -> tuple[Data, OpeningValue]:
        """The data with a fresh commitment, and its opening."""
        salt = os.urandom(SALT_BYTES)
        made = canonical_field_commitment(self._value, salt)
        own = {**self._plain, self._member: {"commitment": made}}
        text = self._text.replace(self._PLACE.encode(), made.encode())
        return Data(own, text), OpeningValue(self._member, salt, self._value)


class _Values(NamedTuple):
    """The columns of `audit.models.Event` without its salt, and at most one opening."""

    id: str
    kind: str
    at: datetime
    actor_kind: str
    actor_id: str
    request_id: str
    outcome: str
    data: Data
    reason: str | None
    agent_id: str | None
    human_id: str | None
    service_provider_id: str | None
    grant_id: str | None
    token_jti: str | None
    hidden: OpeningValue | None


class NewEvent(_Values):
    """An event to write. Ids are lower-case text, `at` is aware. A tuple: 1000s are made a second.

    Checks here all that the database or the sequencer would refuse, since a bulk write cannot tell
    which event is bad. Raises ValueError and TypeError.
    """

    __slots__ = ()

    def __new__(
        cls,
        *,
        id: str,  # noqa: A002 - the name of the column
        kind: str,
        at: datetime,
        actor_kind: str,
        actor_id: str,
        request_id: str,
        outcome: str,
        data: Data,
        reason: str | None = None,
        agent_id: str | None = None,
        human_id: str | None = None,
        service_provider_id: str | None = None,
        grant_id: str | None = None,
        token_jti: str | None = None,
        hidden: OpeningValue | None = None,
    ) -> Self:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of event: {kind}; add it to audit/kinds.py")
        if at.tzinfo is None:
            raise ValueError("an event's time must have a time zone")
        if outcome not in _OUTCOMES:
            raise ValueError(f"unknown outcome of an event: {outcome}")
        if not _ID.fullmatch(id):
            raise ValueError("an event's id must be a UUID")
        for value in (agent_id, human_id, service_provider_id, grant_id):
            if value is not None and not _is_id(value):
                raise ValueError("an id in an event must be a UUID")
        own = "" if reason is None else reason
        jti = "" if token_jti is None else token_jti
        # The database refuses NUL and lone surrogates; isprintable also excludes the tab and
        # newline of COPY.
        if not "".join((actor_kind, actor_id, request_id, own, jti)).isprintable():
            raise ValueError("a text of an event must be printable")
        if (
            len(actor_kind) > _MAX_ACTOR_KIND
            or len(actor_id) > _MAX_TEXT
            or len(request_id) > _MAX_TEXT
            or len(own) > _MAX_TEXT
            or len(jti) > _MAX_TEXT
        ):
            raise ValueError("a text of an event is too long")
        return super().__new__(
            cls,
            id,
            kind,
            at,
            actor_kind,
            actor_id,
            request_id,
            outcome,
            data,
            reason,
            agent_id,
            human_id,
            service_provider_id,
            grant_id,
            token_jti,
            hidden,
        )


# Cached: the same agents, humans, providers and grants recur.
@lru_cache(maxsize=4096)
def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def find_recorded(ids: Iterable[str]) -> set[str]:
    """The event ids among these that are in the log already."""
    asked = list(ids)
    if not asked:
        return set()
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_FIND, [asked, min(asked), max(asked)])
            return {found for (found,) in cursor.fetchall()}
    return {str(pk) for pk in Event.objects.filter(pk__in=asked).values_list("pk", flat=True)}


def insert_events(entries: Sequence[NewEvent], *, now: datetime) -> None:
    """Insert the events in id order and number them; queue them if that is not possible now.

    Salts are made here. Runs in the caller's transaction. Raises django.db errors.
    """
    made = list(_prepare_events(sorted(entries, key=attrgetter("id"))))
    ensure_partitions([each.entry.id for each in made])
    if connection.vendor == "postgresql":
        _copy(made)
    else:
        _insert(made)
    _write_openings([(entry.id, entry.hidden) for entry, *_ in made if entry.hidden])
    try:
        with transaction.atomic():
            numbered = number_at_once([_numberable(each) for each in made], now=now)
    except (DatabaseError, ChainError):
        logger.exception("events could not be numbered at once and are waiting")
        numbered = False
    if not numbered:
        _queue(made)


def insert_event(
    event: Event, data: bytes, hidden: Sequence[OpeningValue] = (), act: Statement | None = None
) -> None:
    """Run `act`, an INSERT, and insert the event (`data` is canonical), openings and queue entry.

    Atomic. Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        with transaction.atomic():
            if act:
                execute(act.sql, *act.values)
            event.save(force_insert=True)
            _write_openings([(event.id, each) for each in hidden])
            QueueEntry.objects.create(event=event)
        return
    columns = [getattr(event, name) for name in COLUMNS]
    columns[_DATA] = data.decode()
    before, values = (f"act AS ({act.sql}), ", act.values) if act else ("", ())
    calls = ", ".join(f"{_ADD_OPENING} added_{number}" for number in range(len(hidden)))
    adding = f" FROM {calls}" if hidden else ""
    openings = [(new_id(), event.id, each.member, each.salt, each.text.decode()) for each in hidden]
    execute(
        f"WITH {before}{_INSERT_ONE}{adding}",
        *values,
        *columns,
        event.id,
        *chain.from_iterable(openings),
    )


class EventDraft(Protocol):
    """An `audit.services.Draft`."""

    @property
    def event(self) -> Event: ...
    @property
    def text(self) -> bytes: ...
    @property
    def openings(self) -> Sequence[OpeningValue]: ...


_EVENTS = Insert("audit_event", "", **COLUMN_TYPES)
_QUEUED = Insert("audit_queueentry", "", event_id="uuid")
_ADD_OPENINGS = (
    "SELECT agentauth_add_opening(o.id, o.event_id, o.member, o.salt, o.value)"
    " FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::bytea[], %s::jsonb[])"
    " AS o(id, event_id, member, salt, value)"
)


def insert_events_together(drafts: Sequence[EventDraft], acts: Sequence[Statement] = ()) -> None:
    """Run `acts` and insert several events as `insert_event` does, in a few pipelined statements.

    Runs in the caller's transaction. Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        run_together(acts)
        for each in drafts:
            insert_event(each.event, each.text, each.openings)
        return
    statements = [*acts, _EVENTS.of([_row(each) for each in drafts])]
    openings = [
        (new_id(), each.event.id, hidden.member, hidden.salt, hidden.text.decode())
        for each in drafts
        for hidden in each.openings
    ]
    if openings:
        columns = [list(column) for column in zip(*openings, strict=True)]
        statements.append(Statement(_ADD_OPENINGS, columns))
    run_together([*statements, _QUEUED.of([(each.event.id,) for each in drafts])])


def _row(drafted: EventDraft) -> list[Any]:
    columns = [getattr(drafted.event, name) for name in COLUMNS]
    columns[_DATA] = drafted.text.decode()
    return columns


def _write_openings(openings: Sequence[tuple[uuid.UUID | str, OpeningValue]]) -> None:
    if connection.vendor == "postgresql":
        if openings:
            copy_in(
                _COPY_OPENINGS,
                (
                    line(
                        new_id_text(),
                        str(event_id),
                        each.member,
                        binary(each.salt),
                        escape(each.text.decode()),
                    )
                    for event_id, each in openings
                ),
            )
        return
    Opening.objects.bulk_create(
        Opening(
            event_id=event_id, member=each.member, salt=each.salt, value=orjson.loads(each.text)
        )
        for event_id, each in openings
    )


class _PreparedEvent(NamedTuple):
    """An event ready to write: `at` as in its JSON; `hashed` is its log entry."""

    entry: NewEvent
    at: str
    salt: bytes
    hashed: bytes


def _prepare_events(entries: Sequence[NewEvent]) -> Iterator[_PreparedEvent]:
    salts = os.urandom(SALT_BYTES * len(entries))
    for start, entry in zip(range(0, len(salts), SALT_BYTES), entries, strict=True):
        salt = salts[start : start + SALT_BYTES]
        body = event_body(entry)
        # Equals `canonical_json`: names are ASCII, texts are printable, and the data is canonical
        # already.
        body["data"] = orjson.Fragment(entry.data.text)
        text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        yield _PreparedEvent(entry, body["at"], salt, canonical_entry_hash(text, salt))


def _numberable(made: _PreparedEvent) -> Numberable:
    event = made.entry
    return Numberable(event.id, made.hashed, event.agent_id, event.human_id, event.kind)


def _copy(made: Sequence[_PreparedEvent]) -> None:
    copy_in(
        _COPY_EVENTS,
        (
            line(
                entry.id,
                entry.kind,
                at,
                escape(entry.actor_kind),
                escape(entry.actor_id),
                entry.agent_id or NULL,
                entry.human_id or NULL,
                entry.service_provider_id or NULL,
                entry.grant_id or NULL,
                NULL if entry.token_jti is None else escape(entry.token_jti),
                entry.outcome,
                NULL if entry.reason is None else escape(entry.reason),
                escape(entry.request_id),
                escape(entry.data.text.decode()),
                binary(salt),
            )
            for entry, at, salt, _ in made
        ),
    )


def _insert(made: Sequence[_PreparedEvent]) -> None:
    Event.objects.bulk_create(
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
            data=entry.data.value,
            salt=salt,
        )
        for entry, _, salt, _ in made
    )


def _queue(made: Sequence[_PreparedEvent]) -> None:
    if connection.vendor == "postgresql":
        copy_in(_COPY_QUEUE, (line(each.entry.id) for each in made))
    else:
        QueueEntry.objects.bulk_create(QueueEntry(event_id=each.entry.id) for each in made)
