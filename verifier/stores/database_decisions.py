"""Decide durable calls, several in one transaction of PostgreSQL or SQLite (ADR 31).

Calls of one agent at one service provider are decided one after another, so concurrent calls cannot
exceed a limit.
"""

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from django.db import DatabaseError, InterfaceError, connection, transaction
from psycopg.pq import TransactionStatus

from agentauth.protocol.behavioural_envelope import EMPTY, Envelope, Ledger, parse_envelope
from agentauth.protocol.behavioural_envelope import Confirmation as ConfirmationState
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.decision_rules import Allow, AskHuman, Refuse, Repeat, Snapshot, decide
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.usage_counters import Rate
from audit.db.prebuilt_sql import select
from audit.fault_injection import fault_point
from audit.services import record_drafts
from registry.services.barred_keys import Disclosed, bar_disclosed_keys
from registry.services.spent_proofs import spend_proofs, spent_proofs
from registry.services.token_state import TokenState
from verifier.answers import allowed_body, body_of, repeated_body
from verifier.models import Confirmation, Home
from verifier.services import replay_cache_lease
from verifier.services.clock_readings import ClockReading
from verifier.services.confirmation_lifecycle import confirmation_state, request_confirmation
from verifier.services.freshness import DecisionBasis, check_age
from verifier.services.presence_leases import is_online
from verifier.services.replay_epochs import ReplayEpoch
from verifier.stores import (
    EarlyRefusal,
    Permit,
    Prepared,
    SpendResult,
    StoreCall,
    StoredAnswer,
    check_in_time,
    decision_audit_events,
)
from verifier.stores.stored_answers import recall_answer
from verifier.stores.transaction_batch import DecisionBatch

logger = logging.getLogger(__name__)

Outcome = Permit | Refuse | StoredAnswer


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """One call to decide.

    `spent`: the result of spending its proof in Redis; None if the replay cache is in the database.
    """

    call: Prepared
    spent: SpendResult | None = None
    # Called before deciding. Raises TemporarilyUnavailableError if the state that the call was
    # checked against has changed while it waited.
    still: Callable[[], object] = lambda: None


class UncertainError(TemporarilyUnavailableError):
    """The commit failed, and the transaction may or may not have been committed."""


def decide_one(call: Prepared, spent: SpendResult | None = None) -> Outcome:
    """Decide one call. Waits for locks as long as the connection's lock timeout.

    `spent` is as in `DecisionRequest`. Raises the error that the call ends in, and whatever
    `decide_together` raises.
    """
    (outcome,) = decide_together([DecisionRequest(call, spent)], patience=None)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def decide_together(
    asked: Sequence[DecisionRequest], *, patience: float | None = 0.0
) -> list[Outcome | Exception]:
    """Do steps 2 and 6 to 15 of docs/protocol.md section 8 for each call, in one transaction.

    Calls are decided in the given order. A refusal commits the spent proof and its event. A call
    that ends in an error changes nothing, and the others are still decided.

    `patience` is the lock timeout in seconds. With 0, a call whose counters or Idempotency-Key
    another transaction has locked ends in HeldUpError. Otherwise all locks are waited for, for
    `patience` seconds or, with None, as long as the connection's own timeout; a timeout is raised.
    The second of two calls in `asked` under one Idempotency-Key ends in HeldUpError.

    Raises UncertainError if the commit failed. Raises django.db errors or another AgentAuthError
    if everything was rolled back.
    """
    _bar_leaked_keys(asked)
    # Raises without a valid lease. Even a stored answer must not be returned without one.
    replay_epoch = replay_cache_lease.LEASE.current()
    decided = False
    try:
        with transaction.atomic():
            # Start the clock here: on SQLite, `atomic` has waited for the single writer lock, and
            # nothing has been read yet.
            basis = DecisionBasis(ClockReading.now(), replay_epoch)
            if patience:
                _set_lock_timeout(patience)
            outcomes = _decide_all(asked, replay_epoch, waits=patience != 0)
            _check_proofs_in_time(asked, outcomes)
            check_committable()
            basis.check()
            decided = True
    except Exception as error:
        # Within an outer transaction (tests, commands), no commit was attempted here.
        if decided and not connection.in_atomic_block:
            raise UncertainError from error
        raise
    fault_point("verify.after_commit")
    try:
        # The commit itself may have taken so long that the state is stale by now.
        check_age(basis.began)
    except TemporarilyUnavailableError as late:
        try:
            _withhold(asked, outcomes)
        except (DatabaseError, InterfaceError):
            # The calls are committed. If this were raised, the caller would decide them again.
            logger.exception("the log does not record that decisions were withheld")
        return [outcome if isinstance(outcome, Exception) else late for outcome in outcomes]
    return outcomes


