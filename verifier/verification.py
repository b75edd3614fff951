"""One verification, from request to answer. Every process that verifies runs this code.

1. `prepare` (credential_checks.py) checks token, proof and binding, without I/O.
2. The token's state is looked up.
3. A light call is judged from memory and committed by one Redis script; a durable call is decided
   in the database (docs/adr/0013-what-redis-may-hold.md).
4. The answer is given if the state it rests on is still fresh enough.

Processes differ in their `VerifierRuntime`: the verifier process (services/verifier_process.py)
caches the state and waits in an event loop; the web process (services/web_verification.py) reads
the state for each call and blocks its thread.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from django.conf import settings
from django.db import transaction

from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.errors import (
    AgentAuthError,
    IdempotencyMismatchError,
    InvalidTokenError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.token import TokenKey
from audit import kinds
from audit.fault_injection import fault_point
from audit.services import Actor, record_drafts, record_refusal
from registry.models import ServiceProvider
from registry.services.nonces import nonces_of
from verifier.answers import body_of
from verifier.credential_checks import TOKENS, prepare
from verifier.models import Home
from verifier.requests import VerifyRequest
from verifier.services.batch_fairness import ALONE, Turn
from verifier.services.cached_token import CachedToken
from verifier.services.clock_readings import ClockReading
from verifier.services.freshness import DecisionBasis
from verifier.services.replay_epochs import ReplayEpoch
from verifier.stores import (
    EarlyRefusal,
    NotDoneError,
    Permit,
    ProviderKey,
    SpendResult,
    StoreCall,
    StoredAnswer,
    decision_audit_events,
)
from verifier.stores.database_decisions import DecisionRequest, Outcome
from verifier.stores.lua_scripts import GIVE_BACK, JUDGE, NOTE, Code, Reply, Script
from verifier.stores.redis_decisions import (
    LightDecision,
    ScriptCall,
    check_reply,
    conclude,
    give_back_call,
    hold_call,
    is_light,
    note_call,
    plan_light_decision,
    read_hold,
    recall_refusal,
)
from verifier.stores.redis_keys import shard_of
from verifier.stores.redis_servers import DEADLINE_SECONDS

logger = logging.getLogger(__name__)

T = TypeVar("T")
# How long (s) the basis must still hold before Redis is called: twice the call's deadline. The
# script records the decision, so it must not run for a call that can no longer be answered.
SPARE_SECONDS: Final = 2 * DEADLINE_SECONDS


class VerifierRuntime(Protocol):
    """What a process verifies with. Each method raises TemporarilyUnavailableError if it cannot."""

    def state_read_at(self) -> ClockReading:
        """When the known state was read. Raises if too long ago, or this process may not answer."""

    async def wait_for_fresh_state(self) -> ClockReading:
        """As `state_read_at`; a process that was stalled first waits for the changes it missed."""

    def replay_epoch(self) -> ReplayEpoch:
        """The epoch of the replay cache in which this process may decide now."""

    def token_keys(self) -> Mapping[str, TokenKey]:
        """The keys that tokens may be signed with, by `kid`."""

    async def cached_token(self, jti: str) -> CachedToken | None:
        """The token's state; None if it was never issued here."""

    async def evaluate(self, script: Script, called: ScriptCall) -> Reply:
        """Run a script in Redis and return its reply."""

    def check_room(self) -> None:
        """Raise if no more calls may queue for the database."""

    async def decide(self, asked: DecisionRequest) -> Outcome:
        """Decide a call in the database.

        Raises NotDoneError if certainly nothing was done, and the call's own errors.
        """

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        """Run `unit` in the database, after the earlier decisions of `queue`; return its result."""

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which raises nothing. It may still run when this returns."""

    def count(self, decision: str, error: str, reason: str) -> None:
        """Count a decision in the metrics if this process commits no event for it."""


@per_call(frozen=True, slots=True)
class VerifyAnswer:
    """The body that the service provider gets with status 200 (docs/protocol.md section 8)."""

    body: Mapping[str, Any]


async def verify(
    runtime: VerifierRuntime,
    *,
    service_provider: ServiceProvider,
    request: VerifyRequest,
    provider_key: ProviderKey | None = None,
    actor: Actor,
    now: datetime,
    turn: Turn = ALONE,
) -> VerifyAnswer:
    """Decide one request of an authenticated service provider (docs/protocol.md section 8).

    1. Service provider: authenticated by the caller of this function. 2. Its own idempotency.
    3. Token. 4. Proof. 5. Binding. 6. Spend the proof. 7. State. 8. Capability and constraints.
    9. The agent's idempotency. 10. Windows. 11. Presence. 12. Threshold. 13. Rate. 14. Budgets and
    uses. 15. Record.

    `prepare` does 3 to 5, `agentauth.protocol.decision_rules.decide` 7 to 14, and the Redis script
    or the database transaction 2, 6 and 15. For a light call the script also does 13. So 2 runs
    after 3 to 5, but its answer outranks theirs. The event of a refusal is written before the
    answer is given. `turn` orders the requests of a batch.

    Raises IdempotencyMismatchError (already recorded if it comes from step 9) and
    IdempotencyInProgressError. Raises TemporarilyUnavailableError if it cannot decide; it never
    answers a wrong yes.
    """
    basis = DecisionBasis(await runtime.wait_for_fresh_state(), runtime.replay_epoch())
    if request.operation_key is not None:
        # The database decides these calls. If its queue is full, do not check signatures in vain.
        runtime.check_room()
    keys, replay_epoch = runtime.token_keys(), basis.replay_epoch
    prepared = prepare(
        request,
        service_provider=service_provider,
        keys=keys,
        replay_epoch=replay_epoch,
        nonces=nonces_of(replay_epoch.nonce_server(actor.id), now),
        nonce_required=service_provider.require_nonce or replay_epoch.requires_nonce(now),
        provider_key=provider_key,
        actor=actor,
        now=now,
    )
    recheck_key = partial(
        check_key, runtime, keys, request.untrusted_token, service_provider.audience, now
    )
    if isinstance(prepared, EarlyRefusal):
        return _answer(await _refuse_early(runtime, prepared, basis, turn, recheck_key), None)
    return _answer(await judge(runtime, prepared, basis, turn, recheck_key), prepared.fresh_nonce)


async def judge(
    runtime: VerifierRuntime,
    call: StoreCall,
    basis: DecisionBasis,
    turn: Turn,
    recheck_key: Callable[[], None],
) -> Outcome:
    """Steps 2 and 6 to 15. `recheck_key` raises if the token's key was withdrawn during a wait."""
    try:
        if await turn.wait_for_previous(call.queue):
            basis = replace(basis, began=runtime.state_read_at())
        redis = basis.replay_epoch.kind == Home.Kind.REDIS
        # Without Redis, the database transaction reads the state itself.
        known = await runtime.cached_token(call.claims.jti) if redis else None
        if known is not None and not known.is_of(call.claims, call.service_provider_id):
            known = None
        light = redis and is_light(call, known)
        await turn.enter(to_database=not light)
        try:
            recheck_key()
            if light:
                outcome = await _decide_in_redis(runtime, call, known, basis, turn)
                if outcome is not None:
                    return outcome
            return await _decide_in_database(
                runtime, call, known, partial(_check_still, runtime, recheck_key)
            )
        finally:
            turn.leave()
    finally:
        turn.release_next()


