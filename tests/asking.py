"""Asks with the patience that the protocol demands of callers."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar


class Answer(Protocol):
    """An answer of any client library."""

    @property
    def status_code(self) -> int: ...


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


def answered(ask: Callable[[], AnyAnswer]) -> AnyAnswer:
    """What `ask` gets. It asks again while that is 503: Redis has 50 ms to answer the verifier,
    which a busy machine exceeds for a moment.

    `ask` should make a fresh proof each time, since a 503 may have spent its own.
    """
    for _ in range(60):
        answer = ask()
        if answer.status_code != 503:
            break
        time.sleep(0.5)
    return answer