def _bar_leaked_keys(asked: Sequence[DecisionRequest]) -> None:
    """Bar keys whose private half was sent in the proof: others may have seen it too."""
    disclosed = [
        Disclosed(each.call.leaked_key, each.call.actor, each.call.now)
        for each in asked
        if isinstance(each.call, EarlyRefusal) and each.call.leaked_key is not None
    ]
    if disclosed:
        bar_disclosed_keys(disclosed)


def _check_proofs_in_time(
    asked: Sequence[DecisionRequest], outcomes: Sequence[Outcome | Exception]
) -> None:
    """Raise TemporarilyUnavailableError if a proof spent here waited too long.

    While this process was suspended, another may have spent the proof, and the replay cache may
    have dropped it since.
    """
    for each, outcome in zip(asked, outcomes, strict=True):
        spent_here = each.spent is None and not isinstance(outcome, Exception)
        if spent_here and isinstance(each.call, StoreCall):
            check_in_time(each.call)


def check_committable() -> None:
    """Raise TemporarilyUnavailableError if a commit would silently do nothing.

    If the connection broke, Django leaves the block without a commit or an error. If a statement
    failed outside a savepoint, PostgreSQL answers COMMIT with ROLLBACK, also without an error.
    """
    if connection.closed_in_transaction or transaction.get_rollback() or _is_aborted():
        raise TemporarilyUnavailableError


def _set_lock_timeout(seconds: float) -> None:
    """Set this transaction's lock timeout. SQLite has none."""
    if connection.vendor == "postgresql":
        select("SELECT set_config('lock_timeout', %s, true)", f"{round(seconds * 1000)}ms")


def _is_aborted() -> bool:
    if connection.vendor != "postgresql" or connection.connection is None:
        return False
    return bool(connection.connection.pgconn.transaction_status == TransactionStatus.INERROR)


def _decide_all(
    asked: Sequence[DecisionRequest], replay_epoch: ReplayEpoch, *, waits: bool
) -> list[Outcome | Exception]:
    """Decide all calls and write the outcomes, but do not commit."""
    outcomes: dict[int, Outcome | Exception] = {}
    for place, each in enumerate(asked):
        try:
            each.still()
            _check_call(each, replay_epoch)
        except TemporarilyUnavailableError as error:
            outcomes[place] = error
    left = [place for place in range(len(asked)) if place not in outcomes]
    if left:
        # 2. and 7. Lock Idempotency-Keys and counters before anything is read.
        work = DecisionBatch([asked[place].call for place in left], waits=waits)
        outcomes |= {left[number]: error for number, error in work.held_up.items()}
        left = [place for place in left if place not in outcomes]
        found = _judge_all([asked[place] for place in left], work)
        outcomes |= dict(zip(left, found, strict=True))
    return [outcomes[place] for place in range(len(asked))]


def _check_call(asked: DecisionRequest, replay_epoch: ReplayEpoch) -> None:
    """Raise TemporarilyUnavailableError if the epoch changed or the call waited too long."""
    if isinstance(asked.call, StoreCall):
        kind = Home.Kind.DATABASE if asked.spent is None else Home.Kind.REDIS
        if asked.call.replay_epoch.kind != kind or asked.call.replay_epoch != replay_epoch:
            raise TemporarilyUnavailableError("The replay cache has moved. Try again.")
        # A proof spent in Redis cannot be replayed. But under an Idempotency-Key, the stored answer
        # of the first try may have expired during the wait.
        if asked.spent is None or asked.call.provider_key is not None:
            check_in_time(asked.call)


