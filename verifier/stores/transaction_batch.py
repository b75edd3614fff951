"""The reads and writes that the decisions of one transaction share: one each, before and after.

Budgets of a period follow the agent at the service provider: each grant stores its own spending in
its row, and its limits are compared with the sum. So nothing is copied when one grant follows
another, and the previous release, which reads a grant's own row only, still finds what it expects.
"""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson
from django.db import OperationalError, connection

from agentauth.protocol.behavioural_envelope import Ledger
from agentauth.protocol.decision_rules import Operation
from agentauth.protocol.errors import IdempotencyInProgressError, TemporarilyUnavailableError
from audit.db.prebuilt_sql import Insert, SelectQuery, Statement, all_but, run_together, select
from audit.new_ids import new_id
from audit.services import Draft, record_drafts
from registry.services.idempotency import waited_too_long
from registry.services.token_state import TokenState, ask_states, read_states
from verifier.models import AgentOperation, GrantLedger, ProviderCall
from verifier.stores import HeldUpError, Prepared, ProviderKey, StoreCall, busy
from verifier.stores.stored_answers import KEPT_FOR

# How long an allowed operation is remembered. A transact is remembered as long as its grant.
OPERATION_LIFE: Final = timedelta(hours=24)
# Longer than the longest budget period, a month in any time zone: a grant that ended earlier spent
# nothing in a current period.
_LONGEST: Final = timedelta(days=33)
_TRY: Final = "SELECT n FROM unnest(%s::bigint[]) n WHERE NOT pg_try_advisory_xact_lock(n)"
_WAIT: Final = "SELECT pg_advisory_xact_lock(n) FROM unnest(%s::bigint[]) n"
# `capabilities IS NOT NULL` lets it use the index `grant_given`, which skips requests; an agent may
# have thousands. No row is missed: a grant that was never approved has no ledger row, and an
# approved one keeps its capabilities ([] once its person is deleted).
_LEDGERS: Final = SelectQuery(
    "SELECT {}, g.agent_id, g.service_provider_id FROM verifier_grantledger l JOIN "
    "registry_grant g ON g.id = l.grant_id"
    " WHERE g.agent_id = ANY(%s) AND g.service_provider_id = ANY(%s) AND g.capabilities IS NOT NULL"
    " AND (g.ended_at IS NULL OR g.ended_at > %s OR g.id = ANY(%s))",
    l=all_but(GrantLedger),
)
# One index lookup per pair, even if the planner first plans it for an empty table.
_OPERATIONS: Final = SelectQuery(
    "SELECT {} FROM unnest(%s::uuid[], %s::text[]) asked (grant_id, key) CROSS JOIN LATERAL "
    "(SELECT * FROM verifier_agentoperation"
    " WHERE grant_id = asked.grant_id AND key = asked.key LIMIT 1) o",
    o=all_but(AgentOperation),
)
_OPERATIONS_IN_SQLITE: Final = SelectQuery(
    "SELECT {} FROM verifier_agentoperation o WHERE o.grant_id = ANY(%s) AND o.key = ANY(%s)",
    o=all_but(AgentOperation),
)
_ANSWERS: Final = SelectQuery(
    "SELECT {} FROM verifier_providercall p WHERE p.digest = ANY(%s)", p=all_but(ProviderCall)
)
_COUNT: Final = Insert(
    "verifier_grantledger",
    "ON CONFLICT (grant_id) DO UPDATE SET tat_us = excluded.tat_us,"
    " uses = held.uses + excluded.uses, spent = excluded.spent",
    grant_id="uuid", tat_us="bigint", uses="bigint", spent="jsonb",
)  # fmt: skip
_REMEMBER: Final = Insert(
    "verifier_agentoperation",
    id="uuid", grant_id="uuid", key="text", action_digest="bytea", answer="jsonb",
    created_at="timestamptz", expires_at="timestamptz",
)  # fmt: skip
_KEEP: Final = Insert(
    "verifier_providercall",
    "ON CONFLICT (digest) DO UPDATE SET body_sha256 = excluded.body_sha256,"
    " answer = excluded.answer, expires_at = excluded.expires_at WHERE held.expires_at <= %s",
    digest="bytea", body_sha256="bytea", answer="text", expires_at="timestamptz",
)  # fmt: skip


def counts(call: StoreCall) -> bool:
    """Whether the call may change a counter or claim a key, so that it needs its queue's lock."""
    return not call.dry_run and (call.action is not None or call.operation_key is not None)


# The ledger of a grant that was never used.
_UNUSED: Final = GrantLedger()


class _Done(NamedTuple):
    """A new row of `verifier.models.AgentOperation`; columns in the order of `_REMEMBER`."""

    id: uuid.UUID
    grant_id: uuid.UUID
    key: str
    action_digest: bytes
    answer: Any
    created_at: datetime
    expires_at: datetime | None