async def _decide_in_redis(
    runtime: VerifierRuntime,
    call: StoreCall,
    known: CachedToken | None,
    basis: DecisionBasis,
    turn: Turn,
) -> Outcome | None:
    """Decide in Redis; None if an earlier try of this same call went to the database."""
    made = plan_light_decision(call, known)
    # The script records its decision, so do not run it for a call that can no longer be answered.
    basis.check(SPARE_SECONDS)
    # Redis runs the scripts for one grant in the order they are sent, and this one is sent before
    # the next request of the batch takes its turn.
    turn.release_next()
    reply = await runtime.evaluate(JUDGE, made.called)
    fault_point("verify.after_judge")
    if reply.code is Code.HELD:
        return None
    outcome = conclude(call, known, made, reply)
    try:
        # During the call the state may have become too old, or a move of the
        # replay cache have begun.
        basis.check()
    except TemporarilyUnavailableError:
        # If the answer is kept, the service provider gets it by repeating the same call.
        if call.provider_key is None:
            await runtime.run(partial(_withhold, call, known, made, outcome), queue=call.queue)
        raise
    if isinstance(outcome, Refuse):
        runtime.count("denied", outcome.error, outcome.reason or "")
    elif isinstance(outcome, Permit):
        runtime.count("rehearsed" if call.dry_run else "allowed", "", "")
    return outcome


async def _decide_in_database(
    runtime: VerifierRuntime, call: StoreCall, known: CachedToken | None, still: Callable[[], None]
) -> Outcome:
    """Decide in the database. If proofs are kept in Redis, spend the proof there first."""
    runtime.check_room()
    if call.replay_epoch.kind == Home.Kind.DATABASE:
        return await runtime.decide(DecisionRequest(call, None, still))
    reply = await runtime.evaluate(JUDGE, hold_call(call, known))
    fault_point("verify.after_hold")
    if reply.code is Code.AGAIN:
        # An earlier try of this same call was refused for its token, by Redis alone.
        return recall_refusal(reply.kept)
    spent = read_hold(reply)
    try:
        outcome = await runtime.decide(DecisionRequest(call, spent, still))
    except NotDoneError:
        # A call with an Idempotency-Key finds its reserved use again when it is retried.
        if call.provider_key is None:
            _set_free(runtime, call, known, spent)
        raise
    # A recalled answer keeps the use that its first try reserved. A mismatch keeps its use as well:
    # its mark lets the same bytes pass again, which would give the use back twice.
    if isinstance(outcome, Refuse) or (isinstance(outcome, Permit) and outcome.repeated):
        _set_free(runtime, call, known, spent)
    return outcome


