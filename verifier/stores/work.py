"""What the decisions of one transaction share: what they are judged by is read at once, what they change is written at once.

The budgets of a period follow the agent at the service provider: each grant keeps in its row what was spent under it, and
compares its ceilings with the sum. So nothing is copied when a grant ends and another one begins, and the release
before, which knows only a grant's own row, finds in it what it always found.
"""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson
from django.db import OperationalError, connection

from agentauth.protocol.decision import Operation
from agentauth.protocol.envelope import Ledger
from agentauth.protocol.errors import IdempotencyInProgressError, TemporarilyUnavailableError
from audit.identifiers import new_id
from audit.services import Draft, record_drafts
from audit.statements import Insert, Question, all_but, select, written
from registry.services.idempotency import waited_too_long
from registry.services.state import TokenState, token_states
from verifier.models import AgentOperation, GrantLedger, ProviderCall
from verifier.stores import Delivery, HeldUpError, Prepared, StoreCall, busy
from verifier.stores.redelivery import KEPT_FOR

# How long an allowed operation is remembered, a transact apart: that one as long as its grant.
OPERATION_LIFE: Final = timedelta(hours=24)
# What a grant spent that ended longer ago lies before every period that runs: a month, in whatever zone, is shorter.
_LONGEST: Final = timedelta(days=33)
_TRY: Final = "SELECT n, pg_try_advisory_xact_lock(n) FROM unnest(%s::bigint[]) n"
_WAIT: Final = "SELECT pg_advisory_xact_lock(n) FROM unnest(%s::bigint[]) n"
# A grant that was never approved was never used and has no row; one that was approved keeps its capabilities, [] once its
# person is deleted. Said so that the index `grant_given` passes by requests, of which an agent may have thousands.
_LEDGERS: Final = Question(
    "SELECT {}, g.agent_id, g.service_provider_id FROM verifier_grantledger l JOIN registry_grant g ON g.id = l.grant_id"
    " WHERE g.agent_id = ANY(%s) AND g.service_provider_id = ANY(%s) AND g.capabilities IS NOT NULL"
    " AND (g.ended_at IS NULL OR g.ended_at > %s OR g.id = ANY(%s))",
    l=all_but(GrantLedger),
)
_OPERATIONS: Final = Question(
    "SELECT {} FROM verifier_agentoperation o WHERE o.grant_id = ANY(%s) AND o.key = ANY(%s)",
    o=all_but(AgentOperation),
)
_ANSWERS: Final = Question(
    "SELECT {} FROM verifier_providercall p WHERE p.digest = ANY(%s)", p=all_but(ProviderCall)
)
_COUNT: Final = Insert(
    "verifier_grantledger",
    "ON CONFLICT (grant_id) DO UPDATE SET tat_us = excluded.tat_us, uses = held.uses + excluded.uses, spent = excluded.spent",
    grant_id="uuid", tat_us="bigint", uses="bigint", spent="jsonb",
)  # fmt: skip
_REMEMBER: Final = Insert(
    "verifier_agentoperation",
    id="uuid", grant_id="uuid", key="text", action_digest="bytea", answer="jsonb", created_at="timestamptz", expires_at="timestamptz",
)  # fmt: skip
_KEEP: Final = Insert(
    "verifier_providercall",
    "ON CONFLICT (digest) DO UPDATE SET body_sha256 = excluded.body_sha256, answer = excluded.answer,"
    " expires_at = excluded.expires_at WHERE held.expires_at <= %s",
    digest="bytea", body_sha256="bytea", answer="text", expires_at="timestamptz",
)  # fmt: skip


def counts(call: StoreCall) -> bool:
    """Whether the call may change a counter or claim a key, and so must stand in the queue."""
    return not call.dry_run and (call.action is not None or call.operation_key is not None)


