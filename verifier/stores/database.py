"""Durable decisions: several calls in one transaction of PostgreSQL or SQLite (docs/adr/0031-durable-decisions-in-groups.md).

Calls of one agent at one service provider follow each other, so no limit is passed under any concurrency.
"""

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from django.db import DatabaseError, InterfaceError, connection, transaction
from psycopg.pq import TransactionStatus

from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.decision import Allow, AskHuman, Refuse, Repeat, Snapshot, decide
from agentauth.protocol.envelope import EMPTY, Envelope, Ledger, parse_envelope
from agentauth.protocol.envelope import Confirmation as ConfirmationState
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.limits import Rate
from audit.faults import fault_point
from audit.services import record_drafts
from audit.statements import select
from registry.services.keys import Disclosed, bar_disclosed_keys
from registry.services.proofs import spend_proofs, spent_proofs
from registry.services.state import TokenState
from verifier.answers import allowed_body, body_of, repeated_body
from verifier.models import Confirmation, Home
from verifier.services import home
from verifier.services.basis import Basis, check_age
from verifier.services.confirmations import confirmation_state, request_confirmation
from verifier.services.home import Tenure
from verifier.services.moment import Moment
from verifier.services.presence import is_online
from verifier.stores import EarlyRefusal, Permit, Prepared, Recalled, Spent, StoreCall, check_in_time, events
from verifier.stores.redelivery import recalled
from verifier.stores.work import Work

logger = logging.getLogger(__name__)

Outcome = Permit | Refuse | Recalled


@dataclass(frozen=True, slots=True)
class Asked:
    """One call to decide. `spent` is what became of its proof in Redis; None where proofs are rows of the database."""

    call: Prepared
    spent: Spent | None = None
    # Raises TemporarilyUnavailableError where what the call rests on changed while it waited.
    still: Callable[[], object] = lambda: None


class UncertainError(TemporarilyUnavailableError):
    """The commit failed: whether anything was done is not known."""


def decide_one(call: Prepared, spent: Spent | None = None) -> Outcome:
    """The outcome of one call. It waits for another transaction's lock as long as the connection waits. `spent` as in `Asked`.

    Raises as `decide_together`, and what it gives back.
    """
    (outcome,) = decide_together([Asked(call, spent)], patience=None)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def decide_together(asked: Sequence[Asked], *, patience: float | None = 0.0) -> list[Outcome | Exception]:
    """Steps 2 and 6 to 15 of docs/protocol.md section 8 for each call, in this order, in one transaction.

    A refusal commits the spent proof and its event. A call that ends in an error changed nothing; the others are decided.
    HeldUpError: another transaction is deciding on the same counters. `patience`: seconds to wait for that one; None: as
    long as the connection waits, and then no call ends in HeldUpError. Raises UncertainError; and django.db errors, or an
    AgentAuthError, where no call changed anything.
    """
    _bar_leaked_keys(asked)
    # A kept yes, too, is told only with leave to decide.
    tenure, decided = home.LEASE.current(), False
    try:
        with transaction.atomic():
            # On SQLite the wait for the one writer's lock is over here, and nothing has been read yet.
            basis = Basis(Moment.now(), tenure)
            if patience:
                _wait_for_locks(patience)
            outcomes = _decided(asked, tenure, waits=patience != 0)
            _check_proofs_in_time(asked, outcomes)
            check_committable()
            basis.check()
            decided = True
    except Exception as error:
        # Within the transaction of another, as in tests and commands, this was no commit.
        if decided and not connection.in_atomic_block:
            raise UncertainError from error
        raise
    fault_point("verify.after_commit")
    try:
        # The commit takes its time too.
        check_age(basis.began)
    except TemporarilyUnavailableError as late:
        try:
            _withhold(asked, outcomes)
        except (DatabaseError, InterfaceError):
            # The calls are committed: raised, this would have them decided a second time.
            logger.exception("the log does not say that decisions were withheld")
        return [outcome if isinstance(outcome, Exception) else late for outcome in outcomes]
    return outcomes


