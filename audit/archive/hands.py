"""Several calls of a store at a time: a segment is hundreds of small objects, each a round trip or two."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

HANDS: Final = 8


class Hands:
    """Does what it is given, in threads; what one of them raises is raised by a later call, or at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(HANDS)
        self._begun: deque[Future[object]] = deque()

    def give(self, call: Callable[..., object], *arguments: Any) -> None:
        """Begin it, waiting for an earlier one where many are under way."""
        self._begun.append(self._pool.submit(call, *arguments))
        if len(self._begun) > 2 * HANDS:
            self._begun.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._begun:
                self._begun.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
