"""Parallel store calls: a segment is hundreds of small objects, each one or two round trips."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

PARALLEL: Final = 8


class ParallelCalls:
    """Runs calls in a thread pool; an error in one is raised by a later `start` or on exit."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(PARALLEL)
        self._begun: deque[Future[object]] = deque()

    def start(self, call: Callable[..., object], *arguments: Any) -> None:
        """Start the call; if more than 2 × PARALLEL are pending, wait for the oldest first."""
        self._begun.append(self._pool.submit(call, *arguments))
        if len(self._begun) > 2 * PARALLEL:
            self._begun.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while kind is None and self._begun:
                self._begun.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
