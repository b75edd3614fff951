"""Verification without waiting for the database: state from memory, one script at Redis, the rest through the lane.

The same checks in the same order as `verifier.services.pipeline`, for a process that has a `Follower`, `Servers` and a `Lane`.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from django.conf import settings

from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidTokenError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.token import TokenKey
from audit.faults import fault_point
from audit.services import Actor
from registry.models import ServiceProvider
from registry.services.nonces import nonces_of
from verifier.models import Home
from verifier.requests import VerifyRequest, parse_verify_request
from verifier.services import home
from verifier.services.batch import NOT_TRIED, ROUTE, error_body, record_unasked
from verifier.services.following import Follower
from verifier.services.home import Tenure
from verifier.services.introspection import INACTIVE, answer_for, read_token
from verifier.services.keeper import Keeping
from verifier.services.moment import Moment
from verifier.services.pipeline import TOKENS, Answer, conclude, prepare
from verifier.services.snapshots import Known
from verifier.services.turns import Gate, Place, Turns
from verifier.stores import Delivery, EarlyRefusal, NotDoneError, Permit, Recalled, Refuse, Spent, StoreCall
from verifier.stores.connection import Servers
from verifier.stores.database import Asked
from verifier.stores.entries import no_entry
from verifier.stores.lane import Lane
from verifier.stores.light import Called, check_reply, epoch_of, giving_back, is_light, judging, noting, plan
from verifier.stores.light import conclude as concluded
from verifier.stores.redis import SPARE_SECONDS, check_lease, held, is_unused, withhold
from verifier.stores.scripts import GIVE_BACK, JUDGE, NOTE, Reply, Script, read_reply, shard_of
from verifier.stores.state import is_of
from verifier.stores.told import TOLD

logger = logging.getLogger(__name__)

# Questions of a batch that are begun without a pause: half a millisecond.
_AT_A_TIME = 8
# So long a question of a batch waits for room in the lane (s), so that no batch is too many by itself.
_ROOM_SECONDS = 5

# (kind of decision, error, reason) of each that is not counted by its own event's commit.
Count = Callable[[str, str, str], None]


class LeanVerifier:
    """The services of one process. Made and used in one event loop."""

    def __init__(self, *, follower: Follower, servers: Servers | None, count: Count) -> None:
        self.follower = follower
        self._servers = servers
        self._lane = Lane()
        self._keeping = Keeping()
        self._count = count
        self._giving_back: set[asyncio.Task[None]] = set()
        self._gate = Gate()

    def check_room(self) -> None:
        """Raises TemporarilyUnavailableError where too many calls wait for the database."""
        self._lane.check_room()

    async def verify(
        self,
        *,
        service_provider: ServiceProvider,
        request: VerifyRequest,
        delivery: Delivery | None = None,
        actor: Actor,
        now: datetime,
        turns: Turns | None = None,
    ) -> Answer:
        """`verifier.services.pipeline.verify`, with the same answers and errors; `turns` are a batch's."""
        began = self.follower.fresh()
        tenure = home.LEASE.held()
        if delivery is not None or request.operation_key is not None:
            # The database decides on what is named: where too many wait for it, no signature is checked in vain.
            self.check_room()
        keys = self.follower.token_keys()
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
        still = partial(self._check_key, keys, request.untrusted_token, service_provider.audience, now)
        if isinstance(prepared, EarlyRefusal):
            return conclude(await self._refused(prepared, tenure, turns, still), None)
        if turns is None:
            outcome = await self._judged(prepared, began, None, still)
        else:
            outcome = await self._in_turn(prepared, turns, still)
        return conclude(outcome, prepared.fresh_nonce)

    async def verify_batch(
        self,
        *,
        service_provider: ServiceProvider,
        requests: Sequence[object],
        actor: Actor,
        clock: Callable[[], datetime],
    ) -> list[Mapping[str, Any]]:
        """`verifier.services.batch.verify_batch`: judged in order, but asked about together.

        Those of one agent are sent on one after the other; what goes to the database holds up its next one until it is
        answered.
        """
        turns, asked = Turns(), []
        for number, each in enumerate(requests, 1):
            # Nothing between a place and the task that gives it back: whoever hangs up here may end this.
            if not await self._gate.begin():
                break
            one = asyncio.create_task(self._one_of_batch(service_provider, each, actor, clock, turns))
            one.add_done_callback(lambda _: self._gate.end())
            asked.append(one)
            if number % _AT_A_TIME == 0:
                # Signatures are checked in the loop: others are let in between.
                await asyncio.sleep(0)
        told = await asyncio.gather(*asked)
        return told + [error_body(TemporarilyUnavailableError(NOT_TRIED))] * (len(requests) - len(told))

    async def _admitted(self, *, to_lane: bool) -> None:
        """Wait for a question's turn among those of all batches, and before it for others in the lane if it goes there.

        Raises TemporarilyUnavailableError; otherwise its place is given back by `Gate.leave`.
        """
        until = asyncio.get_running_loop().time() + _ROOM_SECONDS
        while to_lane and not self._lane.has_room(0.5) and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 — it is the pace that changes, by itself
            await asyncio.sleep(0.01)
        await self._gate.enter()

    async def introspect(
        self, *, service_provider: ServiceProvider, untrusted_token: str, now: datetime
    ) -> Mapping[str, Any]:
        """`verifier.services.introspection.introspect`, with the same answers."""
        began = self.follower.fresh()
        home.LEASE.check_halt()
        keys = self.follower.token_keys()
        token = read_token(untrusted_token, keys=keys, service_provider=service_provider, now=now)
        known = None if token is None else await self.follower.state(token.claims.jti)
        self.follower.fresh(0, began)
        if token is None or known is None:
            return INACTIVE
        self._check_key(keys, untrusted_token, service_provider.audience, now)
        return answer_for(token, known.state, service_provider=service_provider, now=now)

    async def _one_of_batch(
        self,
        service_provider: ServiceProvider,
        request: object,
        actor: Actor,
        clock: Callable[[], datetime],
        turns: Turns,
    ) -> Mapping[str, Any]:
        now, fault = clock(), False
        try:
            turns.check()
            asked = parse_verify_request(request)
            answer = await self.verify(
                service_provider=service_provider, request=asked, actor=actor, now=now, turns=turns
            )
        except TemporarilyUnavailableError as error:
            fault = True
            return error_body(error)
        except AgentAuthError as error:
            return error_body(await self._recorded_of_batch(error, service_provider, actor, now))
        finally:
            turns.ended(fault=fault)
        return answer.body

    async def _recorded_of_batch(
        self, error: AgentAuthError, service_provider: ServiceProvider, actor: Actor, now: datetime
    ) -> AgentAuthError:
        """`recorded`, in its turn; where that does not come, that is what the question is told, and the others theirs."""
        try:
            await self._admitted(to_lane=True)
        except TemporarilyUnavailableError as unavailable:
            return unavailable
        try:
            return await self.recorded(error, service_provider, actor, now, ROUTE)
        finally:
            self._gate.leave()

    async def recorded(
        self,
        error: AgentAuthError,
        service_provider: ServiceProvider,
        actor: Actor,
        now: datetime,
        route: str,
    ) -> AgentAuthError:
        """The refusal of what came to no decision, on record; that it is unavailable, where it cannot be recorded."""
        try:
            await self._lane.run(partial(record_unasked, error, service_provider, actor, now, route))
        except TemporarilyUnavailableError as unavailable:
            return unavailable
        return error

    def _check_key(
        self, keys: Mapping[str, TokenKey], untrusted_token: str, audience: str, now: datetime
    ) -> None:
        """For whoever waited since the token was proved by `keys`. From any thread.

        Raises TemporarilyUnavailableError where it is not by those of now: whoever asks again hears what is wrong with it.
        """
        self.follower.fresh()
        present = self.follower.token_keys()
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
            raise TemporarilyUnavailableError(
                "The key of this token was changed meanwhile. Try again."
            ) from None

    async def _in_turn(
        self, call: StoreCall, turns: Turns, still: Callable[[], None]
    ) -> Permit | Refuse | Recalled:
        """One of a batch."""
        place = turns.place(call.queue)
        try:
            await place.come()
            turns.check()
            return await self._judged(call, self.follower.fresh(), place, still)
        finally:
            place.leave()

    async def _judged(
        self, call: StoreCall, began: Moment, place: Place | None, still: Callable[[], None]
    ) -> Permit | Refuse | Recalled:
        """`still` is asked before anything is decided: the call may have waited."""
        redis, jti = call.tenure.kind == Home.Kind.REDIS, call.claims.jti
        # In the database it is read there, with everything else.
        known = self.follower.held_state(jti) if redis else None
        if redis and known is None:
            known = await self.follower.state(jti)
        if known is not None and not is_of(known.state, call.claims, call.service_provider_id):
            known = None
        light = redis and is_light(call, known)
        if place is not None:
            await self._admitted(to_lane=not light)
        try:
            still()
            if light:
                return await self._lightly(call, known, began, place)
            return await self._durably(call, known, still)
        finally:
            if place is not None:
                self._gate.leave()

    async def _lightly(
        self, call: StoreCall, known: Known | None, began: Moment, place: Place | None
    ) -> Permit | Refuse:
        """In Redis. `began` is when the look began that what is `known` is as of."""
        made = plan(call, known)
        # What the script decides is in the log, so it is not asked for what could not be told any more.
        self.follower.fresh(SPARE_SECONDS, began)
        home.LEASE.held(SPARE_SECONDS)
        if place is not None:
            # Scripts for one grant run in the order they are sent in, and this one is sent before anybody else's turn.
            place.leave()
        reply = await self._evaluate(JUDGE, made.called)
        fault_point("lean.after_judge")
        outcome = concluded(call, known, made, reply)
        try:
            # While Redis was asked, what is known may have grown too old all the same, or the home is being left.
            self.follower.fresh(0, began)
            check_lease(call.tenure)
        except TemporarilyUnavailableError:
            await self._lane.run(partial(withhold, call, known, made, outcome), queue=call.queue)
            raise
        if isinstance(outcome, Refuse):
            self._count("denied", outcome.error, outcome.reason or "")
        else:
            self._count("rehearsed" if call.dry_run else "allowed", "", "")
        return outcome

    async def _durably(
        self, call: StoreCall, known: Known | None, still: Callable[[], None]
    ) -> Permit | Refuse | Recalled:
        """In the database; before it, where proofs are in Redis, the proof."""
        self._lane.check_room()
        if call.tenure.kind == Home.Kind.DATABASE:
            return await self._lane.decide(Asked(call, None, still))
        spent = held(await self._evaluate(JUDGE, judging(call, known, mode=b"hold", entry=b"")))
        fault_point("lean.after_hold")
        try:
            outcome = await self._lane.decide(Asked(call, spent, still))
        except NotDoneError:
            # A call with a name finds its use still set aside when it is asked again.
            if call.delivery is None:
                self._set_free(call, known, spent)
            raise
        fault_point("lean.after_commit")
        if is_unused(spent, outcome):
            self._set_free(call, known, spent)
        return outcome

    def _set_free(self, call: StoreCall, known: Known | None, spent: Spent) -> None:
        """Give back the use of a rate, if one was set aside, while the caller has his answer."""
        if spent.reserved_us is not None:
            task = asyncio.create_task(self._give_back(call, known, spent))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def _give_back(self, call: StoreCall, known: Known | None, spent: Spent) -> None:
        try:
            await self._evaluate(GIVE_BACK, giving_back(call, known, spent))
        except TemporarilyUnavailableError:
            # The grant waits one interval longer than it need, which wrongs nobody.
            logger.warning("a use of a rate that was set aside could not be given back")

    async def _refused(
        self, refusal: EarlyRefusal, tenure: Tenure, turns: Turns | None, still: Callable[[], None]
    ) -> Permit | Refuse | Recalled:
        """The one event of a refusal in steps 3 to 5; where the call has a name it may be an answer that is given again."""
        redis = tenure.kind == Home.Kind.REDIS
        to_lane = not redis or refusal.delivery is not None or refusal.leaked_key is not None
        if turns is not None:
            await self._admitted(to_lane=to_lane)
        try:
            if to_lane:
                again = refusal.delivery is not None and refusal.claims is not None
                return await self._lane.decide(Asked(refusal, None, still) if again else Asked(refusal))
            if refusal.stands_for:
                _, entry = no_entry(refusal, refusal.refuse, None)
                reply = await self._evaluate(
                    NOTE, noting(shard_of(refusal.service_provider_id), tenure.epoch, entry)
                )
                check_reply(reply)
        finally:
            if turns is not None:
                self._gate.leave()
        self._count("denied", refusal.refuse.error, refusal.refuse.reason or "")
        return refusal.refuse

    async def _evaluate(self, script: Script, called: Called) -> Reply:
        if self._servers is None:
            raise TemporarilyUnavailableError("The memory of spent proofs is not here. Try again shortly.")
        reply = read_reply(await self._servers.evaluate(script, *called))
        if script is not GIVE_BACK:
            TOLD.hear(epoch_of(called), called[0], reply.number)
        return reply

    async def start(self) -> None:
        """Begin; raises TemporarilyUnavailableError where the state cannot be read."""
        await asyncio.get_running_loop().run_in_executor(None, self.follower.start)
        self._lane.start()
        self._keeping.start()

    async def stop(self) -> None:
        """Give back what was set aside, finish what was handed in, let go of everything."""
        await asyncio.gather(*self._giving_back)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._lane.stop)
        await loop.run_in_executor(None, self._keeping.stop)
        if self._servers is not None:
            self._servers.close()
        self.follower.stop()
