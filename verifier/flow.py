"""One verification, from what was asked to the answer: the only description of it, for every process that answers.

1. `prepare` (checks.py): token, proof, binding, without I/O. 2. What is known of the token. 3. Light or durable, the one fork:
a light call is judged from memory and made true by one script in Redis, a durable one is decided in the database
(docs/adr/0013-what-redis-may-hold.md). 4. The answer, if what it rests on still holds.

What differs between processes is `Means`: the verifier's own process (services/lean.py) knows the state and waits in
an event loop; the web process (services/web.py) reads it each time, and its thread waits.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from django.conf import settings
from django.db import transaction

from agentauth.protocol.decision import Refuse
from agentauth.protocol.errors import (
    AgentAuthError,
    IdempotencyMismatchError,
    InvalidTokenError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.token import TokenKey
from agentauth.protocol.values import per_call
from audit import kinds
from audit.faults import fault_point
from audit.services import Actor, record_drafts, record_refusal
from registry.models import ServiceProvider
from registry.services.nonces import nonces_of
from verifier.answers import body_of
from verifier.checks import TOKENS, prepare
from verifier.models import Home
from verifier.requests import VerifyRequest
from verifier.services.basis import Basis
from verifier.services.home import Tenure
from verifier.services.moment import Moment
from verifier.services.snapshots import Known
from verifier.services.turns import ALONE, Turn
from verifier.stores import (
    Delivery,
    EarlyRefusal,
    NotDoneError,
    Permit,
    Recalled,
    Spent,
    StoreCall,
    events,
)
from verifier.stores.connection import DEADLINE_SECONDS
from verifier.stores.database import Asked, Outcome
from verifier.stores.entries import no_entry
from verifier.stores.light import (
    Called,
    Plan,
    check_reply,
    conclude,
    giving_back,
    held,
    holding,
    is_kept,
    is_light,
    noting,
    plan,
    refused_again,
)
from verifier.stores.scripts import GIVE_BACK, JUDGE, NOTE, Code, Reply, Script, shard_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
# s. The basis must outlast the call of Redis, whose deadline this doubles: what the script decides is in the log at once.
SPARE_SECONDS: Final = 2 * DEADLINE_SECONDS


class Means(Protocol):
    """What one process decides with. All raise TemporarilyUnavailableError where they cannot do what they say."""

    def look(self) -> Moment:
        """When the state that is known was read. Raises where that is too long ago, or this process may not answer."""

    async def caught_up(self) -> Moment:
        """The same. A process that stood still first hears what changed meanwhile."""

    def tenure(self) -> Tenure:
        """The epoch of the replay cache in which this process may decide now."""

    def token_keys(self) -> Mapping[str, TokenKey]:
        """The keys whose signatures under tokens count, by `kid`."""

    async def known(self, jti: str) -> Known | None:
        """The token's state; None where it was never issued here."""

    async def evaluate(self, script: Script, called: Called) -> Reply:
        """What a script in Redis answers."""

    def check_room(self) -> None:
        """Raise where no more calls may wait for the database."""

    async def decide(self, asked: Asked) -> Outcome:
        """Decide a call in the database. Raises NotDoneError where it is certain that nothing was done, and the call's own errors."""

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        """The outcome of something else in the database, after the decisions of `queue` that came before."""

    def afterwards(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this work, which raises nothing; the caller need not wait for it."""

    def count(self, decision: str, error: str, reason: str) -> None:
        """Count a decision in the metrics where no event that this process commits does."""


@per_call(frozen=True, slots=True)
class Answer:
    """What the service provider gets, with status 200: the body of section 8."""

    body: Mapping[str, Any]


async def verify(
    means: Means,
    *,
    service_provider: ServiceProvider,
    request: VerifyRequest,
    delivery: Delivery | None = None,
    actor: Actor,
    now: datetime,
    turn: Turn = ALONE,
) -> Answer:
    """Decide one request of an authenticated service provider (docs/protocol.md section 8).

    1. Service provider: authenticated by the caller of this function. 2. Its own idempotency.
    3. Token. 4. Proof. 5. Binding. 6. Spend the proof. 7. State. 8. Capability and constraints. 9. The agent's
    idempotency. 10. Windows. 11. Presence. 12. Threshold. 13. Rate. 14. Budgets and uses. 15. Record.
    3 to 5 are `prepare`, 7 to 14 `agentauth.protocol.decision.decide`. 2, 6 and 15 are Redis' script or the database's
    transaction, so 2 runs after 3 to 5, but its answer outranks theirs. The event of a refusal is written before the
    answer is given. `turn` is for a question in a batch. Raises IdempotencyMismatchError (that of step 9 is recorded),
    IdempotencyInProgressError, and TemporarilyUnavailableError where there is no answer: never a wrong yes.
    """
    basis = Basis(await means.caught_up(), means.tenure())
    if request.operation_key is not None:
        # The database decides these: where too many calls wait for it, no signature is checked in vain.
        means.check_room()
    keys, tenure = means.token_keys(), basis.tenure
    prepared = prepare(
        request,
        service_provider=service_provider,
        keys=keys,
        tenure=tenure,
        nonces=nonces_of(tenure.nonce_server(actor.id), now),
        nonce_required=service_provider.require_nonce or tenure.careful(now),
        delivery=delivery,
        actor=actor,
        now=now,
    )
    recheck_key = partial(check_key, means, keys, request.untrusted_token, service_provider.audience, now)
    if isinstance(prepared, EarlyRefusal):
        return _answer(await _refused(means, prepared, basis, turn, recheck_key), None)
    return _answer(await judge(means, prepared, basis, turn, recheck_key), prepared.fresh_nonce)


async def judge(
    means: Means, call: StoreCall, basis: Basis, turn: Turn, recheck_key: Callable[[], None]
) -> Outcome:
    """Steps 2 and 6 to 15. `recheck_key` raises where the token's key counts no more: the call may have waited."""
    try:
        if await turn.comes(call.queue):
            basis = replace(basis, began=means.look())
        redis = basis.tenure.kind == Home.Kind.REDIS
        # In the database it is read there, with everything else.
        known = await means.known(call.claims.jti) if redis else None
        if known is not None and not known.is_of(call.claims, call.service_provider_id):
            known = None
        light = redis and is_light(call, known)
        await turn.enter(to_database=not light)
        try:
            recheck_key()
            if light:
                outcome = await _lightly(means, call, known, basis, turn)
                if outcome is not None:
                    return outcome
            return await _durably(means, call, known, partial(_check_still, means, recheck_key))
        finally:
            turn.leave()
    finally:
        turn.pass_on()


async def _lightly(
    means: Means, call: StoreCall, known: Known | None, basis: Basis, turn: Turn
) -> Outcome | None:
    """In Redis; None where the very same call went to the database before."""
    made = plan(call, known)
    # What the script decides is in the log, so it is not asked for what could not be told any more.
    basis.check(SPARE_SECONDS)
    # Scripts for one grant run in the order in which they are sent, and this one is sent before the next question's turn.
    turn.pass_on()
    reply = await means.evaluate(JUDGE, made.called)
    fault_point("verify.after_judge")
    if reply.code is Code.HELD:
        return None
    outcome = conclude(call, known, made, reply)
    try:
        # While Redis was asked, what is known may have grown too old all the same, or the cache is being moved.
        basis.check()
    except TemporarilyUnavailableError:
        # The very same call of a service provider is told it when it asks again.
        if not is_kept(call):
            await means.run(partial(_withhold, call, known, made, outcome), queue=call.queue)
        raise
    if isinstance(outcome, Refuse):
        means.count("denied", outcome.error, outcome.reason or "")
    elif isinstance(outcome, Permit):
        means.count("rehearsed" if call.dry_run else "allowed", "", "")
    return outcome


async def _durably(means: Means, call: StoreCall, known: Known | None, still: Callable[[], None]) -> Outcome:
    """In the database; before it, where proofs are in Redis, the proof."""
    means.check_room()
    if call.tenure.kind == Home.Kind.DATABASE:
        return await means.decide(Asked(call, None, still))
    reply = await means.evaluate(JUDGE, holding(call, known))
    fault_point("verify.after_hold")
    if reply.code is Code.AGAIN:
        # The token was refused then, which Redis decided.
        return refused_again(reply.kept)
    spent = held(reply)
    try:
        outcome = await means.decide(Asked(call, spent, still))
    except NotDoneError:
        # A call with a name finds its use still set aside when it is asked again.
        if call.delivery is None:
            _set_free(means, call, known, spent)
        raise
    # What is recalled was set aside for the first try, whose it stays. Nor is a use given back that a mismatch took: its
    # mark lets the same bytes pass again, and would give it back twice.
    if isinstance(outcome, Refuse) or (isinstance(outcome, Permit) and outcome.repeated):
        _set_free(means, call, known, spent)
    return outcome


async def _refused(
    means: Means, refusal: EarlyRefusal, basis: Basis, turn: Turn, recheck_key: Callable[[], None]
) -> Outcome:
    """The one event of a refusal in steps 3 to 5; where the call has a name it may be an answer that is given again."""
    if refusal.claims is None and refusal.leaked_key is None:
        # A stranger can make a service provider ask about a forged token, so its refusal costs no row.
        refusal = replace(refusal, delivery=None)
    to_database = (
        basis.tenure.kind == Home.Kind.DATABASE
        or refusal.delivery is not None
        or refusal.leaked_key is not None
    )
    await turn.enter(to_database=to_database)
    try:
        if to_database:
            if refusal.delivery is not None:
                means.check_room()
            again = refusal.delivery is not None and refusal.claims is not None
            still = partial(_check_still, means, recheck_key)
            return await means.decide(Asked(refusal, None, still) if again else Asked(refusal))
        if refusal.stands_for:
            _, entry = no_entry(refusal, refusal.refuse, None)
            shard = shard_of(refusal.service_provider_id)
            check_reply(await means.evaluate(NOTE, noting(shard, basis.tenure.epoch, entry)))
    finally:
        turn.leave()
    means.count("denied", refusal.refuse.error, refusal.refuse.reason or "")
    return refusal.refuse


def _answer(outcome: Outcome, fresh_nonce: str | None) -> Answer:
    """The answer of an outcome that is committed, a yes with the nonce to use next where there is a new one.

    Raises IdempotencyMismatchError, which is an HTTP error.
    """
    body = outcome.body if isinstance(outcome, Recalled) else body_of(outcome)
    if body.get("error") == IdempotencyMismatchError.code:
        error = IdempotencyMismatchError(body["error_description"])
        # Its event was committed with the spent proof; the edge must not write a second one.
        error.recorded = True
        raise error
    if body["valid"] and fresh_nonce is not None:
        # Never stored with the answer: what is given again brings the nonce of its own time.
        return Answer({**body, "nonce": fresh_nonce})
    return Answer(body)


def check_key(
    means: Means, keys: Mapping[str, TokenKey], untrusted_token: str, audience: str, now: datetime
) -> None:
    """Verify the token of a call that waited again, if the keys are no longer `keys`. From any thread.

    Raises TemporarilyUnavailableError where the present keys do not verify it: the next try is told the reason.
    """
    present = means.token_keys()
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
        raise TemporarilyUnavailableError("The key of this token was changed meanwhile. Try again.") from None


def _check_still(means: Means, recheck_key: Callable[[], None]) -> None:
    """Right before a decision in the database, for which it waited in a queue."""
    means.look()
    recheck_key()


def _withhold(call: StoreCall, known: Known | None, made: Plan, outcome: Outcome) -> None:
    """Record that this yes, whose event the script wrote, is not given. Raises django.db errors."""
    if isinstance(outcome, Permit) and known is not None:
        with transaction.atomic():
            record_drafts([events.withheld(call, made.event_id, known.human_id)])


def _set_free(means: Means, call: StoreCall, known: Known | None, spent: Spent) -> None:
    """Give back the use of a rate, if one was set aside."""
    if spent.reserved_us is not None:
        means.afterwards(_give_back(means, giving_back(call, known, spent)))


async def _give_back(means: Means, called: Called) -> None:
    try:
        await means.evaluate(GIVE_BACK, called)
    except TemporarilyUnavailableError:
        # The grant waits one interval longer than needed; no limit is passed.
        logger.warning("a use of a rate that was set aside could not be given back")


async def recorded(
    means: Means,
    error: AgentAuthError,
    service_provider: ServiceProvider,
    actor: Actor,
    now: datetime,
    route: str,
) -> AgentAuthError:
    """`error`, whose one event is written now if `verify` wrote none; that this is unavailable, where it cannot be written."""
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
        await means.run(record)
    except TemporarilyUnavailableError as unavailable:
        return unavailable
    return error
