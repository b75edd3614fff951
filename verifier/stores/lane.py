"""Decisions that must be on record before they are told: several of them in one commit of the database."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connection,
)

from agentauth.protocol.errors import TemporarilyUnavailableError
from registry.services.idempotency import waited_too_long
from verifier.services.connecting import STATEMENT_SECONDS, use_own_connection
from verifier.stores import HeldUpError, NotDoneError, busy
from verifier.stores.database import Asked, Outcome, UncertainError, decide_together

logger = logging.getLogger(__name__)

T = TypeVar("T")

# So many share one commit at most, and no more than take so long by how fast it goes just now: each holds the lock of its
# queue until all are written, and is told no earlier.
_TOGETHER: Final = 32
_TOGETHER_SECONDS: Final = 0.2
# Beyond this they would wait for longer than their callers do.
MAX_WAITING: Final = 512
# Who would wait for longer than this, by how fast it goes just now, is told at once to come again.
MOST_SECONDS: Final = 0.6
# No caller waits longer, though each statement of a decision has a limit of its own (`connecting.STATEMENT_SECONDS`).
# What came of the call is then not known.
WAIT_SECONDS: Final = 5
# How long a decision waits for a row (s): a short transaction is over by then, and PostgreSQL looks for deadlocks after a second.
_HELD_UP_SECONDS: Final = 0.005
# Who met a lock is tried again for so long, as our connections wait by themselves; not before it has rested, and never with more
# than so many of its like, so that they take little of the time of others.
_PATIENCE_SECONDS: Final = STATEMENT_SECONDS * 4 / 5
_REST_SECONDS: Final = 0.03
_MOST_HELD_UP: Final = 4


@dataclass(slots=True, eq=False)
class _Job:
    # The queue of its counters (`StoreCall.queue`): its jobs are together, since they need the same lock.
    order: str
    # A call to decide, or anything else that is to be done in a transaction of its own.
    work: Asked | Callable[[], Any]
    answer: asyncio.Future[Any]
    # By the monotonic clock: until when it is tried again, since it met a lock, and when next.
    until: float = 0.0
    rests_until: float = 0.0


class _Line:
    """The jobs that wait for a thread.

    A queue is one thread's at a time: another that took more of its jobs could only wait for the lock the first one holds,
    while those of other queues wait behind it.
    """

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._taken: set[str] = set()
        self._number_taken = 0
        # Whether one of those that wait rests.
        self._rests = False
        self._ends = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many wait or are under way."""
        return len(self._jobs) + self._number_taken

    def put(self, job: _Job) -> bool:
        """Whether there was room."""
        with self._changed:
            if len(self._jobs) >= MAX_WAITING:
                return False
            self._jobs.append(job)
            self._changed.notify()
        return True

    def take(self, most: int) -> list[_Job]:
        """The first whose queue is free, as soon as there are any; none at the end. Each goes back through `done`."""
        with self._changed:
            while not (jobs := self._free(most)):
                if self._ends and not self._jobs:
                    return []
                self._changed.wait(_REST_SECONDS if self._rests else None)
            self._taken.update(job.order for job in jobs)
            self._number_taken += len(jobs)
            return jobs

    def done(self, jobs: list[_Job], again: list[_Job]) -> None:
        """Let others take what is of the same queues. `again`: those of them that are to be tried again."""
        with self._changed:
            self._taken.difference_update(job.order for job in jobs)
            self._number_taken -= len(jobs)
            self._jobs.extend(again)
            self._changed.notify_all()

    def end(self) -> None:
        """`take` returns nothing once no job waits."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def _free(self, most: int) -> list[_Job]:
        free: list[_Job] = []
        others: deque[_Job] = deque()
        now, held_up, self._rests = time.monotonic(), 0, False
        for job in self._jobs:
            rests = job.rests_until > now
            self._rests = self._rests or rests
            # A job of no queue holds up no other.
            mine = len(free) < most and not rests and (not job.order or job.order not in self._taken)
            if mine and job.until:
                held_up += 1
                mine = held_up <= _MOST_HELD_UP
            (free if mine else others).append(job)
        self._jobs = others
        return free


class Lane:
    """Threads that decide in the database for an event loop, several calls in one transaction.

    Where a transaction fails, each of its calls is decided again in one of its own, and its error is its own answer. A call
    whose lock another process holds is tried again after the others were answered: one thread waits for one queue, the
    rest are tried every 30 ms. So a lock that is held for long stops one thread at most.
    """

    def __init__(self, *, threads: int = 2) -> None:
        self._line = _Line()
        # Held by the thread that decides: the more calls wait meanwhile, the more share its next commit.
        self._turn = threading.Lock()
        # How long one unit takes, as of the last commits (s).
        self._each = 0.0
        # Held by the thread that waits for a lock.
        self._patience = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what was handed in, then end."""
        self._line.end()
        for thread in self._threads:
            thread.join()

    def check_room(self) -> None:
        """Before anything of a call is done. Raises TemporarilyUnavailableError where it would wait for too long."""
        if not self.has_room():
            raise NotDoneError("Too many calls at once. Try again shortly.")

    def has_room(self, share: float = 1.0) -> bool:
        """Whether a new call would wait for no more than this share of MOST_SECONDS."""
        return len(self._line) * self._each <= MOST_SECONDS * share

    async def decide(self, asked: Asked) -> Outcome:
        """What comes of a call, committed. Raises what it ends in, and as `run`."""
        outcome: Outcome = await self._done_for(_Job(asked.call.queue, asked, _answer()))
        return outcome

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        """The outcome of `unit`, which has a transaction of its own, after the calls of `queue` that came before. Raises
        what it raises, and TemporarilyUnavailableError (NotDoneError where that is so).
        """
        outcome: T = await self._done_for(_Job(queue, unit, _answer()))
        return outcome

    async def _done_for(self, job: _Job) -> Any:
        if not self._line.put(job):
            raise NotDoneError("Too many decisions wait. Try again shortly.")
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await job.answer
        except TimeoutError:
            raise TemporarilyUnavailableError(
                "The decision was not written in time. Try again shortly."
            ) from None

    def _work(self) -> None:
        use_own_connection("agentauth-lane", wait_seconds=_HELD_UP_SECONDS)
        while self._decide():
            pass
        connection.close()

    def _most_together(self) -> int:
        return max(1, min(_TOGETHER, int(_TOGETHER_SECONDS / max(self._each, 0.001))))

    def _decide(self) -> bool:
        """Decide what waits; False at the end."""
        mine: list[_Job] = []
        with self._turn:
            jobs = self._line.take(self._most_together())
            if not jobs:
                return False
            began, held_up = time.monotonic(), list[_Job]()
            try:
                held_up = _decided_and_told(jobs)
                self._went(len(jobs), time.monotonic() - began)
                if held_up and self._patience.acquire(blocking=False):
                    # Those of one queue stay with the thread that waits for it.
                    mine = [
                        job for job in held_up if job is held_up[0] or job.order == held_up[0].order != ""
                    ]
            finally:
                self._done(
                    [job for job in jobs if job not in mine], [job for job in held_up if job not in mine]
                )
        if mine:
            self._wait_for(mine)
        return True

    def _wait_for(self, jobs: list[_Job]) -> None:
        held_up = jobs
        try:
            held_up = _decided_and_told(jobs, max(jobs[0].until - time.monotonic(), _HELD_UP_SECONDS))
        finally:
            self._patience.release()
            self._done(jobs, held_up)

    def _went(self, count: int, seconds: float) -> None:
        # The last four count most.
        self._each += (min(seconds, WAIT_SECONDS) / count - self._each) / 4

    def _done(self, jobs: list[_Job], again: list[_Job]) -> None:
        for job in again:
            job.rests_until = time.monotonic() + _REST_SECONDS
        self._line.done(jobs, again)


