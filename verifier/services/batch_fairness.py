"""Batches: requests of one agent run in order, and all batches together leave room for others."""

import asyncio
from collections.abc import Callable
from typing import Final

from agentauth.protocol.errors import TemporarilyUnavailableError

# Requests of all batches that run at once. Leaves room for other calls in the commit queue and at
# Redis.
MAX_UNDER_WAY: Final = 128
# Requests of all batches in memory, running or waiting for their turn.
MAX_BEGUN: Final = 2048
# An unavailable database costs each request its full timeout: after this many faults in a row the
# rest of the batch is not tried.
FAULTS_IN_A_ROW: Final = 3
NOT_TRIED: Final = "This call was not tried: the service is unavailable right now."
# How long (s) a request waits for a place in memory, and again for a place to run.
_TURN_SECONDS: Final = 5
# How long (s) it waits for room in the commit queue before it runs, so that no batch fills that
# queue alone.
_ROOM_SECONDS: Final = 5


class BatchSlot:
    """The turn of a call outside a batch: it waits for nothing."""

    async def wait_for_previous(self, queue: str) -> bool:
        """Wait for the request before it in `queue`; return whether it may have waited.

        Raises TemporarilyUnavailableError after too many faults in a row.
        """
        return False

    async def enter(self, *, to_database: bool) -> None:
        """Start to run, until `leave`. Raises TemporarilyUnavailableError without room in time."""

    def leave(self) -> None:
        """Let another request run."""

    def release_next(self) -> None:
        """Let the next request of the queue go on. Idempotent."""


ALONE: Final = BatchSlot()


class FaultCount:
    """Counts how many requests of one batch in a row met a fault."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def count_answer(self, *, fault: bool) -> None:
        """Count one answered request."""
        self.in_a_row = self.in_a_row + 1 if fault else 0

    def check(self) -> None:
        """Raise TemporarilyUnavailableError after FAULTS_IN_A_ROW faults in a row."""
        if self.in_a_row >= FAULTS_IN_A_ROW:
            raise TemporarilyUnavailableError(NOT_TRIED)


class BatchLimiter:
    """Limits all batches of one event loop. `has_room`: whether the commit queue has room."""

    def __init__(self, has_room: Callable[[], bool]) -> None:
        self._has_room = has_room
        self._under_way = asyncio.Semaphore(MAX_UNDER_WAY)
        self._begun = asyncio.Semaphore(MAX_BEGUN)

    async def begin(self) -> bool:
        """Take a place in memory, until `end`; False if none is free in time."""
        return await _take_place(self._begun)

    def end(self) -> None:
        """Release the place of an answered request."""
        self._begun.release()

    async def enter(self, *, to_database: bool) -> None:
        """Take a place to run, until `leave`. Raises TemporarilyUnavailableError on timeout."""
        until = asyncio.get_running_loop().time() + _ROOM_SECONDS
        while to_database and not self._has_room() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 — no event tells when the commit queue has room
            await asyncio.sleep(0.01)
        if not await _take_place(self._under_way):
            raise TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

    def leave(self) -> None:
        """Release the place to run."""
        self._under_way.release()


class BatchOrder:
    """Keeps the requests of one agent in a batch in their order, be they light or durable."""

    def __init__(self, gate: BatchLimiter, faults: FaultCount) -> None:
        self.gate, self.faults = gate, faults
        # By queue: set once the queue's last request has passed its turn on.
        self.last: dict[str, asyncio.Future[None]] = {}

    def one(self) -> BatchSlot:
        """Make the turn of the next request."""
        return _OneOfMany(self)


class _OneOfMany(BatchSlot):
    def __init__(self, batch: BatchOrder) -> None:
        self._batch = batch
        self._entered = False
        self._passed_on: asyncio.Future[None] | None = None

    async def wait_for_previous(self, queue: str) -> bool:
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

    def release_next(self) -> None:
        if self._passed_on is not None and not self._passed_on.done():
            self._passed_on.set_result(None)


async def _take_place(places: asyncio.Semaphore) -> bool:
    if not places.locked():
        return await places.acquire()
    try:
        async with asyncio.timeout(_TURN_SECONDS):
            return await places.acquire()
    except TimeoutError:
        return False