def _judge_all(asked: Sequence[DecisionRequest], work: DecisionBatch) -> list[Outcome | Exception]:
    """Decide calls whose locks are held, and write the outcomes."""
    rows = [work.kept_answer(each.call) for each in asked]
    known = [
        row is not None and row.expires_at > each.call.now
        for each, row in zip(asked, rows, strict=True)
    ]
    # 6. Of two calls with the same proof, the second insert waits for the first's commit.
    spent = _spend([each for each, again in zip(asked, known, strict=True) if not again])
    fault_point("verify.after_spend")
    outcomes: list[Outcome | Exception] = []
    for each, row, again in zip(asked, rows, known, strict=True):
        if again and row is not None:
            outcomes.append(recall_answer(each.call, row, work))
            continue
        proof = spent.pop(0)
        if proof.unsure is not None:
            outcomes.append(proof.unsure)
            continue
        outcome = _judge(each.call, proof, work)
        work.keep(each.call, body_of(outcome))
        outcomes.append(outcome)
    work.write()
    fault_point("verify.after_debit")
    return outcomes


def _spend(asked: Sequence[DecisionRequest]) -> list[SpendResult]:
    """Spend the proof of each call. For a dry run, only look up whether it was spent."""
    calls = [each.call for each in asked if each.spent is None and isinstance(each.call, StoreCall)]
    first = spend_proofs(
        [(call.proof_jkt, call.proof_jti, call.spent_until) for call in calls if not call.dry_run]
    )
    spent = spent_proofs([(call.proof_jkt, call.proof_jti) for call in calls if call.dry_run])
    said = []
    for each in asked:
        if each.spent is not None:
            said.append(each.spent)
        elif isinstance(each.call, EarlyRefusal):
            said.append(SpendResult(first=False))
        else:
            said.append(SpendResult(first=not spent.pop(0) if each.call.dry_run else first.pop(0)))
    return said


def _judge(call: Prepared, spent: SpendResult, work: DecisionBatch) -> Permit | Refuse:
    if isinstance(call, EarlyRefusal):
        work.record(decision_audit_events.early_refusal(call))
        return call.refuse
    state = work.state_of(call)
    # 6. Before 7, the state: an attacker who replays a captured proof learns nothing about it.
    if not spent.first:
        return _refuse(call, Refuse("invalid_dpop_proof", "replayed"), state, work)
    if state is None:
        return _refuse(call, Refuse("invalid_token", "unknown"), None, work)
    snapshot = _snapshot(call, state, work)
    before = work.ledger(call)
    if spent.elsewhere:
        ledger = replace(before, tat_us=spent.tat_us)
    else:
        floor_us = call.replay_epoch.floor_us(state.grant.follows_at)
        ledger = _without_burst(before, snapshot.envelope.rate, floor_us)
    # 7. to 14. are decided without I/O, the same in every store.
    outcome = decide(call, snapshot, ledger)
    # 15. Record.
    if isinstance(outcome, AskHuman):
        outcome = _ask_human(call, state)
    if isinstance(outcome, Refuse):
        return _refuse(call, outcome, state, work)
    if isinstance(outcome, Repeat):
        work.record(
            decision_audit_events.decision(call, state, repeats=outcome.answer.get("decision_id"))
        )
        body = repeated_body(outcome.answer, claims=call.claims, now_seconds=_seconds(call))
        return Permit(body, repeated=True)
    return _allow(call, state, outcome, ledger, work)