def _bar_leaked_keys(asked: Sequence[Asked]) -> None:
    """These proofs carried their private keys, so others may have them too."""
    disclosed = [
        Disclosed(each.call.leaked_key, each.call.actor, each.call.now)
        for each in asked
        if isinstance(each.call, EarlyRefusal) and each.call.leaked_key is not None
    ]
    if disclosed:
        bar_disclosed_keys(disclosed)


def _check_proofs_in_time(asked: Sequence[Asked], outcomes: Sequence[Outcome | Exception]) -> None:
    """A process that was halted right before it spent a proof must not commit it: since then the proof may have been used
    elsewhere and forgotten. Raises TemporarilyUnavailableError.
    """
    for each, outcome in zip(asked, outcomes, strict=True):
        spent_here = each.spent is None and not isinstance(outcome, Exception)
        if spent_here and isinstance(each.call, StoreCall):
            check_in_time(each.call)


def check_committable() -> None:
    """Raises TemporarilyUnavailableError where a commit would do nothing and say nothing.

    Where the connection broke meanwhile, Django leaves the block without a commit and without a word; and where a
    statement failed outside any savepoint, PostgreSQL answers COMMIT with ROLLBACK, as if nothing were wrong.
    """
    if connection.closed_in_transaction or transaction.get_rollback() or _is_aborted():
        raise TemporarilyUnavailableError


def _wait_for_locks(seconds: float) -> None:
    """No longer than this, until the transaction ends."""
    if connection.vendor == "postgresql":
        select("SELECT set_config('lock_timeout', %s, true)", f"{round(seconds * 1000)}ms")


def _is_aborted() -> bool:
    if connection.vendor != "postgresql" or connection.connection is None:
        return False
    return bool(connection.connection.pgconn.transaction_status == TransactionStatus.INERROR)


def _decided(asked: Sequence[Asked], tenure: Tenure, *, waits: bool) -> list[Outcome | Exception]:
    """All but the commit."""
    outcomes: dict[int, Outcome | Exception] = {}
    for place, each in enumerate(asked):
        try:
            each.still()
            _check_call(each, tenure)
        except TemporarilyUnavailableError as error:
            outcomes[place] = error
    left = [place for place in range(len(asked)) if place not in outcomes]
    if left:
        # 2. and 7. Names and counters are locked before anything is read.
        work = Work([asked[place].call for place in left], waits=waits)
        outcomes |= {left[number]: error for number, error in work.held_up.items()}
        left = [place for place in left if place not in outcomes]
        found = _judged([asked[place] for place in left], work)
        outcomes |= dict(zip(left, found, strict=True))
    return [outcomes[place] for place in range(len(asked))]


def _check_call(asked: Asked, tenure: Tenure) -> None:
    """Raises TemporarilyUnavailableError where the call was prepared under another tenure, or waited for too long."""
    if isinstance(asked.call, StoreCall):
        kind = Home.Kind.DATABASE if asked.spent is None else Home.Kind.REDIS
        if asked.call.tenure.kind != kind or asked.call.tenure != tenure:
            raise TemporarilyUnavailableError("The verifier has moved. Try again.")
        if asked.spent is None or asked.call.delivery is not None:
            check_in_time(asked.call)


def _judged(asked: Sequence[Asked], work: Work) -> list[Outcome | Exception]:
    """Of calls whose locks are held: what comes of each, written."""
    rows = [work.kept(each.call) for each in asked]
    known = [
        row is not None and row.expires_at > each.call.now for each, row in zip(asked, rows, strict=True)
    ]
    # 6. The insert decides between two identical proofs: the second waits on the first's commit, then finds it.
    spent = _spend([each for each, again in zip(asked, known, strict=True) if not again])
    fault_point("verify.after_spend")
    outcomes: list[Outcome | Exception] = []
    for each, row, again in zip(asked, rows, known, strict=True):
        if again and row is not None:
            outcomes.append(recalled(each.call, row, work))
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


