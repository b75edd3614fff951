"""The store whose truth is the database itself, PostgreSQL or SQLite: exact by one queue for each agent at a service provider."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.db.models import Q

from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.envelope import EMPTY, Envelope, Ledger, parse_envelope
from agentauth.protocol.envelope import Confirmation as ConfirmationState
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.limits import Rate
from audit.faults import fault_point
from registry.services.proofs import spend_proof
from registry.services.state import TokenState
from verifier.answers import allowed_body, repeated_body
from verifier.decision import decide
from verifier.models import AgentOperation, Confirmation, GrantLedger, Home
from verifier.services import home
from verifier.services.confirmations import confirmation_state, request_confirmation
from verifier.services.home import Tenure
from verifier.services.moment import Moment
from verifier.services.presence import is_online
from verifier.stores import (
    Allow,
    AskHuman,
    EarlyRefusal,
    Operation,
    Permit,
    Recalled,
    Refuse,
    Repeat,
    Snapshot,
    Spent,
    StoreCall,
    check_in_time,
)
from verifier.stores.events import record_decision, record_early_refusal, record_refusal, record_withheld
from verifier.stores.ledgers import Ledgers, hold_ledgers, make_ledger, read_ledgers
from verifier.stores.redelivery import answered_once
from verifier.stores.state import state_of

# How long an allowed operation is remembered, a transact apart: that one as long as its grant.
OPERATION_LIFE = timedelta(hours=24)

# What a decision rests on is read when it is made, which takes no more seconds or comes to nothing: nobody is told yes by what
# was known longer ago.
_MOST_SECONDS = 5.0


class DatabaseStore:
    """`verifier.stores.VerifierStore` on Django's default database.

    On PostgreSQL a decision that counts holds a lock until it commits, so two of one agent at one service provider follow
    each other and others do not meet. On SQLite every transaction is IMMEDIATE: one at a time.
    """

    def __init__(self, spend: Callable[[StoreCall], Spent] | None = None) -> None:
        """`spend` spends a call's proof in Redis, while the home is there."""
        self._spend = spend or _spend
        self._home = Home.Kind.DATABASE if spend is None else Home.Kind.REDIS

    def apply(self, call: StoreCall) -> Permit | Refuse | Recalled:
        """Steps 6 to 15 in one transaction, with 2 around them; a refusal commits the spent proof and its event together."""
        with transaction.atomic():
            # SQLite has let nobody else write from here on; who waited for that has read nothing yet.
            began = Moment.now()
            self._be_at_home(call)
            outcome = answered_once(call, lambda: _judge(call, self._spend))
            # Whoever stood still right before it spent the proof must not commit what was spent and forgotten elsewhere meanwhile.
            if self._home == Home.Kind.DATABASE:
                check_in_time(call)
            check_still(began, call.tenure)
        fault_point("verify.after_commit")
        try:
            # The commit takes its time too.
            check_age(began)
        except TemporarilyUnavailableError:
            _withhold(call, outcome)
            raise
        return outcome

    def _be_at_home(self, call: StoreCall) -> None:
        if call.tenure.kind != self._home or home.LEASE.current() != call.tenure:
            raise TemporarilyUnavailableError("The verifier has moved. Try again.")

    def record(self, refusal: EarlyRefusal) -> Permit | Refuse | Recalled:
        """The event of a refusal in steps 3 to 5, where there is nothing else to write but the answer kept of it."""
        with transaction.atomic():
            # It may be a yes that is given again, and that needs the same leave and the same youth as any other.
            began, tenure = Moment.now(), home.LEASE.current()
            outcome = answered_once(refusal, lambda: _refused_early(refusal))
            check_still(began, tenure)
        fault_point("verify.after_commit")
        # Whoever named the call finds its answer when he asks again.
        check_age(began)
        return outcome


def check_still(began: Moment, tenure: Tenure | None) -> None:
    """Ask it right before a commit. Raises TemporarilyUnavailableError where the leave to decide is not `tenure`'s any more, or
    as `check_age`. None: nobody had leave.
    """
    if present_tenure() != tenure:
        raise TemporarilyUnavailableError("The verifier has moved. Try again.")
    check_age(began)


def check_age(began: Moment) -> None:
    """Raises TemporarilyUnavailableError where what was read of tokens and grants since then is too old to decide by."""
    if began.age() > _MOST_SECONDS:
        raise TemporarilyUnavailableError("This took too long. Try again.")


def present_tenure() -> Tenure | None:
    """Under what this process may decide now; None where it may not. Raises django.db errors."""
    try:
        return home.LEASE.current()
    except TemporarilyUnavailableError:
        return None


def _refused_early(refusal: EarlyRefusal) -> Refuse:
    record_early_refusal(refusal)
    return refusal.refuse


