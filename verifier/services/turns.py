"""Questions of batches: those of one agent in their order, and no more of all of them at once than leaves room for others."""

import asyncio
from collections.abc import Callable
from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError

# Questions of all batches that are under way at once: there is room for others beside them, in the lane and at Redis.
MAX_UNDER_WAY: Final = 128
# And those that wait for their turn, each with what was made of it.
MAX_BEGUN: Final = 2048
# A database that is away answers each question only after its time limit: after so many in a row the rest is not tried.
FAULTS_IN_A_ROW: Final = 3
NOT_TRIED: Final = "This was not tried: the service does not answer right now."
# How long (s) a question waits for its turn among those of all batches.
_TURN_SECONDS: Final = 5
# How long (s), before that, for room in the lane, so that no batch fills it by itself.
_ROOM_SECONDS: Final = 5


class Turn:
    """The turn of a call outside a batch: it waits for no other question."""

    async def comes(self, queue: str) -> bool:
        """Wait for the question before it in this queue; whether it may have waited. Raises TemporarilyUnavailableError."""
        return False

    async def enter(self, *, to_database: bool) -> None:
        """Be one of those under way; `leave` ends it. Raises TemporarilyUnavailableError."""

    def leave(self) -> None:
        """Let another one enter."""

    def pass_on(self) -> None:
        """Let the next question of the queue come. Again it does nothing."""


ALONE: Final = Turn()


class Faults:
    """How many questions of one batch were hit by a fault in a row."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def ended(self, *, fault: bool) -> None:
        """One more is answered."""
        self.in_a_row = self.in_a_row + 1 if fault else 0

    def check(self) -> None:
        """Raises TemporarilyUnavailableError where there were so many that the rest is not tried."""
        if self.in_a_row >= FAULTS_IN_A_ROW:
            raise TemporarilyUnavailableError(NOT_TRIED)


class Gate:
    """What all batches of one event loop have together. `has_room`: whether the lane has room for more of a batch."""

    def __init__(self, has_room: Callable[[], bool]) -> None:
        self._has_room = has_room
        self._under_way = asyncio.Semaphore(MAX_UNDER_WAY)
        self._begun = asyncio.Semaphore(MAX_BEGUN)

    async def begin(self) -> bool:
        """Whether there is room for one more in memory; then `end` gives it back."""
        return await _taken(self._begun)

    def end(self) -> None:
        """It is answered."""
        self._begun.release()

    async def enter(self, *, to_database: bool) -> None:
        """Be under way; then `leave` ends it. Raises TemporarilyUnavailableError."""
        until = asyncio.get_running_loop().time() + _ROOM_SECONDS
        while to_database and not self._has_room() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 — it is the pace that changes, by itself
            await asyncio.sleep(0.01)
        if not await _taken(self._under_way):
            raise TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

    def leave(self) -> None:
        """Let the next one enter."""
        self._under_way.release()


class Turns:
    """The questions of one batch: those of one agent go on in the order they are in, whatever road each of them takes."""

    def __init__(self, gate: Gate, faults: Faults) -> None:
        self.gate, self.faults = gate, faults
        # Of each queue: its last question, passed on.
        self.last: dict[str, asyncio.Future[None]] = {}

    def one(self) -> Turn:
        """The turn of the next question."""
        return _OneOfMany(self)


class _OneOfMany(Turn):
    def __init__(self, batch: Turns) -> None:
        self._batch = batch
        self._entered = False
        self._passed_on: asyncio.Future[None] | None = None

    async def comes(self, queue: str) -> bool:
        before = self._batch.last.get(queue)
        self._passed_on = self._batch.last[queue] = asyncio.get_running_loop().create_future()
        if before is not None:
            await before
        self._batch.faults.check()
        return True

    async def enter(self, *, to_database: bool) -> None:
        await self._batch.gate.enter(to_database=to_database)
        self._entered = True

    def leave(self) -> None:
        if self._entered:
            self._entered = False
            self._batch.gate.leave()

    def pass_on(self) -> None:
        if self._passed_on is not None and not self._passed_on.done():
            self._passed_on.set_result(None)


async def _taken(places: asyncio.Semaphore) -> bool:
    if not places.locked():
        return await places.acquire()
    try:
        async with asyncio.timeout(_TURN_SECONDS):
            return await places.acquire()
    except TimeoutError:
        return False
