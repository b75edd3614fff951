"""All calls to key backends, so that a slow or dead one blocks only what it should sign.

A caller waits at most two seconds, whatever a library does: a separate thread makes the call, and
its late result is discarded. The threads are few, so that most requests of a process can go on; a
caller that finds all of them busy gets an error. All state is per process: each process detects an
outage by itself, within seconds.
"""

import os
import random
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from django.conf import settings
from django.utils.module_loading import import_string

from kms.backends.breaker_and_retries import Breaker, Budget
from kms.backends.errors import BackendError, BusyError, CallRejectedError, ThrottledError

T = TypeVar("T")

# Backends without a remote service: a file is read in this process.
AT_HAND: Final = frozenset({"file"})
# From the first try to the last answer (s).
DEADLINE_SECONDS: Final = 2.0
TRIES: Final = 3
# A retry waits at most this long (s), the next twice as long. It is skipped if less than the second
# is left.
BACKOFF_SECONDS: Final = 0.1
WORTHWHILE_SECONDS: Final = 0.5
# For making a key (s). It takes longer than signing, and no agent waits for it. If it times out,
# the key may exist without a row that names it.
CREATION_SECONDS: Final = 15.0
# How long a call waits for a free thread (s); then the answer is 503.
ROOM_SECONDS: Final = 0.1


def call_backend(scheme: str, call: Callable[[], T]) -> T:
    """Call a backend with deadline, retries and breaker; return what it returns.

    Raises BackendError, also if it did not answer in time; CallRejectedError if it was not called.
    """
    if scheme in AT_HAND:
        return convert_errors(scheme, call)
    caller = _callers.get(scheme) or _callers.setdefault(scheme, Caller(scheme))
    return convert_errors(scheme, lambda: caller.ask(call))


def convert_errors(scheme: str, call: Callable[[], T]) -> T:
    """Run the call; convert every exception to BackendError, as for a missing credentials file.

    The message has only the kind and the place of an unexpected error: its text may hold secrets.
    """
    try:
        return call()
    except BackendError:
        raise
    except Exception as error:  # noqa: BLE001 — whatever it is, the key did not sign
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(last.filename).name}:{last.lineno}"
        raise BackendError(f"{scheme}: {type(error).__name__} at {at}.") from None


class Caller:
    """The callers of one backend in this process, and their shared limits."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._breaker, self._budget = Breaker(home), Budget()
        # Half of the process's threads: long polls may hold another quarter.
        self._threads = Threads(max(1, settings.WEB_THREADS // 2))
        self._observe = import_string(settings.KEY_OBSERVER)

    def ask(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + DEADLINE_SECONDS
        pause = BACKOFF_SECONDS
        for _ in range(TRIES - 1):
            try:
                return self._try(call, deadline)
            except BusyError:
                # Full jitter: calls refused together do not retry together.
                wait = random.uniform(0, pause)  # noqa: S311 — no secret
                left = deadline - time.monotonic() - wait
                if left < WORTHWHILE_SECONDS or self._breaker.is_open or not self._budget.spend():
                    raise
                time.sleep(wait)
                pause *= 2
        return self._try(call, deadline)

    def _try(self, call: Callable[[], T], deadline: float) -> T:
        outcome, answered, began = "away", False, time.monotonic()
        is_probe: bool | None = None
        try:
            is_probe = self._breaker.admit()
            answer = self._threads.run(call, deadline)
            outcome, answered = "ok", True
        except CallRejectedError:
            outcome = "open" if is_probe is None else "full"
            raise
        except ThrottledError:
            outcome, answered = "throttled", True
            raise
        except BusyError:
            raise
        except BackendError:
            outcome, answered = "refused", True
            raise
        finally:
            asked = outcome not in {"open", "full"}
            if is_probe is not None:
                self._breaker.report(answered=answered if asked else None, is_probe=is_probe)
            if asked:
                self._budget.earn()
            self._observe(
                home=self._home,
                outcome=outcome,
                seconds=time.monotonic() - began if asked else None,
                is_open=self._breaker.is_open,
            )
        return answer


class Threads:
    """At most `most` threads, started on demand, that make calls for waiting callers."""

    def __init__(self, most: int) -> None:
        self._room = threading.Semaphore(most)
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()

    def run(self, call: Callable[[], T], deadline: float) -> T:
        """The call's result by `deadline` (monotonic).

        Raises CallRejectedError, BusyError, the call's errors.
        """
        if not self._room.acquire(timeout=ROOM_SECONDS):
            raise CallRejectedError(
                "Too many calls are waiting for the key backend.", retry_after=1
            )
        if not self._idle.acquire(blocking=False):
            # A daemon, so that a hanging call does not keep the process from ending.
            thread = threading.Thread(target=self._serve, name="key-backend", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._room.release()
                raise CallRejectedError(
                    "No thread could be started for the key backend.", retry_after=1
                ) from None
        answer: Future[T] = Future()
        self._work.put((call, answer))
        try:
            return answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise BusyError("The key backend did not answer in time.") from None

    def _serve(self) -> None:
        while True:
            self._make(*self._work.get())
            # In this order: a caller that gets room finds an idle thread, so there are never too
            # many.
            self._idle.release()
            self._room.release()

    @staticmethod
    def _make(call: Callable[[], T], answer: "Future[T]") -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 — whatever it is, it is raised in the waiting caller
            answer.set_exception(error)


# By scheme. Cleared after a fork: the child has no threads, and its locks may be held for ever.
_callers: dict[str, Caller] = {}
os.register_at_fork(after_in_child=_callers.clear)
