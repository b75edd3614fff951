"""Steps 7 to 14 of docs/protocol.md section 8 as a pure function of call, snapshot and ledger.

Every decision comes from here, except the rate (13) of a light call: the Redis script checks it
together with the proof.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from agentauth.protocol.behavioural_envelope import (
    Confirmation,
    Envelope,
    EnvelopeRefused,
    Ledger,
    StepUp,
    enforce,
    limits_left,
    needs_confirmation,
)
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.capability_comparison import Violation, choose
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.usage_counters import Limits


class DecisionInput(Protocol):
    """A call whose token, proof and binding are verified. `now` is aware, to the microsecond."""

    @property
    def action(self) -> Action | None: ...
    @property
    def action_digest(self) -> bytes:
        """SHA-256 of the canonical action, or of a constant for a call without an action.

        An operation's idempotency key is bound to it.
        """

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
    """The call is refused.

    `error` and `reason` are stable words; `idempotency_mismatch` alone becomes an HTTP error.
    """

    error: str
    reason: str | None = None
    retry_after: int | None = None
    violations: tuple[Violation, ...] = ()
    confirmation_id: uuid.UUID | None = None
    # The nonce to send in the next proof, if this proof lacked a valid one.
    nonce: str | None = None


@dataclass(frozen=True, slots=True)
class AskHuman:
    """All checks pass, but a human must confirm. The store reuses or creates the confirmation."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The operation was allowed before, with this answer. Nothing is counted again."""

    answer: Mapping[str, Any]


@per_call(frozen=True, slots=True)
class Allow:
    """The call is allowed: store `ledger`. `limits` is what is left.

    `capability` is the one that covers the action; None without an action.
    """

    ledger: Ledger
    limits: Limits
    capability: Capability | None
    uses_confirmation: bool = False


Decision = Allow | Repeat | AskHuman | Refuse


def decide(call: DecisionInput, snapshot: Snapshot, ledger: Ledger) -> Decision:
    """Decide a call by steps 7 to 14, in order. Reads and writes nothing.

    7. State of token, grant, agent, human, service provider. 8. Capability and constraints. 9.
    Idempotency key. 10. Windows. 11. Presence. 12. Threshold. 13. Rate. 14. Budgets and uses.

    The order is part of the contract: the holder of a revoked token learns nothing about limits,
    and a repeated operation passes even if its budget is now used up, since it consumes nothing.
    """
    # 7. First, even for a retry: a stored answer is void once its grant has ended.
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
    if isinstance(outcome, EnvelopeRefused):
        return Refuse(outcome.error, outcome.reason, outcome.retry_after)
    if isinstance(outcome, StepUp):
        return AskHuman()
    if call.dry_run:
        # Nothing is consumed, so report what was left before.
        left = limits_left(snapshot.envelope, ledger, call.now)
        return Allow(ledger, left, capability)
    # A confirmed payment that is not above the threshold now does not use its confirmation up.
    uses_confirmation = snapshot.confirmation == "confirmed" and needs_confirmation(
        snapshot.envelope, call.action
    )
    return Allow(outcome.ledger, outcome.limits, capability, uses_confirmation=uses_confirmation)