async def _refuse_early(
    runtime: VerifierRuntime,
    refusal: EarlyRefusal,
    basis: DecisionBasis,
    turn: Turn,
    recheck_key: Callable[[], None],
) -> Outcome:
    """Record a refusal of steps 3 to 5, or recall the answer if the call has an Idempotency-Key."""
    if refusal.claims is None and refusal.leaked_key is None:
        # Anyone can make a service provider ask about a forged token, so its refusal must
        # not cost a row.
        refusal = replace(refusal, provider_key=None)
    to_database = (
        basis.replay_epoch.kind == Home.Kind.DATABASE
        or refusal.provider_key is not None
        or refusal.leaked_key is not None
    )
    await turn.enter(to_database=to_database)
    try:
        if to_database:
            if refusal.provider_key is not None:
                runtime.check_room()
            again = refusal.provider_key is not None and refusal.claims is not None
            still = partial(_check_still, runtime, recheck_key)
            return await runtime.decide(
                DecisionRequest(refusal, None, still) if again else DecisionRequest(refusal)
            )
        if refusal.stands_for:
            shard = shard_of(refusal.service_provider_id)
            check_reply(
                await runtime.evaluate(NOTE, note_call(shard, basis.replay_epoch.number, refusal))
            )
    finally:
        turn.leave()
    runtime.count("denied", refusal.refuse.error, refusal.refuse.reason or "")
    return refusal.refuse


def _answer(outcome: Outcome, fresh_nonce: str | None) -> VerifyAnswer:
    """The answer for a committed outcome; a yes carries the next nonce if there is a new one.

    Raises IdempotencyMismatchError if that is the outcome: it is an HTTP error.
    """
    body = outcome.body if isinstance(outcome, StoredAnswer) else body_of(outcome)
    if body.get("error") == IdempotencyMismatchError.code:
        error = IdempotencyMismatchError(body["error_description"])
        # Its event was committed with the spent proof, so the endpoint must not write a second one.
        error.recorded = True
        raise error
    if body["valid"] and fresh_nonce is not None:
        # Not stored with the answer: a repeated answer carries the nonce that is current then.
        return VerifyAnswer({**body, "nonce": fresh_nonce})
    return VerifyAnswer(body)


def check_key(
    runtime: VerifierRuntime,
    keys: Mapping[str, TokenKey],
    untrusted_token: str,
    audience: str,
    now: datetime,
) -> None:
    """Verify the token again after a wait, if the keys are no longer `keys`. Safe from any thread.

    Raises TemporarilyUnavailableError if the current keys do not verify it; a retry gets the
    reason.
    """
    present = runtime.token_keys()
    if present is keys:
        return
    try:
        TOKENS.verify(
            untrusted_token,
            keys=present,
            expected_issuer=settings.ISSUER,
            expected_audience=audience,
            now=int(now.timestamp()),
        )
    except InvalidTokenError:
        raise TemporarilyUnavailableError("The key of this token has changed. Try again.") from None


def _check_still(runtime: VerifierRuntime, recheck_key: Callable[[], None]) -> None:
    """Check freshness and key right before the database decides, after the wait in its queue."""
    runtime.state_read_at()
    recheck_key()


def _withhold(
    call: StoreCall, known: CachedToken | None, made: LightDecision, outcome: Outcome
) -> None:
    """Record that a yes, whose event the script wrote, is withheld. Raises django.db errors."""
    if isinstance(outcome, Permit) and known is not None:
        with transaction.atomic():
            record_drafts([decision_audit_events.withheld(call, made.event_id, known.human_id)])


def _set_free(
    runtime: VerifierRuntime, call: StoreCall, known: CachedToken | None, spent: SpendResult
) -> None:
    """Give back the use of the rate, if one was reserved."""
    if spent.reserved_us is not None:
        runtime.run_in_background(_give_back(runtime, give_back_call(call, known, spent)))


async def _give_back(runtime: VerifierRuntime, called: ScriptCall) -> None:
    try:
        await runtime.evaluate(GIVE_BACK, called)
    except TemporarilyUnavailableError:
        # The agent must wait one interval longer than needed; no limit is exceeded.
        logger.warning("a reserved use of a rate limit could not be returned")


async def record_error(
    runtime: VerifierRuntime,
    error: AgentAuthError,
    service_provider: ServiceProvider,
    actor: Actor,
    now: datetime,
    route: str,
) -> AgentAuthError:
    """Record `error` unless `verify` did; return it, or the error to answer if recording fails."""
    if error.recorded:
        return error
    record = partial(
        record_refusal,
        kind=kinds.REQUEST_REFUSED,
        actor=actor,
        at=now,
        error=error,
        route=route,
        service_provider_id=service_provider.pk,
    )
    try:
        await runtime.run(record)
    except TemporarilyUnavailableError as unavailable:
        return unavailable
    return error