def hold(calls: Sequence[Prepared], *, waits: bool) -> dict[int, HeldUpError]:
    """Take the locks of these calls until the transaction ends. Returns the places of calls whose lock another transaction holds.

    Calls of one agent at one service provider follow each other, whichever of its grants they use, and so do those of a
    service provider under one key. With `waits` it waits for the other, as long as the connection waits for locks; then it raises
    django.db errors, or IdempotencyInProgressError. SQLite has one writer, so it takes no locks.
    """
    names = [_number(b"call ", call.delivery.digest) if call.delivery else None for call in calls]
    queues = [
        _number(b"use of ", call.queue.encode()) if isinstance(call, StoreCall) and counts(call) else None
        for call in calls
    ]
    taken: set[int | None] = set()
    # Names first, and sorted, so that of two that wait neither waits for the other.
    if connection.vendor == "postgresql":
        taken = _hold(names, waits=waits, told=_in_progress()) | _hold(queues, waits=waits, told=None)
    held_up = {}
    seen: set[int] = set()
    for place, (name, queue) in enumerate(zip(names, queues, strict=True)):
        # The same call twice: the second finds what came of the first.
        if name in taken or name in seen:
            held_up[place] = HeldUpError(_in_progress())
        elif queue in taken:
            held_up[place] = HeldUpError(busy())
        elif name is not None:
            seen.add(name)
    return held_up


def _hold(numbers: Sequence[int | None], *, waits: bool, told: Exception | None) -> set[int | None]:
    """The locks that others hold. Raises `told` where one was waited for too long."""
    distinct = sorted({number for number in numbers if number is not None})
    if not distinct:
        return set()
    if not waits:
        return {number for number, mine in select(_TRY, distinct) if not mine}
    try:
        select(_WAIT, distinct)
    except OperationalError as error:
        if told is None or not waited_too_long(error):
            raise
        raise told from error
    return set()


def kept_answers(deliveries: Iterable[Delivery]) -> dict[bytes, ProviderCall]:
    """What was answered under these names, by their digests, also what is over."""
    digests = [each.digest for each in deliveries]
    return {bytes(row.digest): row for (row,) in _ANSWERS.ask(digests)} if digests else {}


# Of a grant that was never used.
_UNUSED: Final = GrantLedger()


class _Done(NamedTuple):
    """A row of `verifier.models.AgentOperation` to be, its columns in the order of `_REMEMBER`."""

    id: uuid.UUID
    grant_id: uuid.UUID
    key: str
    action_digest: bytes
    answer: Any
    created_at: datetime
    expires_at: datetime | None


