"""The lane while the database hangs: whoever waits is told in time, and what was not begun is not begun any more."""

import asyncio
import threading
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
