"""Group commit while the database hangs: callers are told in time, and pending work is dropped."""

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.db.prebuilt_sql import select
from tests.conftest import CAMPAIGN
from verifier.stores import HeldUpError, NotDoneError
from verifier.stores import group_commit as lanes
from verifier.stores.database_decisions import DecisionRequest
from verifier.stores.group_commit import GroupCommitter

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def committer(monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupCommitter]:
    monkeypatch.setattr(lanes, "WAIT_SECONDS", 0.2)
    made = GroupCommitter(threads=1)
    made.start()
    yield made
    made.stop()


def test_RF_4_hung_database_fails_the_call_and_queued_work_never_runs(
    committer: GroupCommitter,
) -> None:
    thawed, begun = threading.Event(), []

    async def ask() -> list[object]:
        first = asyncio.create_task(committer.run(lambda: thawed.wait(10)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(committer.run(lambda: begun.append("second")))
        told: list[object] = list(await asyncio.gather(first, second, return_exceptions=True))
        thawed.set()
        # Work that is handed in afterwards runs.
        return [*told, await committer.run(lambda: "third")]

    first, second, third = asyncio.run(ask())
    assert isinstance(first, TemporarilyUnavailableError)
    assert isinstance(second, TemporarilyUnavailableError)
    assert third == "third"
    assert begun == []


@pytest.mark.postgres
def test_RF_4_statement_timeout_is_2_s_and_lock_timeout_is_5_ms(committer: GroupCommitter) -> None:
    def settings() -> list[object]:
        names = ("statement_timeout", "lock_timeout", "enable_seqscan", "jit")
        return [select("SELECT current_setting(%s)", name)[0][0] for name in names]

    assert asyncio.run(committer.run(settings)) == ["2s", "5ms", "off", "off"]


def test_RF_19_call_is_shed_if_it_would_wait_too_long_at_current_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "_TOGETHER", 4)
    made = GroupCommitter(threads=1)
    made.start()

    async def ask() -> tuple[int, int]:
        # Teach the committer that a decision takes 0.05 s.
        for _ in range(8):
            await made.run(lambda: time.sleep(0.05))
        slow: list[asyncio.Task[None]] = []
        while len(slow) < 40:
            try:
                made.check_room()
            except TemporarilyUnavailableError:
                break
            slow.append(asyncio.create_task(made.run(lambda: time.sleep(0.05))))
            await asyncio.sleep(0)
        await asyncio.gather(*slow)
        for _ in range(40):
            await made.run(lambda: None)
        quick = [asyncio.create_task(made.run(lambda: None)) for _ in range(40)]
        await asyncio.sleep(0)
        made.check_room()
        await asyncio.gather(*quick)
        return len(slow), len(quick)

    admitted, after = asyncio.run(ask())
    made.stop()
    # At most 0.6 s of work is admitted at that pace, running work included. The pace depends on the
    # machine, so the bounds are wide outside a campaign.
    assert (8 <= admitted <= 20) if CAMPAIGN else (1 <= admitted < 40)
    assert after == 40


def test_RF_19_what_is_under_way_is_waited_for_too() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(10)

    async def ask() -> None:
        made = GroupCommitter(threads=1)
        made.start()
        first = asyncio.create_task(made.run(slow))
        await asyncio.to_thread(begun.wait, 10)
        made._each = 10.0
        with pytest.raises(TemporarilyUnavailableError):
            made.check_room()
        go_on.set()
        await first
        await asyncio.to_thread(made.stop)

    asyncio.run(ask())


def asked(queue: str) -> DecisionRequest:
    """A call that only its queue tells apart."""
    return DecisionRequest(cast("Any", SimpleNamespace(queue=queue)))


def test_RF_19_what_goes_slowly_shares_a_commit_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(calls: list[DecisionRequest], **_: object) -> list[Any]:
        sizes.append(len(calls))
        return calls

    monkeypatch.setattr(lanes, "decide_all", counted)

    async def ask() -> None:
        made = GroupCommitter(threads=1)
        made._each = 0.1
        waiting = [asyncio.create_task(made.decide(asked(""))) for _ in range(64)]
        await asyncio.sleep(0)
        made.start()
        await asyncio.gather(*waiting)
        await asyncio.to_thread(made.stop)

    asyncio.run(ask())
    # Only 0.2 s of work shares a commit; more as decisions get faster.
    assert sizes[:2] == [2, 2]
    assert 2 < max(sizes) <= 32


def test_RF_8_one_thread_waits_for_a_lock_and_the_others_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Locks are held, for example, by a host cut off in the middle of a commit."""
    go_on, stuck = threading.Event(), threading.Event()

    def held_up(calls: list[DecisionRequest], *, patience: float = 0) -> list[Any]:
        """Only the free queue's lock is free; with patience, the call waits for its lock."""
        told = [each.call.queue for each in calls]
        if patience:
            stuck.set()
            go_on.wait(10)
            return told
        return [each if each == "free" else HeldUpError(NotDoneError()) for each in told]

    monkeypatch.setattr(lanes, "decide_all", held_up)
    monkeypatch.setattr(lanes, "_PATIENCE_SECONDS", 0.4)

    async def ask() -> list[Any]:
        made = GroupCommitter(threads=2)
        made.start()
        waiting = [asyncio.create_task(made.decide(asked(each))) for each in "abc"]
        await asyncio.to_thread(stuck.wait, 10)
        for _ in range(20):
            assert str(await asyncio.wait_for(made.decide(asked("free")), 2)) == "free"
        # Waiting for a lock does not count as the time a decision takes.
        made.check_room()
        told: list[Any] = [*await asyncio.gather(*waiting[1:], return_exceptions=True)]
        go_on.set()
        told.append(await waiting[0])
        await asyncio.to_thread(made.stop)
        return told

    second, third, first = asyncio.run(ask())
    assert (type(second), type(third), first) == (NotDoneError, NotDoneError, "a")