def _judge(call: StoreCall, spend: Callable[[StoreCall], Spent]) -> Permit | Refuse:
    # 6. The insert decides between two identical proofs: the second waits on the first's commit, then finds it.
    #    Where proofs are rows, the counters are held before, those of a first use too: one that spent a proof and waits for the
    #    counters would have another, which has those, wait for that proof.
    rows = _held(call) if spend is _spend else None
    spent = spend(call)
    if not spent.first:
        return _refused(call, Refuse("invalid_dpop_proof", "replayed"), None)
    fault_point("verify.after_spend")
    # 7. The counters are held before the state is read: whoever waits here then judges by what is true after the
    #    wait, not by what was true before it.
    rows = rows or hold_ledgers(call)
    state = state_of(call)
    if state is None:
        return _refused(call, Refuse("invalid_token", "unknown"), None)
    snapshot = _snapshot(call, state)
    if rows is not None and rows.own is None and snapshot.refusal is None:
        rows = make_ledger(call)
        state = state_of(call) or state
        snapshot = _snapshot(call, state)
    ledger = (rows or read_ledgers(call)).counters()
    if spent.elsewhere:
        ledger = replace(ledger, tat_us=spent.tat_us)
    else:
        floor_us = call.tenure.floor_us(state.grant.follows_at)
        ledger = _without_burst(ledger, snapshot.envelope.rate, floor_us)
    # 7. to 14. are judged without I/O, the same in every store.
    outcome = decide(call, snapshot, ledger)
    # 15. Record.
    if isinstance(outcome, AskHuman):
        outcome = _ask_human(call, state)
    if isinstance(outcome, Refuse):
        return _refused(call, outcome, state)
    if isinstance(outcome, Repeat):
        record_decision(call, state, repeats=outcome.answer.get("decision_id"))
        return Permit(
            repeated_body(outcome.answer, claims=call.claims, now_seconds=_seconds(call)), repeated=True
        )
    return _allowed(call, state, outcome, ledger)


def _held(call: StoreCall) -> Ledgers | None:
    rows = hold_ledgers(call)
    return make_ledger(call) if rows is not None and rows.own is None else rows


def _spend(call: StoreCall) -> Spent:
    check_in_time(call)
    until = datetime.fromtimestamp(call.spent_until, UTC)
    if not call.dry_run:
        return Spent(spend_proof(jkt=call.proof_jkt, jti=call.proof_jti, until=until))
    # A dry run asks the same question and takes the answer back.
    with transaction.atomic():
        first = spend_proof(jkt=call.proof_jkt, jti=call.proof_jti, until=until)
        transaction.set_rollback(True)
    return Spent(first)


def _withhold(call: StoreCall, outcome: Permit | Refuse | Recalled) -> None:
    """Say in the log that this yes, which is committed, is not given; but for a call with a name, which finds it again."""
    if call.delivery is None and isinstance(outcome, Permit) and not outcome.repeated:
        with transaction.atomic():
            record_withheld(call, outcome.answer["decision_id"])


def _without_burst(ledger: Ledger, rate: Rate | None, floor_us: int | None) -> Ledger:
    """The counters with what another home, or the grant before, may have let pass: as if the burst was used then."""
    if rate is None or floor_us is None:
        return ledger
    return replace(ledger, tat_us=max(ledger.tat_us or 0, rate.used_up(floor_us)))


def _snapshot(call: StoreCall, state: TokenState) -> Snapshot:
    refusal = state.refusal(call.now)
    if refusal is not None:
        # The grant may be without capabilities by now; it is not looked at further.
        return Snapshot(refusal, (), EMPTY, None, "none", human_online=False)
    envelope = parse_envelope(state.grant.envelope)
    return Snapshot(
        refusal=None,
        capabilities=parse_capabilities(state.grant.capabilities),
        envelope=envelope,
        operation=_operation(call, state),
        confirmation=_confirmation(call, state, envelope),
        human_online=envelope.requires_human_online
        and state.agent.human_id is not None
        and is_online(state.agent.human_id, call.now),
    )


def _operation(call: StoreCall, state: TokenState) -> Operation | None:
    if call.operation_key is None:
        return None
    alive = Q(expires_at=None) | Q(expires_at__gt=call.now)
    row = AgentOperation.objects.filter(alive, grant=state.grant, key=call.operation_key).first()
    return None if row is None else Operation(bytes(row.action_digest), row.answer)


def _confirmation(call: StoreCall, state: TokenState, envelope: Envelope) -> ConfirmationState:
    if envelope.confirm_above is None or call.operation_key is None:
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


def _refused(call: StoreCall, refuse: Refuse, state: TokenState | None) -> Refuse:
    record_refusal(call, refuse, state)
    return refuse


def _allowed(call: StoreCall, state: TokenState, allow: Allow, before: Ledger) -> Permit:
    confirmation_id = _consume(call, state) if allow.uses_confirmation else None
    if allow.ledger != before:
        GrantLedger.objects.filter(grant=state.grant).update(
            tat_us=allow.ledger.tat_us,
            uses=allow.ledger.uses,
            spent={key: list(counted) for key, counted in allow.ledger.spent.items()},
        )
    event = record_decision(call, state, capability=allow.capability, confirmation_id=confirmation_id)
    answer = allowed_body(
        allow.capability,
        allow.limits,
        decision_id=str(event.pk),
        agent=state.agent,
        claims=call.claims,
        now_seconds=_seconds(call),
    )
    if call.operation_key is not None and not call.dry_run:
        _remember(call, state, call.operation_key, answer)
    fault_point("verify.after_debit")
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


def _remember(call: StoreCall, state: TokenState, key: str, answer: dict[str, object]) -> None:
    forever = call.action is not None and call.action.type == "transact"
    # One whose day is over makes room; one that is alive would have been found in step 9.
    AgentOperation.objects.filter(grant=state.grant, key=key, expires_at__lte=call.now).delete()
    AgentOperation.objects.create(
        grant=state.grant,
        key=key,
        action_digest=call.action_digest,
        answer=answer,
        created_at=call.now,
        expires_at=None if forever else call.now + OPERATION_LIFE,
    )


def _seconds(call: StoreCall) -> int:
    return int(call.now.timestamp())
