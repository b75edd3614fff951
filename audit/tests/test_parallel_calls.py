"""Store calls in parallel: the first error stops a segment, and none is lost."""

import threading

import pytest

from audit.archive.parallel_calls import PARALLEL, ParallelCalls


def fail(number: int) -> None:
    raise LookupError(number)


def test_a_later_start_raises_the_error_of_an_earlier_call() -> None:
    """A segment is hundreds of objects: do not start them all after the first has failed."""
    started: list[int] = []

    def start_all() -> None:
        with ParallelCalls() as calls:
            for number in range(10 * PARALLEL):
                calls.start(fail if number == 0 else abs, number)
                started.append(number)

    with pytest.raises(LookupError, match="0"):
        start_all()
    assert len(started) == 2 * PARALLEL


def test_an_error_of_the_last_call_is_raised_at_the_end() -> None:
    done: list[int] = []

    def start_all() -> None:
        with ParallelCalls() as calls:
            for number in range(9):
                calls.start(done.append, number)
            calls.start(fail, 9)

    with pytest.raises(LookupError, match="9"):
        start_all()
    assert sorted(done) == list(range(9))


def test_an_error_of_the_caller_is_raised_and_cancels_what_waits() -> None:
    gate, done = threading.Event(), list[int]()

    def wait(number: int) -> None:
        gate.wait(10)
        done.append(number)

    def start_all() -> None:
        with ParallelCalls() as calls:
            for number in range(2 * PARALLEL):
                calls.start(wait, number)
            # The last call is done once it is cancelled.
            calls._begun[-1].add_done_callback(lambda _: gate.set())
            raise KeyError

    with pytest.raises(KeyError):
        start_all()
    assert len(done) == PARALLEL
