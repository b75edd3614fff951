"""Verification in the verifier's own process: state from memory, Redis over one connection, the database through the lane."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit.services import Actor
from registry.models import ServiceProvider
from verifier import flow
from verifier.flow import Answer
from verifier.requests import VerifyRequest
from verifier.services import home, introspection
from verifier.services.batch import answer_one, error_body
from verifier.services.following import Follower
from verifier.services.home import Tenure
from verifier.services.keeper import Keeping
from verifier.services.moment import Moment
from verifier.services.snapshots import Known
from verifier.services.turns import NOT_TRIED, Faults, Gate, Turns
from verifier.stores import Delivery
from verifier.stores.connection import Servers
from verifier.stores.database import Asked, Outcome
from verifier.stores.lane import Lane
from verifier.stores.light import Called
from verifier.stores.scripts import Reply, Script
from verifier.stores.told import read_told

# Questions of a batch that are begun without a pause: half a millisecond.
_AT_A_TIME: Final = 8

T = TypeVar("T")
# (kind of decision, error, reason) of each that is not counted by its own event's commit.
Count = Callable[[str, str, str], None]


class LeanVerifier:
    """`verifier.flow.Means` of one process, and what it serves. Made and used in one event loop."""

    def __init__(self, *, follower: Follower, servers: Servers | None, count: Count) -> None:
        self.follower = follower
        self.token_keys = follower.token_keys
        self.count = count
        self._servers = servers
        self._lane = Lane()
        self._keeping = Keeping()
        self._afterwards: set[asyncio.Task[None]] = set()
        self._gate = Gate(lambda: self._lane.has_room(0.5))

    async def verify(
        self,
        *,
        service_provider: ServiceProvider,
        request: VerifyRequest,
        delivery: Delivery | None = None,
        actor: Actor,
        now: datetime,
    ) -> Answer:
        """`verifier.flow.verify`."""
        return await flow.verify(
            self, service_provider=service_provider, request=request, delivery=delivery, actor=actor, now=now
        )

    async def verify_batch(
        self,
        *,
        service_provider: ServiceProvider,
        requests: Sequence[object],
        actor: Actor,
        clock: Callable[[], datetime],
    ) -> list[Mapping[str, Any]]:
        """The answers in the order of the questions, which are judged in order and asked about together.

        Those of one agent are sent on one after the other; what goes to the database holds up its next one until it is
        answered.
        """
        faults, asked = Faults(), []
        turns = Turns(self._gate, faults)
        for number, each in enumerate(requests, 1):
            # Nothing between a place and the task that gives it back: whoever hangs up here may end this.
            if not await self._gate.begin():
                break
            # Here, since those of one agent would overtake each other if they waited for it themselves.
            with contextlib.suppress(TemporarilyUnavailableError):
                await self.caught_up()
            one = answer_one(
                self,
                service_provider=service_provider,
                request=each,
                actor=actor,
                now=clock(),
                turn=turns.one(),
                faults=faults,
            )
            task = asyncio.create_task(one)
            task.add_done_callback(lambda _: self._gate.end())
            asked.append(task)
            if number % _AT_A_TIME == 0:
                # Signatures are checked in the loop: others are let in between.
                await asyncio.sleep(0)
        told = await asyncio.gather(*asked)
        return told + [error_body(TemporarilyUnavailableError(NOT_TRIED))] * (len(requests) - len(told))

    async def introspect(
        self, *, service_provider: ServiceProvider, untrusted_token: str, now: datetime
    ) -> Mapping[str, Any]:
        """`verifier.services.introspection.introspect`."""
        return await introspection.introspect(
            self, service_provider=service_provider, untrusted_token=untrusted_token, now=now
        )

    async def recorded(
        self,
        error: AgentAuthError,
        service_provider: ServiceProvider,
        actor: Actor,
        now: datetime,
        route: str,
    ) -> AgentAuthError:
        """`verifier.flow.recorded`."""
        return await flow.recorded(self, error, service_provider, actor, now, route)

    # What the flow decides with.

    def look(self) -> Moment:
        home.LEASE.check_halt()
        return self.follower.look()

    async def caught_up(self) -> Moment:
        home.LEASE.check_halt()
        return await self.follower.caught_up()

    def tenure(self) -> Tenure:
        return home.LEASE.held()

    async def known(self, jti: str) -> Known | None:
        return self.follower.held_state(jti) or await self.follower.state(jti)

    async def evaluate(self, script: Script, called: Called) -> Reply:
        if self._servers is None:
            raise TemporarilyUnavailableError("The replay cache is not here. Try again shortly.")
        return read_told(script, called, await self._servers.evaluate(script, *called))

    def check_room(self) -> None:
        self._lane.check_room()

    async def decide(self, asked: Asked) -> Outcome:
        return await self._lane.decide(asked)

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        return await self._lane.run(unit, queue=queue)

    def afterwards(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._afterwards.add(task)
        task.add_done_callback(self._afterwards.discard)

    # Its life.

    async def start(self) -> None:
        """Begin; raises TemporarilyUnavailableError where the state cannot be read."""
        await asyncio.get_running_loop().run_in_executor(None, self.follower.start)
        self._lane.start()
        self._keeping.start()

    async def stop(self) -> None:
        """Give back what was set aside, finish what was handed in, let go of everything."""
        await asyncio.gather(*self._afterwards)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._lane.stop)
        await loop.run_in_executor(None, self._keeping.stop)
        if self._servers is not None:
            self._servers.close()
        self.follower.stop()