_Rows = Sequence[tuple[Any, ...]]
# A statement, and the function that takes its rows.
_Read = tuple[Statement, Callable[[_Rows], None]]


class _Locks:
    """Advisory locks of the calls' names (Idempotency-Key) and of the queues of their counters."""

    def __init__(self, calls: Sequence[Prepared]) -> None:
        self._names = [
            _number(b"call ", call.provider_key.digest) if call.provider_key else None
            for call in calls
        ]
        self._queues = [
            _number(b"use of ", call.queue.encode())
            if isinstance(call, StoreCall) and counts(call)
            else None
            for call in calls
        ]
        # Those that other transactions hold.
        self._taken: set[int] = set()
        self._there_are = connection.vendor == "postgresql"

    def wait(self) -> None:
        """Take all locks. Raises django.db errors, and IdempotencyInProgressError."""
        # Names first, and sorted, so that two transactions cannot deadlock.
        try:
            self._wait_for(self._names)
        except OperationalError as error:
            if waited_too_long(error):
                raise _in_progress() from error
            raise
        self._wait_for(self._queues)

    def _wait_for(self, numbers: Sequence[int | None]) -> None:
        if (distinct := _distinct(numbers)) and self._there_are:
            select(_WAIT, distinct)

    def tries(self) -> list[_Read]:
        """Take the locks that are free."""
        distinct = _distinct([*self._names, *self._queues])
        return [(Statement(_TRY, [distinct]), self._take)] if distinct and self._there_are else []

    def _take(self, rows: _Rows) -> None:
        self._taken = {number for (number,) in rows}

    def held_up(self) -> dict[int, HeldUpError]:
        """The places of calls whose lock another transaction, or an earlier call here, holds."""
        held_up = {}
        seen: set[int] = set()
        for place, (name, queue) in enumerate(zip(self._names, self._queues, strict=True)):
            # The same call twice in one group: the second must find the first's committed answer.
            if name in self._taken or name in seen:
                held_up[place] = HeldUpError(_in_progress())
            elif queue in self._taken:
                held_up[place] = HeldUpError(busy())
            elif name is not None:
                seen.add(name)
        return held_up


