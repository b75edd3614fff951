"""The lane while the database hangs: whoever waits is told in time, and what was not begun is not begun any more."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.stores import lane as lanes
from verifier.stores.lane import Lane

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lane]:
    monkeypatch.setattr(lanes, "WAIT_SECONDS", 0.2)
    made = Lane(threads=1)
    made.start()
    yield made
    made.stop()


def test_RF_4_who_waits_for_a_database_that_hangs_is_told_so_and_what_waits_behind_is_never_begun(
    lane: Lane,
) -> None:
    thawed, begun = threading.Event(), []

    async def ask() -> list[object]:
        first = asyncio.create_task(lane.run("", lambda: thawed.wait(10)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(lane.run("", lambda: begun.append("second")))
        told: list[object] = list(await asyncio.gather(first, second, return_exceptions=True))
        thawed.set()
        # What is asked after it has its turn.
        return [*told, await lane.run("", lambda: "third")]

    first, second, third = asyncio.run(ask())
    assert isinstance(first, TemporarilyUnavailableError)
    assert isinstance(second, TemporarilyUnavailableError)
    assert third == "third"
    assert begun == []


def test_RF_19_who_would_wait_too_long_is_told_at_once_and_when_it_goes_fast_again_nobody_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "_TOGETHER", 4)
    made = Lane(threads=1)
    made.start()

    async def ask() -> tuple[int, int]:
        # A twentieth of a second each: so fast it goes.
        for _ in range(8):
            await made.run("", lambda: time.sleep(0.05))
        slow: list[asyncio.Task[None]] = []
        while len(slow) < 40:
            try:
                made.check_room()
            except TemporarilyUnavailableError:
                break
            slow.append(asyncio.create_task(made.run("", lambda: time.sleep(0.05))))
            await asyncio.sleep(0)
        await asyncio.gather(*slow)
        for _ in range(40):
            await made.run("", lambda: None)
        quick = [asyncio.create_task(made.run("", lambda: None)) for _ in range(40)]
        await asyncio.sleep(0)
        made.check_room()
        await asyncio.gather(*quick)
        return len(slow), len(quick)

    admitted, after = asyncio.run(ask())
    made.stop()
    # Half a second's worth of them, and those that are under way.
    assert 8 <= admitted <= 20
    assert after == 40