def _withhold(asked: Sequence[DecisionRequest], outcomes: Sequence[Outcome | Exception]) -> None:
    """Record in the log that these committed decisions were not sent to the service provider.

    Not for calls with an Idempotency-Key: a retry returns their stored answer.
    """
    withheld = [
        decision_audit_events.withheld(each.call, outcome.answer["decision_id"])
        for each, outcome in zip(asked, outcomes, strict=True)
        if isinstance(each.call, StoreCall) and each.call.provider_key is None
        if isinstance(outcome, Permit) and not outcome.repeated
    ]
    if withheld:
        with transaction.atomic():
            record_drafts(withheld)


def _without_burst(ledger: Ledger, rate: Rate | None, floor_us: int | None) -> Ledger:
    """The ledger with the burst used up at `floor_us`: an earlier epoch or grant may have."""
    if rate is None or floor_us is None:
        return ledger
    return replace(ledger, tat_us=max(ledger.tat_us or 0, rate.used_up(floor_us)))


def _snapshot(call: StoreCall, state: TokenState, work: DecisionBatch) -> Snapshot:
    refusal = state.refusal(call.now)
    if refusal is not None:
        # The grant may have lost its capabilities, so do not parse them.
        return Snapshot(refusal, (), EMPTY, None, "none", human_online=False)
    envelope = parse_envelope(state.grant.envelope)
    return Snapshot(
        refusal=None,
        capabilities=parse_capabilities(state.grant.capabilities),
        envelope=envelope,
        operation=work.operation(call),
        confirmation=_confirmation(call, state, envelope),
        human_online=envelope.requires_human_online
        and state.agent.human_id is not None
        and is_online(state.agent.human_id, call.now),
    )


def _confirmation(call: StoreCall, state: TokenState, envelope: Envelope) -> ConfirmationState:
    # Below the threshold no confirmation is needed.
    amount, above = None if call.action is None else call.action.amount, envelope.confirm_above
    if above is None or amount is None or amount.within(above) or call.operation_key is None:
        return "none"
    return confirmation_state(
        grant=state.grant, action_digest=call.action_digest, key=call.operation_key, now=call.now
    )


def _ask_human(call: StoreCall, state: TokenState) -> Refuse:
    if call.action is None or call.operation_key is None:
        raise TypeError("Only a transact action with an operation key can ask a person.")
    asked, retry_after = request_confirmation(
        grant=state.grant,
        action=call.action,
        key=call.operation_key,
        may_create=not call.dry_run,
        actor=call.actor,
        now=call.now,
    )
    return Refuse("step_up_required", "confirm_above", retry_after, confirmation_id=asked)


def _refuse(
    call: StoreCall, refuse: Refuse, state: TokenState | None, work: DecisionBatch
) -> Refuse:
    work.record(decision_audit_events.refusal(call, refuse, state))
    return refuse


def _allow(
    call: StoreCall, state: TokenState, allow: Allow, before: Ledger, work: DecisionBatch
) -> Permit:
    confirmation_id = _consume(call, state) if allow.uses_confirmation else None
    work.count(call, before, allow.ledger)
    made = decision_audit_events.decision(
        call, state, capability=allow.capability, confirmation_id=confirmation_id
    )
    work.record(made)
    answer = allowed_body(
        allow.capability,
        allow.limits,
        decision_id=str(made.event.pk),
        agent=state.agent,
        claims=call.claims,
        now_seconds=_seconds(call),
    )
    work.remember(call, answer)
    return Permit(answer, repeated=False)


def _consume(call: StoreCall, state: TokenState) -> uuid.UUID:
    yes = Confirmation.objects.filter(
        grant=state.grant,
        grant_version=state.grant.version,
        action_digest=call.action_digest,
        idempotency_key=call.operation_key,
        status=Confirmation.Status.CONFIRMED,
        usable_until__gt=call.now,
    )
    found = yes.values_list("pk", flat=True).first()
    if found is None or not yes.update(status=Confirmation.Status.CONSUMED, consumed_at=call.now):
        # Used or expired since it was read. Roll back; the agent may retry.
        raise TemporarilyUnavailableError("The confirmation was used or has expired. Try again.")
    return found


def _seconds(call: StoreCall) -> int:
    return int(call.now.timestamp())
