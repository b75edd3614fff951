"""The decision as a pure function of question, state and ledger. Every verifier calls it."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from agentauth.protocol.behavioural_envelope import (
    Confirmation,
    Envelope,
    Ledger,
    Refused,
    StepUp,
    enforce,
    limits_left,
)
from agentauth.protocol.capability import Action, Capability, Violation, choose
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.usage_counters import Limits


class DecisionInput(Protocol):
    """A call whose token, proof and binding are verified. `now` is aware, to the microsecond."""

    @property
    def action(self) -> Action | None: ...
    @property
    def action_digest(self) -> bytes:
        """SHA-256 of the canonical action (or of none). An operation's key is bound to it."""

    @property
    def dry_run(self) -> bool: ...
    @property
    def now(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Operation:
    """What is stored of an operation that was allowed under a key."""

    action_digest: bytes
    answer: Mapping[str, Any]


@per_call(frozen=True, slots=True)
class Snapshot:
    """Everything `decide` needs to know, as of one moment."""

    # Why the token may not act at all (a reason of `invalid_token`), or None.
    refusal: str | None
    capabilities: tuple[Capability, ...]
    envelope: Envelope
    operation: Operation | None
    confirmation: Confirmation
    human_online: bool


@per_call(frozen=True, slots=True)
class Refuse:
    """No.

    `error` and `reason` are stable words; `idempotency_mismatch` alone becomes an HTTP error.
    """

    error: str
    reason: str | None = None
    retry_after: int | None = None
    violations: tuple[Violation, ...] = ()
    confirmation_id: uuid.UUID | None = None
    # The nonce the agent's next proof must have, if it lacked one.
    nonce: str | None = None


@dataclass(frozen=True, slots=True)
class AskHuman:
    """All checks pass, but a human must confirm. The store finds or makes the confirmation."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Yes, and nothing is counted: the operation was allowed before, with this answer."""

    answer: Mapping[str, Any]


@per_call(frozen=True, slots=True)
class Allow:
    """Yes: store `ledger`; `limits` is what is left, `capability` the one that covers (None: no
    action).
    """

    ledger: Ledger
    limits: Limits
    capability: Capability | None
    uses_confirmation: bool = False


Decision = Allow | Repeat | AskHuman | Refuse


def decide(call: DecisionInput, snapshot: Snapshot, ledger: Ledger) -> Decision:
    """Steps 7 to 14 of docs/protocol.md section 8, in order. Reads and writes nothing.

    7. State of token, grant, agent, human, service provider. 8. Capability and constraints. 9. The
    agent's idempotency. 10. Windows. 11. Presence. 12. Threshold. 13. Rate. 14. Budgets and uses.

    The order is part of the contract: the holder of a revoked token learns nothing about limits,
    and a repeated operation passes even if its budget is now used up, since it consumes nothing.
    """
    # 7. First, also for a repeat: a stored yes ends with its grant.
    if snapshot.refusal is not None:
        return Refuse("invalid_token", snapshot.refusal)
    # 8. One capability must cover the action; they are never combined.
    capability = None
    if call.action is not None:
        choice = choose(snapshot.capabilities, call.action)
        if choice.capability is None:
            return Refuse("insufficient_scope", choice.reason, violations=choice.violations)
        capability = choice.capability
    # 9. Before the counters, so that a retry is free. Bound to the whole action, so that a key
    # approved for one payment cannot serve another.
    if snapshot.operation is not None:
        if snapshot.operation.action_digest != call.action_digest:
            return Refuse("idempotency_mismatch")
        return Repeat(snapshot.operation.answer)
    # 10. to 14. `enforce` checks windows, presence, threshold, rate, budgets and uses in this
    # order.
    outcome = enforce(
        snapshot.envelope,
        ledger,
        action=call.action,
        now=call.now,
        human_online=snapshot.human_online,
        confirmation=snapshot.confirmation,
    )
    if isinstance(outcome, Refused):
        return Refuse(outcome.error, outcome.reason, outcome.retry_after)
    if isinstance(outcome, StepUp):
        return AskHuman()
    allow = Allow(
        outcome.ledger,
        outcome.limits,
        capability,
        uses_confirmation=snapshot.confirmation == "confirmed"
        and _needed_confirmation(call, snapshot),
    )
    if call.dry_run:
        # Nothing is consumed, so report what was left before.
        return replace(
            allow,
            ledger=ledger,
            limits=limits_left(snapshot.envelope, ledger, call.now),
            uses_confirmation=False,
        )
    return allow


def _needed_confirmation(call: DecisionInput, snapshot: Snapshot) -> bool:
    """Whether the call needed its confirmation: one that is now below the threshold uses none."""
    amount = None if call.action is None else call.action.amount
    threshold = snapshot.envelope.confirm_above
    return amount is not None and threshold is not None and not amount.within(threshold)
