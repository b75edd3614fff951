"""Decisions that must be on record before they are told: several of them in one commit of the database."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    close_old_connections,
    connection,
    transaction,
)
from psycopg.pq import TransactionStatus

from agentauth.protocol.errors import TemporarilyUnavailableError
from registry.services.idempotency import waited_too_long
from verifier.services.connecting import STATEMENT_SECONDS, use_own_connection
from verifier.services.moment import Moment
from verifier.stores.database import check_still, present_tenure

logger = logging.getLogger(__name__)

T = TypeVar("T")

# So many share one commit at most, and no more than take so long by how fast it goes just now: each holds the locks of its
# grant until all are written, and is told no earlier.
_TOGETHER: Final = 32
_TOGETHER_SECONDS: Final = 0.2
# Beyond this they would wait for longer than their callers do.
MAX_WAITING: Final = 512
# Who would wait for longer than this, by how fast it goes just now, is told at once to come again.
MOST_SECONDS: Final = 0.6
# Nobody waits longer, though each statement of a decision may take its time (`connecting.STATEMENT_SECONDS`, for a lock less).
# What came of it is then not known.
WAIT_SECONDS: Final = 5
# So long a unit waits for a lock while others share its commit: whoever only passes by is gone by then, and PostgreSQL looks for
# deadlocks after a whole second.
_HELD_UP_SECONDS: Final = 0.005
# And so long those that met one wait for it in all, once the others have been told: as our connections do by themselves.
_PATIENCE_SECONDS: Final = STATEMENT_SECONDS * 4 / 5


class HeldUpError(Exception):
    """The outcome of a unit that met a lock of somebody else's and did not wait for it: nothing of it was done."""