def _answer() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _decided_and_told(waiting: list[_Job], patience: float = 0.0) -> list[_Job]:
    """Do the jobs and answer their callers; returns those that are to be tried again."""
    # A job whose caller has given up is not begun.
    jobs = [job for job in waiting if not job.answer.cancelled()]
    if not jobs:
        return []
    close_old_connections()
    asked = {job: job.work for job in jobs if isinstance(job.work, Asked)}
    outcomes = dict(zip(asked, decided([*asked.values()], patience=patience), strict=True))
    outcomes |= {job: _outcome(job.work) for job in jobs if not isinstance(job.work, Asked)}
    return [job for job in jobs if _is_held_up(job, outcomes[job])]


def _is_held_up(job: _Job, outcome: Any) -> bool:
    """Whether there is time to try again; otherwise it is told what came of it."""
    if isinstance(outcome, HeldUpError):
        now = time.monotonic()
        job.until = job.until or now + _PATIENCE_SECONDS
        if now < job.until:
            return True
        outcome = outcome.told
    job.answer.get_loop().call_soon_threadsafe(_tell, job.answer, outcome)
    return False


def decided(asked: Sequence[Asked], *, patience: float = 0.0) -> list[Any]:
    """What comes of the calls, in one transaction if that succeeds: outcomes, or the exceptions they end in.

    It cannot deadlock: a transaction waits for no queue, or, with `patience` seconds, for one queue while it holds nothing.
    For a row, which the jobs or the release before may hold, it waits for a few milliseconds.
    """
    if len(asked) > 1:
        try:
            return [*decide_together(asked, patience=patience)]
        except UncertainError as error:
            logger.exception("durable decisions were not committed")
            return [error for _ in asked]
        except Exception as error:  # noqa: BLE001 — nothing was done; the one that failed fails again, alone
            if patience and _met_a_lock(error):
                return [HeldUpError(busy()) for _ in asked]
    return [_outcome(partial(_decided_alone, each, patience)) for each in asked]


def _decided_alone(asked: Asked, patience: float) -> Any:
    (outcome,) = decide_together([asked], patience=patience)
    return outcome


def _outcome(unit: Callable[[], Any]) -> Any:
    try:
        return unit()
    except (DatabaseError, InterfaceError) as error:
        if _met_a_lock(error):
            return HeldUpError(busy())
        logger.exception("a decision could not reach the database")
        return _unavailable(error)
    except Exception as error:  # noqa: BLE001 — it is this call's answer, and the next call's business is its own
        return HeldUpError(error) if _met_a_lock(error) else error


def _met_a_lock(error: BaseException | None) -> bool:
    """Whether it waited for a lock for too long, whatever was made of that since."""
    while error is not None:
        if isinstance(error, OperationalError) and waited_too_long(error):
            return True
        error = error.__cause__
    return False


def _unavailable(cause: Exception) -> TemporarilyUnavailableError:
    error = TemporarilyUnavailableError()
    error.__cause__ = cause
    return error


def _tell(answer: asyncio.Future[Any], outcome: Any) -> None:
    if answer.cancelled():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
