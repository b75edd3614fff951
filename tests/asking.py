"""Asks with the patience that the protocol demands of callers."""

import time
from collections.abc import Callable, Container
from typing import Protocol, TypeVar


class Answer(Protocol):
    """An answer of any client library."""

    @property
    def status_code(self) -> int: ...


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


# Redis has 50 ms to answer the verifier, which a busy machine exceeds for a moment.
BUSY = frozenset({503})
# All callers without credentials share a limit. Many tests at one system may use it up.
SHARED = BUSY | {429}


def answered(ask: Callable[[], AnyAnswer], *, later: Container[int] = BUSY) -> AnyAnswer:
    """What `ask` gets. It asks again while the status is one of `later`.

    `ask` should make a fresh proof each time, since a 503 may have spent its own.
    """
    for _ in range(60):
        answer = ask()
        if answer.status_code not in later:
            break
        time.sleep(0.5)
    return answer
