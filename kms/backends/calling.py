"""Every call to a home of keys goes through here, so that a slow or dead one costs nothing but what it would have signed.

Who asks waits two seconds at most, whatever a library does: the call is made by a thread that may be left behind, and
what it brings later is nobody's. There are few such threads, so most of a process's requests can go on; who finds all of
them busy is told so. Everything here is of one process: homes are found away by each for itself, within seconds.
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

from kms.backends.breaker import Breaker, Budget
from kms.backends.errors import BackendError, BusyError, NotAskedError, ThrottledError

T = TypeVar("T")

# Whose calls ask nobody: a file is read in this process.
AT_HAND: Final = frozenset({"file"})
# From the first try to the last answer.
DEADLINE_SECONDS: Final = 2.0
TRIES: Final = 3
# Another try waits for at most this, the next for twice as much; and with less than the second left it is not made.
BACKOFF_SECONDS: Final = 0.1
WORTHWHILE_SECONDS: Final = 0.5
# For making a key, which takes longer than a signature does, and which nobody waits for at a call of an agent. Whoever
# gives up on it leaves a key that may be there, and that nobody names.
CREATION_SECONDS: Final = 15.0
# For one of the threads; then it is 503.
ROOM_SECONDS: Final = 0.1


def guarded(scheme: str, call: Callable[[], T]) -> T:
    """What the call gives, or whatever it raises.

    Raises BackendError also where it did not answer in time, and NotAskedError where it was not asked.
    """
    if scheme in AT_HAND:
        return converted(scheme, call)
    caller = _callers.get(scheme) or _callers.setdefault(scheme, Caller(scheme))
    return converted(scheme, lambda: caller.ask(call))


def converted(scheme: str, call: Callable[[], T]) -> T:
    """What the call gives. Raises BackendError alone: for what a library raises unforeseen too, as where a file of credentials is gone.

    Of that it says the kind and the place; the text may hold secrets.
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
    """Whoever asks one home in this process."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._breaker, self._budget = Breaker(home), Budget()
        # As long polls may hold a quarter of a process's threads, so those that wait here may hold half of them.
        self._threads = Threads(max(1, settings.WEB_THREADS // 2))
        self._observe = import_string(settings.KEY_OBSERVER)

    def ask(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + DEADLINE_SECONDS
        pause = BACKOFF_SECONDS
        for _ in range(TRIES - 1):
            try:
                return self._try(call, deadline)
            except BusyError:
                # Full jitter: those that were refused together do not come back together.
                wait = random.uniform(0, pause)  # noqa: S311 — no secret
                left = deadline - time.monotonic() - wait
                if left < WORTHWHILE_SECONDS or self._breaker.is_open or not self._budget.spend():
                    raise
                time.sleep(wait)
                pause *= 2
        return self._try(call, deadline)

    def _try(self, call: Callable[[], T], deadline: float) -> T:
        outcome, answered, began = "away", False, time.monotonic()
        tried: bool | None = None
        try:
            tried = self._breaker.admit()
            answer = self._threads.run(call, deadline)
            outcome, answered = "ok", True
        except NotAskedError:
            outcome = "open" if tried is None else "full"
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
            if tried is not None:
                self._breaker.report(answered=answered if asked else None, tried=tried)
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
    """At most so many threads, made when they are first needed, that call in the place of who waits."""

    def __init__(self, most: int) -> None:
        self._room = threading.Semaphore(most)
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()

    def run(self, call: Callable[[], T], deadline: float) -> T:
        """What the call gives by then (`time.monotonic`). Raises NotAskedError, BusyError, and what the call raises."""
        if not self._room.acquire(timeout=ROOM_SECONDS):
            raise NotAskedError("As many calls to the home of keys as may be wait for it.", retry_after=1)
        if not self._idle.acquire(blocking=False):
            # As a daemon, since one that hangs must not keep the process from ending.
            thread = threading.Thread(target=self._serve, name="home-of-keys", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._room.release()
                raise NotAskedError(
                    "No thread could be started for the home of keys.", retry_after=1
                ) from None
        answer: Future[T] = Future()
        self._work.put((call, answer))
        try:
            return answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise BusyError("The home of keys did not answer in time.") from None

    def _serve(self) -> None:
        while True:
            self._make(*self._work.get())
            # In this order: who finds room finds an idle thread, so there are never more of them.
            self._idle.release()
            self._room.release()

    @staticmethod
    def _make(call: Callable[[], T], answer: "Future[T]") -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 — whatever it is, it is raised where somebody waits for it
            answer.set_exception(error)


# By home. Threads do not come along into a process that is forked off, and locks as whoever held them left them.
_callers: dict[str, Caller] = {}
os.register_at_fork(after_in_child=_callers.clear)
