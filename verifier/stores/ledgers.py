"""The counters a decision sees, and the queue of those that may change them: the grant's own row, and those of the same
agent's other grants at the same service provider.

The budgets of a period follow the agent at the service provider: each grant keeps in its row what was spent under it, and
compares its ceilings with the sum. So nothing is copied when a grant ends and another one begins, and the release
before, which knows only a grant's own row, finds in it what it always found.
"""

import hashlib
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from django.db import connection

from agentauth.protocol.envelope import Ledger
from audit.statements import Question, all_but, select
from registry.models import Grant
from verifier.models import GrantLedger
from verifier.stores import StoreCall

# What a grant spent that ended longer ago lies before every period that runs: a month, in whatever zone, is shorter.
_LONGEST: Final = timedelta(days=33)
# A grant that was never approved was never used and has no row; one that was approved keeps its capabilities, [] once its
# person is deleted. Said so that the index `grant_given` passes by requests, of which an agent may have thousands.
_ROWS: Final = (
    "SELECT {} FROM verifier_grantledger l JOIN registry_grant g ON g.id = l.grant_id"
    " WHERE g.agent_id = %s AND g.service_provider_id = %s AND g.capabilities IS NOT NULL"
    " AND (g.ended_at IS NULL OR g.ended_at > %s OR g.id = %s)"
)
# Before the grant's first use none of them is held: its own row is inserted first, as the jobs insert it that count in it.
_ROWS_HELD: Final = (
    f"{_ROWS} AND EXISTS (SELECT 1 FROM verifier_grantledger o WHERE o.grant_id = %s)"  # noqa: S608 — our own text
    " ORDER BY l.grant_id FOR UPDATE OF l"
)
_READ: Final = Question(_ROWS, l=all_but(GrantLedger))
_HELD: Final = Question(_ROWS_HELD, l=all_but(GrantLedger))


@dataclass(frozen=True, slots=True)
class Ledgers:
    """`own` is the row of the call's grant, None before its first use; `beside` are those of the agent's other grants."""

    own: GrantLedger | None
    beside: tuple[GrantLedger, ...]

    def counters(self) -> Ledger:
        """What the call is judged by."""
        return (self.own or GrantLedger()).counters(self.beside)


def counts(call: StoreCall) -> bool:
    """Whether the call may change a counter or claim a key, and so must stand in the queue."""
    return not call.dry_run and (call.action is not None or call.operation_key is not None)


def hold_ledgers(call: StoreCall) -> Ledgers | None:
    """The counters, until the transaction ends no one else's; None for a call that only looks.

    The queue is entered before the rows are read: of two first uses under two grants neither would find the other's row.
    """
    if not counts(call):
        return None
    if connection.vendor == "postgresql":
        select("SELECT pg_advisory_xact_lock(%s::bigint)", _queue_number(call.queue))
        return _asked(call, _HELD, uuid.UUID(call.claims.grant_id))
    return _asked(call, _READ)


def make_ledger(call: StoreCall) -> Ledgers | None:
    """As `hold_ledgers`, with a row for the grant's first use. Made only if there is the grant; of two at once, one makes it."""
    grant_id = uuid.UUID(call.claims.grant_id)
    if counts(call) and Grant.objects.filter(pk=grant_id).exists():
        GrantLedger.objects.bulk_create([GrantLedger(grant_id=grant_id)], ignore_conflicts=True)
    return hold_ledgers(call)


def read_ledgers(call: StoreCall) -> Ledgers:
    """The counters for a call that only looks."""
    return _asked(call, _READ)


def _asked(call: StoreCall, question: Question, *more: uuid.UUID) -> Ledgers:
    agent_id, grant_id = uuid.UUID(call.claims.agent_id), uuid.UUID(call.claims.grant_id)
    found = question.ask(agent_id, call.service_provider_id, call.now - _LONGEST, grant_id, *more)
    rows: list[GrantLedger] = [row for (row,) in found]
    own = next((row for row in rows if row.grant_id == grant_id), None)
    return Ledgers(own, tuple(row for row in rows if row is not own))


def _queue_number(queue: str) -> int:
    """The number of an advisory lock of PostgreSQL: of two queues with the same number one waits for the other, no more."""
    return int.from_bytes(hashlib.sha256(f"use of {queue}".encode()).digest()[:8], signed=True)
