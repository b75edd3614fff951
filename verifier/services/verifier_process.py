"""Verification in the verifier process: cached state, one Redis connection, group commit."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit.services import Actor
from registry.models import ServiceProvider
from verifier import verification
from verifier.requests import VerifyRequest
from verifier.services import introspection, replay_cache_lease
from verifier.services.batch import answer_one, error_body
from verifier.services.batch_fairness import NOT_TRIED, BatchLimiter, BatchOrder, FaultCount
from verifier.services.cached_token import CachedToken
from verifier.services.clock_readings import ClockReading
from verifier.services.replay_epoch_keeper import EpochKeeperThread
from verifier.services.replay_epochs import ReplayEpoch
from verifier.services.state_cache import StateCache
from verifier.stores import ProviderKey
from verifier.stores.acknowledged_events import read_acknowledged
from verifier.stores.database_decisions import DecisionRequest, Outcome
from verifier.stores.group_commit import GroupCommitter
from verifier.stores.lua_scripts import Reply, Script
from verifier.stores.redis_decisions import ScriptCall
from verifier.stores.redis_servers import Servers
from verifier.verification import VerifyAnswer

# Requests of a batch started without yielding to the event loop: half a millisecond.
_AT_A_TIME: Final = 8

T = TypeVar("T")
# Called with (kind of decision, error, reason) for decisions that no commit of their event counts.
Count = Callable[[str, str, str], None]


class VerifierProcess:
    """The verifier process: its `VerifierRuntime` and operations, bound to one event loop."""

    def __init__(self, *, cached_state: StateCache, servers: Servers | None, count: Count) -> None:
        self.cached_state = cached_state
        self.token_keys = cached_state.token_keys
        self.count = count
        self._servers = servers
        self._committer = GroupCommitter()
        self._keeping = EpochKeeperThread()
        self._afterwards: set[asyncio.Task[None]] = set()
        self._batch_limiter = BatchLimiter(lambda: self._committer.has_room(0.5))

    async def verify(
        self,
        *,
        service_provider: ServiceProvider,
        request: VerifyRequest,
        provider_key: ProviderKey | None = None,
        actor: Actor,
        now: datetime,
    ) -> VerifyAnswer:
        """`verifier.verification.verify`."""
        return await verification.verify(
            self,
            service_provider=service_provider,
            request=request,
            provider_key=provider_key,
            actor=actor,
            now=now,
        )

    async def verify_batch(
        self,
        *,
        service_provider: ServiceProvider,
        requests: Sequence[object],
        actor: Actor,
        clock: Callable[[], datetime],
    ) -> list[Mapping[str, Any]]:
        """Answer the requests concurrently; the results are in the order of the requests.

        Requests of one agent are sent one after the other. One that goes to the database delays
        that agent's next one until it is answered.
        """
        faults, asked = FaultCount(), []
        turns = BatchOrder(self._batch_limiter, faults)
        for number, each in enumerate(requests, 1):
            # Do not await between taking a place and creating the task that releases it: if the
            # client disconnects, this may be cancelled.
            if not await self._batch_limiter.begin():
                break
            # Wait here: if each request waited by itself, those of one agent
            # could overtake each other.
            with contextlib.suppress(TemporarilyUnavailableError):
                await self.wait_for_fresh_state()
            one = answer_one(
                self,
                service_provider=service_provider,
                request=each,
                actor=actor,
                now=clock(),
                turn=turns.new_turn(),
                faults=faults,
            )
            task = asyncio.create_task(one)
            task.add_done_callback(lambda _: self._batch_limiter.end())
            asked.append(task)
            if number % _AT_A_TIME == 0:
                # Signatures are verified in the event loop: let other calls in between.
                await asyncio.sleep(0)
        told = await asyncio.gather(*asked)
        return told + [error_body(TemporarilyUnavailableError(NOT_TRIED))] * (
            len(requests) - len(told)
        )

    async def introspect(
        self, *, service_provider: ServiceProvider, untrusted_token: str, now: datetime
    ) -> Mapping[str, Any]:
        """`verifier.services.introspection.introspect`."""
        return await introspection.introspect(
            self, service_provider=service_provider, untrusted_token=untrusted_token, now=now
        )

    async def record_error(
        self,
        error: AgentAuthError,
        service_provider: ServiceProvider,
        actor: Actor,
        now: datetime,
        route: str,
    ) -> AgentAuthError:
        """`verifier.verification.record_error`."""
        return await verification.record_error(self, error, service_provider, actor, now, route)

    # The methods of `VerifierRuntime`.

    def state_read_at(self) -> ClockReading:
        replay_cache_lease.LEASE.check_halt()
        return self.cached_state.state_read_at()

    async def wait_for_fresh_state(self) -> ClockReading:
        replay_cache_lease.LEASE.check_halt()
        return await self.cached_state.wait_for_fresh_state()

    def replay_epoch(self) -> ReplayEpoch:
        return replay_cache_lease.LEASE.last_epoch()

    async def cached_token(self, jti: str) -> CachedToken | None:
        return self.cached_state.held_state(jti) or await self.cached_state.state(jti)

    async def evaluate(self, script: Script, called: ScriptCall) -> Reply:
        if self._servers is None:
            raise TemporarilyUnavailableError("The replay cache is unavailable. Try again shortly.")
        return read_acknowledged(script, called, await self._servers.evaluate(script, *called))

    def check_room(self) -> None:
        self._committer.check_room()

    async def decide(self, asked: DecisionRequest) -> Outcome:
        return await self._committer.decide(asked)

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        return await self._committer.run(unit, queue=queue)

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._afterwards.add(task)
        task.add_done_callback(self._afterwards.discard)

    # Start and stop.

    async def start(self) -> None:
        """Start; raises TemporarilyUnavailableError if the state cannot be read."""
        await asyncio.get_running_loop().run_in_executor(None, self.cached_state.start)
        self._committer.start()
        self._keeping.start()

    async def stop(self) -> None:
        """Finish background work and the commit queue, then release everything."""
        await asyncio.gather(*self._afterwards)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._committer.stop)
        await loop.run_in_executor(None, self._keeping.stop)
        if self._servers is not None:
            self._servers.close()
        self.cached_state.stop()