def _spend(asked: Sequence[Asked]) -> list[Spent]:
    """What became of each proof. A rehearsal asks the same question and leaves nothing."""
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
            said.append(Spent(first=False))
        else:
            said.append(Spent(first=not spent.pop(0) if each.call.dry_run else first.pop(0)))
    return said


def _judge(call: Prepared, spent: Spent, work: Work) -> Permit | Refuse:
    if isinstance(call, EarlyRefusal):
        work.record(events.early_refusal(call))
        return call.refuse
    state = work.state_of(call)
    if not spent.first:
        return _refused(call, Refuse("invalid_dpop_proof", "replayed"), state, work)
    if state is None:
        return _refused(call, Refuse("invalid_token", "unknown"), None, work)
    snapshot = _snapshot(call, state, work)
    before = work.ledger(call)
    if spent.elsewhere:
        ledger = replace(before, tat_us=spent.tat_us)
    else:
        floor_us = call.tenure.floor_us(state.grant.follows_at)
        ledger = _without_burst(before, snapshot.envelope.rate, floor_us)
    # 7. to 14. are judged without I/O, the same in every store.
    outcome = decide(call, snapshot, ledger)
    # 15. Record.
    if isinstance(outcome, AskHuman):
        outcome = _ask_human(call, state)
    if isinstance(outcome, Refuse):
        return _refused(call, outcome, state, work)
    if isinstance(outcome, Repeat):
        work.record(events.decision(call, state, repeats=outcome.answer.get("decision_id")))
        body = repeated_body(outcome.answer, claims=call.claims, now_seconds=_seconds(call))
        return Permit(body, repeated=True)
    return _allowed(call, state, outcome, ledger, work)


def _withhold(asked: Sequence[Asked], outcomes: Sequence[Outcome | Exception]) -> None:
    """Say in the log that these yeses, which are committed, are not given; but for calls with a name, which find them again."""
    withheld = [
        events.withheld(each.call, outcome.answer["decision_id"])
        for each, outcome in zip(asked, outcomes, strict=True)
        if isinstance(each.call, StoreCall) and each.call.delivery is None
        if isinstance(outcome, Permit) and not outcome.repeated
    ]
    if withheld:
        with transaction.atomic():
            record_drafts(withheld)


def _without_burst(ledger: Ledger, rate: Rate | None, floor_us: int | None) -> Ledger:
    """The counters with what another home, or the grant before, may have let pass: as if the burst was used then."""
    if rate is None or floor_us is None:
        return ledger
    return replace(ledger, tat_us=max(ledger.tat_us or 0, rate.used_up(floor_us)))


def _snapshot(call: StoreCall, state: TokenState, work: Work) -> Snapshot:
    refusal = state.refusal(call.now)
    if refusal is not None:
        # The grant may be without capabilities by now; it is not looked at further.
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
        raise TypeError("only a transact, which has a key, is confirmed")
    asked, retry_after = request_confirmation(
        grant=state.grant,
        action=call.action,
        key=call.operation_key,
        may_create=not call.dry_run,
        actor=call.actor,
        now=call.now,
    )
    return Refuse("step_up_required", "confirm_above", retry_after, confirmation_id=asked)


def _refused(call: StoreCall, refuse: Refuse, state: TokenState | None, work: Work) -> Refuse:
    work.record(events.refusal(call, refuse, state))
    return refuse


def _allowed(call: StoreCall, state: TokenState, allow: Allow, before: Ledger, work: Work) -> Permit:
    confirmation_id = _consume(call, state) if allow.uses_confirmation else None
    work.count(call, before, allow.ledger)
    made = events.decision(call, state, capability=allow.capability, confirmation_id=confirmation_id)
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
        # Gone between the look and the swap. Rolling back is the safe no; the agent asks again.
        raise TemporarilyUnavailableError("The confirmation could not be used just now. Try again.")
    return found


def _seconds(call: StoreCall) -> int:
    return int(call.now.timestamp())
