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
# An unavailable database costs each request its full timeout: after this many faults in a row, in
# the order of the answers, the rest of the batch is not tried.
FAULTS_IN_A_ROW: Final = 3
NOT_TRIED: Final = (
    "The registry did not try this request: it is overloaded, or its database or replay cache is"
    " unavailable. Try again shortly."
)
# How long (s) a request waits for a place in memory, and again for a place to run.
_TURN_SECONDS: Final = 5
# How long (s) it waits for room in the commit queue before it runs all the same, so that no batch
# fills that queue alone.
_ROOM_SECONDS: Final = 5


class Turn:
    """When one request may run. This class is for a call outside a batch: it waits for nothing."""

    async def wait_for_previous(self, queue: str) -> bool:
        """Wait for the request before it in `queue`.

        Return whether the caller must read the state's age again: always for a request of a batch.
        Raises TemporarilyUnavailableError after too many faults in a row.
        """
        return False

    async def enter(self, *, to_database: bool) -> None:
        """Start to run, until `leave`. Raises TemporarilyUnavailableError if no place gets free.

        Waits for a place to run. A request that goes to the database first waits for room in the
        commit queue, and goes on without it when that wait times out.
        """

    def leave(self) -> None:
        """Let another request run."""

    def release_next(self) -> None:
        """Let the next request of the queue go on. Idempotent."""


ALONE: Final = Turn()


class FaultCount:
    """Counts how many requests of one batch in a row met a fault."""

    def __init__(self) -> None:
        self.in_a_row = 0
        # Stays true: a request that was already running may still succeed.
        self.stopped = False

    def count_answer(self, *, fault: bool) -> None:
        """Count one answered request."""
        self.in_a_row = self.in_a_row + 1 if fault else 0
        self.stopped = self.stopped or self.in_a_row >= FAULTS_IN_A_ROW

    def check(self) -> None:
        """Raise TemporarilyUnavailableError once FAULTS_IN_A_ROW requests in a row met a fault."""
        if self.stopped:
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
        """As `Turn.enter`."""
        until = asyncio.get_running_loop().time() + _ROOM_SECONDS
        while to_database and not self._has_room() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 — no event tells when the commit queue has room
            await asyncio.sleep(0.01)
        if not await _take_place(self._under_way):
            raise TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

    def leave(self) -> None:
        """Release the place to run."""
        self._under_way.release()


class BatchOrder:
    """Decides one agent's requests in the order of the batch, in Redis or in the database.

    Requests refused before the decision (a bad token or proof, an invalid body) are not ordered.
    """

    def __init__(self, limiter: BatchLimiter, faults: FaultCount) -> None:
        self.limiter, self.faults = limiter, faults
        # By queue: set once the queue's last request has passed its turn on.
        self.last: dict[str, asyncio.Future[None]] = {}

    def new_turn(self) -> Turn:
        """Return the turn of the next request."""
        return _BatchTurn(self)


class _BatchTurn(Turn):
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
        await self._batch.limiter.enter(to_database=to_database)
        self._entered = True

    def leave(self) -> None:
        if self._entered:
            self._entered = False
            self._batch.limiter.leave()

    def release_next(self) -> None:
        if self._passed_on is not None and not self._passed_on.done():
            self._passed_on.set_result(None)


async def _take_place(places: asyncio.Semaphore) -> bool:
    if not places.locked():
        # The usual case: no timer is needed.
        return await places.acquire()
    try:
        async with asyncio.timeout(_TURN_SECONDS):
            return await places.acquire()
    except TimeoutError:
        return False
