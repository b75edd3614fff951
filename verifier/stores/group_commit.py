"""Group commit: decisions that must be durable before they are answered share one commit of the
database.
"""

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
from verifier.services.short_timeout_connection import STATEMENT_SECONDS, use_own_connection
from verifier.stores import HeldUpError, NotDoneError, busy
from verifier.stores.database_decisions import (
    DecisionRequest,
    Outcome,
    UncertainError,
    decide_together,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# At most 32 jobs share a commit, and only as many as fit into 0.2 s at the recent rate: each holds
# the lock of its queue until all are written, and none is answered earlier.
_TOGETHER: Final = 32
_TOGETHER_SECONDS: Final = 0.2
# Beyond this, jobs would wait longer than their callers do.
MAX_WAITING: Final = 512
# Load shedding: a job that would wait longer than this (s), at the recent rate, is refused at once.
MOST_SECONDS: Final = 0.6
# No caller waits longer (s), whatever its statements may take
# (`short_timeout_connection.STATEMENT_SECONDS` each). The outcome of the call is then unknown.
WAIT_SECONDS: Final = 5
# The lock timeout for rows (s): enough for a short transaction, well below PostgreSQL's
# deadlock_timeout of 1 s.
_HELD_UP_SECONDS: Final = 0.005
# A job that hits a lock is retried for 1.6 s, as long as other connections of ours wait; no sooner
# than 30 ms after its last try; and at most four such jobs share a commit, so that retries take
# little time from others.
_PATIENCE_SECONDS: Final = STATEMENT_SECONDS * 4 / 5
_REST_SECONDS: Final = 0.03
_MOST_HELD_UP: Final = 4


@dataclass(slots=True, eq=False)
class _Job:
    # The queue of its counters (`StoreCall.queue`): jobs of one queue need the same lock.
    order: str
    # A call to decide, or a function that has a transaction of its own.
    work: DecisionRequest | Callable[[], Any]
    answer: asyncio.Future[Any]
    # Monotonic seconds: until when it is retried after it hit a lock, and not before when.
    until: float = 0.0
    rests_until: float = 0.0


class _JobQueue:
    """The jobs that wait for a thread.

    One thread at a time takes jobs of a queue: a second one would only wait for the lock that the
    first holds, and jobs of other queues would wait behind it.
    """

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._taken: set[str] = set()
        self._number_taken = 0
        # Whether a waiting job is not to be retried yet.
        self._rests = False
        self._ends = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many jobs wait or are being decided."""
        return len(self._jobs) + self._number_taken

    def put(self, job: _Job) -> bool:
        """Add a job; False if there is no room."""
        with self._changed:
            if len(self._jobs) >= MAX_WAITING:
                return False
            self._jobs.append(job)
            self._changed.notify()
        return True

    def take(self, most: int) -> list[_Job]:
        """Wait for jobs whose queue no thread has, and take the first `most` of them.

        Empty at the end. Pass each to `done`.
        """
        with self._changed:
            while not (jobs := self._free(most)):
                if self._ends and not self._jobs:
                    return []
                self._changed.wait(_REST_SECONDS if self._rests else None)
            self._taken.update(job.order for job in jobs)
            self._number_taken += len(jobs)
            return jobs

    def release(self, jobs: list[_Job], again: list[_Job]) -> None:
        """Release the queues of `jobs`. `again`: those of them that are to be retried."""
        with self._changed:
            self._taken.difference_update(job.order for job in jobs)
            self._number_taken -= len(jobs)
            self._jobs.extend(again)
            self._changed.notify_all()

    def end(self) -> None:
        """Make `take` return nothing once no job waits."""
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
            # A job without a queue blocks no other.
            mine = (
                len(free) < most and not rests and (not job.order or job.order not in self._taken)
            )
            if mine and job.until:
                held_up += 1
                mine = held_up <= _MOST_HELD_UP
            (free if mine else others).append(job)
        self._jobs = others
        return free


class GroupCommitter:
    """Threads that decide in the database for an event loop, several calls in one transaction.

    If a transaction fails before its commit, each of its calls is decided again in a transaction of
    its own and gets its own error. A call whose lock another process holds is retried after the
    others were answered: one thread waits for one queue, the other calls are tried every 30 ms. So
    a lock that is held for long blocks one thread at most.
    """

    def __init__(self, *, threads: int = 2) -> None:
        self._line = _JobQueue()
        # Held by the deciding thread. Calls that arrive meanwhile share the next commit.
        self._turn = threading.Lock()
        # Seconds for one job, averaged over the last commits.
        self._each = 0.0
        # Held by the thread that waits for a lock.
        self._patience = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the waiting jobs, then end the threads."""
        self._line.end()
        for thread in self._threads:
            thread.join()

    def check_room(self) -> None:
        """Raise NotDoneError if a new call would wait too long.

        Call it before anything of the call is done.
        """
        if not self.has_room():
            raise NotDoneError("Too many calls at once. Try again shortly.")

    def has_room(self, share: float = 1.0) -> bool:
        """Whether a new call would wait for at most `share` of MOST_SECONDS."""
        return len(self._line) * self._each <= MOST_SECONDS * share

    async def decide(self, asked: DecisionRequest) -> Outcome:
        """Decide a call and return its committed outcome.

        Raises the call's own errors, and as `run`.
        """
        outcome: Outcome = await self._outcome_of(_Job(asked.call.queue, asked, _answer()))
        return outcome

    async def run(self, unit: Callable[[], T], *, queue: str = "") -> T:
        """Run `unit`, which has a transaction of its own, after the earlier calls of `queue`.

        Raises what `unit` raises, and TemporarilyUnavailableError; NotDoneError if it was
        certainly not begun.
        """
        outcome: T = await self._outcome_of(_Job(queue, unit, _answer()))
        return outcome

    async def _outcome_of(self, job: _Job) -> Any:
        if not self._line.put(job):
            raise NotDoneError("Too many decisions are waiting. Try again shortly.")
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await job.answer
        except TimeoutError:
            raise TemporarilyUnavailableError(
                "The decision was not written in time. Try again shortly."
            ) from None

    def _work(self) -> None:
        use_own_connection("agentauth-commits", wait_seconds=_HELD_UP_SECONDS)
        while self._decide():
            pass
        connection.close()

    def _most_together(self) -> int:
        return max(1, min(_TOGETHER, int(_TOGETHER_SECONDS / max(self._each, 0.001))))

    def _decide(self) -> bool:
        """Decide a group of waiting jobs; False at the end."""
        mine: list[_Job] = []
        with self._turn:
            jobs = self._line.take(self._most_together())
            if not jobs:
                return False
            began, held_up = time.monotonic(), list[_Job]()
            try:
                held_up = _decide_and_tell(jobs)
                self._went(len(jobs), time.monotonic() - began)
                if held_up and self._patience.acquire(blocking=False):
                    # This thread keeps the jobs of the queue that it waits for.
                    mine = [
                        job
                        for job in held_up
                        if job is held_up[0] or job.order == held_up[0].order != ""
                    ]
            finally:
                self._release_jobs(
                    [job for job in jobs if job not in mine],
                    [job for job in held_up if job not in mine],
                )
        if mine:
            self._wait_for(mine)
        return True

    def _wait_for(self, jobs: list[_Job]) -> None:
        held_up = jobs
        try:
            held_up = _decide_and_tell(
                jobs, max(jobs[0].until - time.monotonic(), _HELD_UP_SECONDS)
            )
        finally:
            self._patience.release()
            self._release_jobs(jobs, held_up)

    def _went(self, count: int, seconds: float) -> None:
        # An exponential average: the last four commits count most.
        self._each += (min(seconds, WAIT_SECONDS) / count - self._each) / 4

    def _release_jobs(self, jobs: list[_Job], again: list[_Job]) -> None:
        for job in again:
            job.rests_until = time.monotonic() + _REST_SECONDS
        self._line.release(jobs, again)


def _answer() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _decide_and_tell(waiting: list[_Job], patience: float = 0.0) -> list[_Job]:
    """Do the jobs and answer their callers; return those to be retried.

    A job whose caller gave up is not begun.
    """
    jobs = [job for job in waiting if not job.answer.cancelled()]
    if not jobs:
        return []
    close_old_connections()
    asked = {job: job.work for job in jobs if isinstance(job.work, DecisionRequest)}
    outcomes = dict(zip(asked, decide_all([*asked.values()], patience=patience), strict=True))
    outcomes |= {
        job: _outcome(job.work) for job in jobs if not isinstance(job.work, DecisionRequest)
    }
    return [job for job in jobs if _is_held_up(job, outcomes[job])]


def _is_held_up(job: _Job, outcome: Any) -> bool:
    """Answer the caller, or return True if the job hit a lock and there is time to retry."""
    if isinstance(outcome, HeldUpError):
        now = time.monotonic()
        job.until = job.until or now + _PATIENCE_SECONDS
        if now < job.until:
            return True
        outcome = outcome.told
    job.answer.get_loop().call_soon_threadsafe(_tell, job.answer, outcome)
    return False


def decide_all(asked: Sequence[DecisionRequest], *, patience: float = 0.0) -> list[Any]:
    """Decide the calls, in one transaction if that succeeds; return outcomes, or the exceptions
    they end in.

    No deadlock is possible: a transaction waits for no queue, or, with `patience` in seconds, for
    one queue while it holds nothing. It waits a few milliseconds for a row, which the jobs or the
    release before may hold.
    """
    if len(asked) > 1:
        try:
            return [*decide_together(asked, patience=patience)]
        except UncertainError as error:
            logger.exception("durable decisions were not committed")
            return [error for _ in asked]
        except Exception as error:  # noqa: BLE001 — rolled back: the call that failed fails again, alone
            if patience and _met_a_lock(error):
                return [HeldUpError(busy()) for _ in asked]
    return [_outcome(partial(_decide_alone, each, patience)) for each in asked]


def _decide_alone(asked: DecisionRequest, patience: float) -> Any:
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
    except Exception as error:  # noqa: BLE001 — the answer to this call alone
        return HeldUpError(error) if _met_a_lock(error) else error


def _met_a_lock(error: BaseException | None) -> bool:
    """Whether a lock timeout is this error or one of its causes."""
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