@dataclass(frozen=True, slots=True)
class _Job:
    # The grant: units of one grant are together, since they need the same lock, and all threads meet grants in one order.
    order: str
    run: Callable[[], Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class _Line:
    """The jobs that wait for a thread.

    A grant is one thread's at a time: another that took more of its jobs could only wait for the lock the first one holds,
    while those of other grants wait behind it.
    """

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._taken: set[str] = set()
        self._number_taken = 0
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
        """The first that are nobody's, as soon as there are any; none at the end. Each goes back through `done`."""
        with self._changed:
            while not (jobs := self._free(most)):
                if self._ends and not self._jobs:
                    return []
                self._changed.wait()
            self._taken.update(job.order for job in jobs)
            self._number_taken += len(jobs)
            return jobs

    def done(self, jobs: list[_Job]) -> None:
        """Let others take what is of the same grants."""
        with self._changed:
            self._taken.difference_update(job.order for job in jobs)
            self._number_taken -= len(jobs)
            self._changed.notify_all()

    def end(self) -> None:
        """Once nothing waits any more, nobody waits for more either."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def _free(self, most: int) -> list[_Job]:
        free: list[_Job] = []
        others: deque[_Job] = deque()
        for job in self._jobs:
            # What is of no grant is in nobody's way.
            mine = len(free) < most and (not job.order or job.order not in self._taken)
            (free if mine else others).append(job)
        self._jobs = others
        return free


class Lane:
    """Threads that run units of work of the database for an event loop, each unit atomic in itself.

    A unit that fails is rolled back alone and its error is its own answer; where the commit they share fails, nobody
    is told yes. Who of a shared commit would have to wait for somebody else's lock is rolled back too, and waits for it when the
    others have been told.
    """

    def __init__(self, *, threads: int = 2) -> None:
        self._line = _Line()
        # How long one unit takes, as of the last commits (s).
        self._each = 0.0
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
            raise TemporarilyUnavailableError("Too many calls at once. Try again shortly.")

    def has_room(self, share: float = 1.0) -> bool:
        """Whether who comes now would wait for no more than this share of what anybody may."""
        return len(self._line) * self._each / len(self._threads) <= MOST_SECONDS * share

    async def run(self, order: str, unit: Callable[[], T]) -> T:
        """The outcome of `unit`, committed. Raises what it raises, and TemporarilyUnavailableError."""
        loop = asyncio.get_running_loop()
        job = _Job(order, unit, loop.create_future(), loop)
        if not self._line.put(job):
            raise TemporarilyUnavailableError("Too many decisions wait. Try again shortly.")
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                outcome: T = await job.answer
        except TimeoutError:
            raise TemporarilyUnavailableError(
                "The decision was not written in time. Try again shortly."
            ) from None
        return outcome

    def _work(self) -> None:
        use_own_connection("agentauth-lane")
        while jobs := self._line.take(self._most_together()):
            began = time.monotonic()
            self._answer(sorted(jobs, key=lambda job: job.order))
            took = min(time.monotonic() - began, WAIT_SECONDS)
            # The last four count most. Of two threads that write at once one figure is lost, and no more.
            self._each += (took / len(jobs) - self._each) / 4
        connection.close()

    def _most_together(self) -> int:
        return max(1, min(_TOGETHER, int(_TOGETHER_SECONDS / max(self._each, 0.001))))

    def _answer(self, taken: list[_Job]) -> None:
        patience = _HELD_UP_SECONDS if len(taken) > 1 else _PATIENCE_SECONDS
        waiting, until = taken, 0.0
        try:
            # Fewer each time but the first: who waits for long enough is never among them.
            while waiting := _committed_and_told(waiting, patience):
                grants = {job.order for job in waiting}
                self._line.done([job for job in taken if job.order not in grants])
                taken = [job for job in taken if job.order in grants]
                until = until or time.monotonic() + _PATIENCE_SECONDS
                patience = until - time.monotonic()
        finally:
            self._line.done(taken)


def _committed_and_told(waiting: list[_Job], patience: float) -> list[_Job]:
    """Commit together what anybody still waits for, and tell them; those that are for the next commit.

    With no `patience` left (s) all are told that it is too late.
    """
    # Whose caller was told that it is too late is not begun any more.
    jobs = [job for job in waiting if not job.answer.cancelled()]
    if not jobs:
        return []
    close_old_connections()
    try:
        outcomes = (
            committed_together([job.run for job in jobs], patience=patience)
            if patience > 0
            else [
                TemporarilyUnavailableError("Others decide on this grant just now. Try again.") for _ in jobs
            ]
        )
    except Exception:  # whatever it is, each of them has to hear it
        logger.exception("durable decisions were not committed")
        outcomes = [TemporarilyUnavailableError() for _ in jobs]
    held_up = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, HeldUpError):
            held_up.append(job)
        else:
            job.loop.call_soon_threadsafe(_tell, job.answer, outcome)
    return held_up


def committed_together(units: list[Callable[[], Any]], *, patience: float = _PATIENCE_SECONDS) -> list[Any]:
    """Run each unit, commit once, and give back the outcomes: values, or the exceptions of those that failed alone.

    No deadlock comes of it, whatever the units lock in whatever order: the first waits for a lock for `patience` seconds, holding
    none but its own locks, and any other gives up at once, with HeldUpError as its outcome; so does the first, where its
    `patience` is no longer than theirs.

    Raises where it is not certain that what succeeded was committed.
    """
    if len(units) == 1 and patience == _PATIENCE_SECONDS:
        # As its connection does by itself.
        return [_outcome(units[0])]
    # Each looks at its own when it ends; by the time of the commit that of the first may be over.
    began, tenure = Moment.now(), present_tenure()
    with transaction.atomic():
        waits = patience > _HELD_UP_SECONDS
        _wait_for_locks(max(patience, _HELD_UP_SECONDS))
        outcomes = [_outcome(units[0], waits=waits)]
        if waits:
            _wait_for_locks(_HELD_UP_SECONDS)
        outcomes += [_outcome(unit, waits=False) for unit in units[1:]]
        # Where the connection broke meanwhile, Django leaves this block without a commit and without a word; and where a
        # statement failed outside any savepoint, PostgreSQL answers COMMIT with ROLLBACK, as if nothing were wrong.
        if connection.closed_in_transaction or transaction.get_rollback() or _is_aborted():
            raise TemporarilyUnavailableError
        check_still(began, tenure)
    return outcomes


def _wait_for_locks(seconds: float) -> None:
    """No longer than this, until the transaction ends. SQLite has let nobody else write since it began."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{round(seconds * 1000)}ms"])


def _is_aborted() -> bool:
    """Whether the server will commit nothing of this transaction."""
    if connection.vendor != "postgresql":
        return False
    return bool(connection.connection.pgconn.transaction_status == TransactionStatus.INERROR)


def _outcome(unit: Callable[[], Any], *, waits: bool = True) -> Any:
    try:
        return unit()
    except (DatabaseError, InterfaceError) as error:
        if not waits and _met_a_lock(error):
            return HeldUpError()
        logger.exception("a decision could not reach the database")
        return _unavailable(error)
    except Exception as error:  # noqa: BLE001 — it is this unit's answer, and the next unit's business is its own
        return HeldUpError() if not waits and _met_a_lock(error) else error


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