class Work:
    """What these calls are judged by, as of their locks; each yes is known to the next. `write` writes all they change."""

    def __init__(self, calls: Sequence[Prepared]) -> None:
        judged = [call for call in calls if isinstance(call, StoreCall)]
        jtis = {call.claims.jti for call in calls if call.claims is not None}
        self._states = token_states(jtis) if jtis else {}
        self._rows: defaultdict[str, dict[uuid.UUID, GrantLedger]] = defaultdict(dict)
        self._operations: dict[tuple[uuid.UUID, str], AgentOperation | _Done] = {}
        if judged:
            self._read(judged)
        self._used: dict[uuid.UUID, tuple[GrantLedger, int]] = {}
        self._done: list[_Done] = []
        self._over: list[uuid.UUID] = []
        self._drafts: list[Draft] = []
        self._answers: list[tuple[Prepared, Delivery, str]] = []

    def state_of(self, call: Prepared) -> TokenState | None:
        """The token's rows; None where our signature stands under something we have no record of."""
        if call.claims is None:
            return None
        state = self._states.get(call.claims.jti)
        return state if state and state.is_of(call.claims, call.service_provider_id) else None

    def ledger(self, call: StoreCall) -> Ledger:
        """The counters of the call's grant, together with those of the agent's other grants there."""
        rows = self._rows[call.queue]
        own = rows.get(uuid.UUID(call.claims.grant_id))
        return (own or _UNUSED).counters([row for row in rows.values() if row is not own])

    def operation(self, call: StoreCall) -> Operation | None:
        """What was allowed under the agent's key of this call, if that still counts."""
        row = self._row_of_operation(call)
        if row is None or (row.expires_at is not None and row.expires_at <= call.now):
            return None
        return Operation(bytes(row.action_digest), row.answer)

    def record(self, made: Draft | None) -> None:
        if made is not None:
            self._drafts.append(made)

    def count(self, call: StoreCall, before: Ledger, after: Ledger) -> None:
        """Store what the grant has used by now."""
        if after == before:
            return
        grant_id = uuid.UUID(call.claims.grant_id)
        row = self._rows[call.queue].setdefault(grant_id, GrantLedger(grant_id=grant_id))
        row.tat_us, row.uses = after.tat_us, after.uses
        row.spent = {key: list(counted) for key, counted in after.spent.items()}
        _, more = self._used.get(grant_id, (row, 0))
        # As a difference, since the jobs add what Redis allowed and hold no queue.
        self._used[grant_id] = row, more + after.uses - before.uses

    def remember(self, call: StoreCall, answer: Mapping[str, Any]) -> None:
        """Under the agent's key of this call, if it has one."""
        if call.operation_key is None or call.dry_run:
            return
        if (over := self._row_of_operation(call)) is not None:
            self._over.append(over.id)
        forever = call.action is not None and call.action.type == "transact"
        row = _Done(
            new_id(),
            uuid.UUID(call.claims.grant_id),
            call.operation_key,
            call.action_digest,
            answer,
            call.now,
            None if forever else call.now + OPERATION_LIFE,
        )
        self._operations[row.grant_id, row.key] = row
        self._done.append(row)

    def keep(self, call: Prepared, body: Mapping[str, Any]) -> None:
        """Keep the answer to a call that has a name of the service provider's."""
        if call.delivery is not None:
            self._answers.append((call, call.delivery, json.dumps(body)))

    def write(self) -> None:
        """Raises django.db errors, and TemporarilyUnavailableError where a process without our locks was faster."""
        if self._used:
            # In the order of their ids, as the jobs hold them.
            used = sorted(self._used.values(), key=lambda each: each[0].grant_id)
            _COUNT.run([(row.grant_id, row.tat_us, more, _json(row.spent)) for row, more in used])
        if self._over:
            written("DELETE FROM verifier_agentoperation WHERE id = ANY(%s)", self._over)
        if self._done:
            _REMEMBER.run([row._replace(answer=_json(row.answer)) for row in self._done])
        record_drafts(self._drafts)
        if self._answers:
            rows = [
                (each.digest, each.body_sha256, text, call.now + KEPT_FOR)
                for call, each, text in self._answers
            ]
            try:
                _, kept = _KEEP.run(rows, min(call.now for call, *_ in self._answers))
            except OperationalError as error:
                # A process of the release before holds the row, and no lock of its name.
                if waited_too_long(error):
                    raise _in_progress() from error
                raise
            if kept != len(rows):
                raise TemporarilyUnavailableError(
                    "Another call under this Idempotency-Key was faster. Try again."
                )

    def _read(self, calls: Sequence[StoreCall]) -> None:
        agents = list({uuid.UUID(call.claims.agent_id) for call in calls})
        providers = list({call.service_provider_id for call in calls})
        grants = list({uuid.UUID(call.claims.grant_id) for call in calls})
        since = min(call.now for call in calls) - _LONGEST
        for row, agent_id, provider_id in _LEDGERS.ask(agents, providers, since, grants):
            self._rows[f"{_id(agent_id)} {_id(provider_id)}"][row.grant_id] = row
        if keys := list({call.operation_key for call in calls if call.operation_key is not None}):
            self._operations = {(row.grant_id, row.key): row for (row,) in _OPERATIONS.ask(grants, keys)}

    def _row_of_operation(self, call: StoreCall) -> AgentOperation | _Done | None:
        key = call.operation_key
        return None if key is None else self._operations.get((uuid.UUID(call.claims.grant_id), key))


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _in_progress() -> IdempotencyInProgressError:
    return IdempotencyInProgressError(
        "The first call with this Idempotency-Key is still running. Ask again in a moment."
    )


def _number(kind: bytes, name: bytes) -> int:
    """The number of an advisory lock of PostgreSQL: of two names with the same number one waits for the other, no more."""
    return int.from_bytes(hashlib.sha256(kind + name).digest()[:8], signed=True)


def _id(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))
