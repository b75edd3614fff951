"""Questions of batches: those of one agent in their order, and no more of all of them at once than leaves room for others."""

import asyncio
from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.services.batch import FAULTS_IN_A_ROW, NOT_TRIED

# Questions of all batches that are under way at once: there is room for others beside them, in the lane and at Redis.
MAX_UNDER_WAY: Final = 128
# And those that wait for their turn, each with what was made of it.
MAX_BEGUN: Final = 2048
# So long a question waits for its turn among those of all batches (s).
_TURN_SECONDS: Final = 5


class Place:
    """One question's place among those of its agent, in one batch."""

    def __init__(self, before: asyncio.Future[None] | None) -> None:
        self._before = before
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def come(self) -> None:
        """Wait for the one before."""
        if self._before is not None:
            await self._before

    def leave(self) -> None:
        """Let the next one come. Again it does nothing."""
        if not self.left.done():
            self.left.set_result(None)


class Turns:
    """Within one batch: the questions of one agent go on in the order they are in, whatever road each of them takes."""

    def __init__(self) -> None:
        self._last: dict[str, Place] = {}
        self._faults = 0

    def place(self, queue: str) -> Place:
        """Behind all that were given one before."""
        last = self._last.get(queue)
        mine = self._last[queue] = Place(None if last is None else last.left)
        return mine

    def ended(self, *, fault: bool) -> None:
        """One more is answered."""
        self._faults = self._faults + 1 if fault else 0

    def check(self) -> None:
        """Raises TemporarilyUnavailableError where so many were hit by a fault that the rest is not tried."""
        if self._faults >= FAULTS_IN_A_ROW:
            raise TemporarilyUnavailableError(NOT_TRIED)


class Gate:
    """What all batches of one event loop have together."""

    def __init__(self) -> None:
        self._under_way = asyncio.Semaphore(MAX_UNDER_WAY)
        self._begun = asyncio.Semaphore(MAX_BEGUN)

    async def begin(self) -> bool:
        """Whether there is room for one more in memory; then `end` gives it back."""
        return await _taken(self._begun)

    def end(self) -> None:
        """It is answered."""
        self._begun.release()

    async def enter(self) -> None:
        """Be under way; then `leave` ends it. Raises TemporarilyUnavailableError."""
        if not await _taken(self._under_way):
            raise TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

    def leave(self) -> None:
        """Let the next one enter."""
        self._under_way.release()


async def _taken(places: asyncio.Semaphore) -> bool:
    if not places.locked():
        return await places.acquire()
    try:
        async with asyncio.timeout(_TURN_SECONDS):
            return await places.acquire()
    except TimeoutError:
        return False