class DecisionBatch:
    """The state that decides these calls, read under their locks; `write` writes all changes.

    Each call sees what the calls before it changed. It holds the calls' locks until the transaction
    ends, except those of calls in `held_up`. Calls of one agent at one service provider are
    serialised, across its grants, and so are calls of one service provider under one key. With
    `waits` it waits for locks as long as the connection does. On SQLite, which has a single writer,
    it takes none.
    """

    def __init__(self, calls: Sequence[Prepared], *, waits: bool) -> None:
        """Raises django.db errors, and IdempotencyInProgressError if a name stays locked."""
        self._rows: defaultdict[str, dict[uuid.UUID, GrantLedger]] = defaultdict(dict)
        self._states: Mapping[str, TokenState] = {}
        self._operations: dict[tuple[uuid.UUID, str], AgentOperation | _Done] = {}
        self._kept: dict[bytes, ProviderCall] = {}
        self._used: dict[uuid.UUID, tuple[GrantLedger, int]] = {}
        self._done: list[_Done] = []
        self._over: list[uuid.UUID] = []
        self._drafts: list[Draft] = []
        self._answers: list[tuple[Prepared, ProviderKey, str]] = []
        locks = _Locks(calls)
        # Lock before reading, so that a call that waited is decided by the state after the wait.
        if waits:
            locks.wait()
        reads = [] if waits else locks.tries()
        reads += self._reads(calls)
        answers = run_together([statement for statement, _ in reads])
        for (_, take), rows in zip(reads, answers, strict=True):
            take(rows)
        self.held_up: Mapping[int, HeldUpError] = locks.held_up()

    def kept_answer(self, call: Prepared) -> ProviderCall | None:
        """The kept answer under the call's name, even if it has expired."""
        return self._kept.get(call.provider_key.digest) if call.provider_key else None

    def state_of(self, call: Prepared) -> TokenState | None:
        """The token's rows; None for a token with our signature but without a record."""
        if call.claims is None:
            return None
        state = self._states.get(call.claims.jti)
        return state if state and state.is_of(call.claims, call.service_provider_id) else None

    def ledger(self, call: StoreCall) -> Ledger:
        """The counters of the call's grant, including those of the agent's other grants there."""
        rows = self._rows[call.queue]
        own = rows.get(uuid.UUID(call.claims.grant_id))
        return (own or _UNUSED).counters([row for row in rows.values() if row is not own])

    def operation(self, call: StoreCall) -> Operation | None:
        """The operation allowed under the agent's key of this call, if it is still remembered."""
        row = self._row_of_operation(call)
        if row is None or (row.expires_at is not None and row.expires_at <= call.now):
            return None
        return Operation(bytes(row.action_digest), row.answer)

    def record(self, made: Draft | None) -> None:
        if made is not None:
            self._drafts.append(made)

    def count(self, call: StoreCall, before: Ledger, after: Ledger) -> None:
        """Note the grant's new counters, for `write` and for later calls."""
        if after == before:
            return
        grant_id = uuid.UUID(call.claims.grant_id)
        row = self._rows[call.queue].setdefault(grant_id, GrantLedger(grant_id=grant_id))
        row.tat_us, row.uses = after.tat_us, after.uses
        row.spent = {key: list(counted) for key, counted in after.spent.items()}
        _, more = self._used.get(grant_id, (row, 0))
        # A difference: the jobs add uses that Redis allowed, and take no queue's lock.
        self._used[grant_id] = row, more + after.uses - before.uses

    def remember(self, call: StoreCall, answer: Mapping[str, Any]) -> None:
        """Remember the answer under the agent's key of this call, if it has one."""
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
        """Keep the answer, if the service provider sent an Idempotency-Key."""
        if call.provider_key is not None:
            self._answers.append((call, call.provider_key, json.dumps(body)))

    def write(self) -> None:
        """Write all changes.

        Raises django.db errors, and TemporarilyUnavailableError on a lost race.
        """
        acts = []
        if self._used:
            # In the order of grant ids, as the jobs lock them, so that neither deadlocks.
            used = sorted(self._used.values(), key=lambda each: each[0].grant_id)
            acts.append(
                _COUNT.of(
                    [(row.grant_id, row.tat_us, more, _json(row.spent)) for row, more in used]
                )
            )
        if self._over:
            acts.append(
                Statement("DELETE FROM verifier_agentoperation WHERE id = ANY(%s)", [self._over])
            )
        if self._done:
            acts.append(
                _REMEMBER.of([row._replace(answer=_json(row.answer)) for row in self._done])
            )
        record_drafts(self._drafts, acts)
        if self._answers:
            self._write_answers()

    def _write_answers(self) -> None:
        rows = [
            (each.digest, each.body_sha256, text, call.now + KEPT_FOR)
            for call, each, text in self._answers
        ]
        try:
            _, kept = _KEEP.run(rows, min(call.now for call, *_ in self._answers))
        except OperationalError as error:
            # A process of the previous release holds the row; it takes no lock of the name.
            if waited_too_long(error):
                raise _in_progress() from error
            raise
        if kept != len(rows):
            raise TemporarilyUnavailableError(
                "Another call with this Idempotency-Key was faster. Try again."
            )

    def _reads(self, calls: Sequence[Prepared]) -> list[_Read]:
        """The statements to run, each with the function that takes its rows."""
        reads: list[_Read] = []
        if digests := [call.provider_key.digest for call in calls if call.provider_key]:
            reads.append((_ANSWERS.of(digests), self._take_answers))
        if jtis := {call.claims.jti for call in calls if call.claims is not None}:
            reads.append((ask_states(jtis), self._take_states))
        if judged := [call for call in calls if isinstance(call, StoreCall)]:
            agents = list({uuid.UUID(call.claims.agent_id) for call in judged})
            providers = list({call.service_provider_id for call in judged})
            grants = list({uuid.UUID(call.claims.grant_id) for call in judged})
            since = min(call.now for call in judged) - _LONGEST
            reads.append((_LEDGERS.of(agents, providers, since, grants), self._take_ledgers))
            asked = {
                (uuid.UUID(call.claims.grant_id), call.operation_key)
                for call in judged
                if call.operation_key is not None
            }
            if asked:
                question = (
                    _OPERATIONS if connection.vendor == "postgresql" else _OPERATIONS_IN_SQLITE
                )
                reads.append(
                    (question.of(*map(list, zip(*asked, strict=True))), self._take_operations)
                )
        return reads

    def _take_answers(self, rows: _Rows) -> None:
        self._kept = {bytes(row.digest): row for (row,) in rows}

    def _take_states(self, rows: _Rows) -> None:
        self._states = read_states(rows)

    def _take_ledgers(self, rows: _Rows) -> None:
        for row, agent_id, provider_id in rows:
            self._rows[f"{_id(agent_id)} {_id(provider_id)}"][row.grant_id] = row

    def _take_operations(self, rows: _Rows) -> None:
        self._operations = {(row.grant_id, row.key): row for (row,) in rows}

    def _row_of_operation(self, call: StoreCall) -> AgentOperation | _Done | None:
        key = call.operation_key
        return None if key is None else self._operations.get((uuid.UUID(call.claims.grant_id), key))


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _in_progress() -> IdempotencyInProgressError:
    return IdempotencyInProgressError(
        "The first call with this Idempotency-Key is still running. Ask again in a moment."
    )


def _distinct(numbers: Iterable[int | None]) -> list[int]:
    return sorted({number for number in numbers if number is not None})


def _number(kind: bytes, name: bytes) -> int:
    """The number of an advisory lock.

    If two names collide, one waits for the other; no harm is done.
    """
    return int.from_bytes(hashlib.sha256(kind + name).digest()[:8], signed=True)


def _id(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))
