"""Loads missing cache entries in threads: one query serves many callers, and no result is stale."""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from django.db import DatabaseError, InterfaceError, close_old_connections, connections

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.services.short_timeout_connection import use_own_connection
from verifier.services.state_change_feed import Change

logger = logging.getLogger(__name__)

# How long (s) a caller waits for a load.
WAIT_SECONDS: Final = 2.0
# How often a value is loaded, if it keeps changing meanwhile, before its callers are told to retry.
MOST_LOADS: Final = 3

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Batch(Generic[K]):
    """The keys of one query, and the changes heard since it was queued."""

    keys: list[K]
    # Hashes of the subjects.
    heard: set[int] = field(default_factory=set)
    everything: bool = False


@dataclass(slots=True, eq=False)
class _Asked(Generic[V]):
    """A value that callers wait for; `loads` counts the loads that were stale on arrival."""

    answer: asyncio.Future[V | None]
    loads: int = 0


class BatchLoader(Generic[K, V]):
    """Loads values by `fetch` in threads (one connection each) for `keep` and all callers.

    `fetch` gets up to `batch` keys. A key it leaves out does not exist; an exception it returns for
    a key is raised to that key's callers. A thread pauses for `pause` s after each query. All but
    `fetch` runs in the event loop's thread. A value is loaded again if something it rests on
    changed during the load: it may be older than the commit of a change, but not older than the
    notification of it.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[K]], Mapping[K, V | Exception]],
        *,
        keep: Callable[[K, V], None],
        rests_on: Callable[[V], Sequence[int]],
        threads: int,
        batch: int,
        most_waiting: int,
        pause: float = 0,
    ) -> None:
        self._fetch = fetch
        self._keep = keep
        self._rests_on = rests_on
        self._threads = threads
        self._batch = batch
        self._most_waiting = most_waiting
        self._pause = pause
        self._asked: dict[K, _Asked[V]] = {}
        self._waiting: deque[K] = deque()
        self._under_way: list[_Batch[K]] = []
        self._jobs: queue.SimpleQueue[_Batch[K] | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads, for callers in `loop`."""
        self._loop = loop
        for number in range(self._threads):
            worker = threading.Thread(
                target=self._work, name=f"{self._fetch.__name__}-{number}", daemon=True
            )
            worker.start()
            self._workers.append(worker)

    def stop(self, seconds: float) -> None:
        """Stop the threads; waits `seconds` for each. Callers that still wait get no answer."""
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.join(seconds)
        self._workers.clear()

    async def get(self, key: K) -> V | None:
        """Load the value of `key`; None if there is none. Concurrent callers share one load.

        Raises TemporarilyUnavailableError if it cannot be loaded in time, and the exception that
        `fetch` returns for this key.
        """
        asked = self._asked.get(key)
        if asked is None:
            asked = self._ask(key)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                # Shielded: a caller that is cancelled must not cancel the load of the others.
                return await asyncio.shield(asked.answer)
        except TimeoutError:
            raise TemporarilyUnavailableError from None

    def hear(self, changes: Sequence[Change], *, everything: bool) -> None:
        """Mark running loads that rest on these changes as possibly stale."""
        for batch in self._under_way:
            batch.heard.update(map(hash, changes))
            batch.everything |= everything

    def _ask(self, key: K) -> _Asked[V]:
        if len(self._asked) >= self._most_waiting:
            raise TemporarilyUnavailableError
        self._asked[key] = asked = _Asked[V](self._loop.create_future())
        if not self._waiting:
            # Not at once, so that further callers in this turn of the loop share the query.
            self._loop.call_soon(self._send)
        self._waiting.append(key)
        return asked

    def _send(self) -> None:
        while self._waiting and len(self._under_way) < self._threads:
            count = min(self._batch, len(self._waiting))
            batch = _Batch([self._waiting.popleft() for _ in range(count)])
            self._under_way.append(batch)
            self._jobs.put(batch)

    def _take(self, batch: _Batch[K], fetched: Mapping[K, V | Exception] | Exception) -> None:
        for key in batch.keys:
            asked = self._asked[key]
            outcome = fetched if isinstance(fetched, Exception) else fetched.get(key)
            if outcome is not None and not isinstance(outcome, Exception):
                if self._is_old(batch, outcome):
                    asked.loads += 1
                    if asked.loads < MOST_LOADS:
                        self._waiting.append(key)
                        continue
                    outcome = TemporarilyUnavailableError(
                        "This is being changed. Try again shortly."
                    )
                else:
                    self._keep(key, outcome)
            del self._asked[key]
            if isinstance(outcome, Exception):
                asked.answer.set_exception(outcome)
            else:
                asked.answer.set_result(outcome)
        if self._pause:
            self._loop.call_later(self._pause, self._end, batch)
        else:
            self._end(batch)

    def _end(self, batch: _Batch[K]) -> None:
        self._under_way.remove(batch)
        self._send()

    def _is_old(self, batch: _Batch[K], value: V) -> bool:
        return batch.everything or not batch.heard.isdisjoint(self._rests_on(value))

    def _work(self) -> None:
        use_own_connection("agentauth-loads")
        try:
            while (batch := self._jobs.get()) is not None:
                fetched = self._fetch_or_error(batch)
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._take, batch, fetched)
        finally:
            connections.close_all()

    def _fetch_or_error(self, batch: _Batch[K]) -> Mapping[K, V | Exception] | Exception:
        try:
            # Drops a broken connection, so that the query opens a new one.
            close_old_connections()
            return self._fetch(batch.keys)
        except (DatabaseError, InterfaceError):
            logger.exception("state could not be read")
            return TemporarilyUnavailableError()
        except Exception as error:  # noqa: BLE001 — not swallowed: raised to the callers
            return error
