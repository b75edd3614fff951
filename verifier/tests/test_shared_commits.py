"""Decisions that share a commit: each fails alone, and nobody is told yes of what was not committed."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils import timezone

from agentauth.protocol.errors import InvalidRequestError, TemporarilyUnavailableError
from registry.models import SpentProof
from registry.services.proofs import spend_proof
from verifier.stores import lane as module
from verifier.stores.database import DatabaseStore
from verifier.stores.lane import Lane, committed_together
from verifier.tests.scene import PAY, scene
from verifier.tests.test_store_contract import payment, words

# Threads and shared commits need a database that lets several in.
pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def spend(jti: str) -> Callable[[], str]:
    """A unit of work that leaves one row."""

    def unit() -> str:
        spend_proof(jkt="jkt", jti=jti, until=timezone.now() + timedelta(minutes=1))
        return jti

    return unit


def fail(error: Exception, jti: str) -> Callable[[], None]:
    """One that writes and then fails."""

    def unit() -> None:
        spend(jti)()
        raise error

    return unit


def atomically(unit: Callable[[], Any]) -> Callable[[], Any]:
    """As every unit of the verifier is."""

    def run() -> Any:
        with transaction.atomic():
            return unit()

    return run


@pytest.fixture(autouse=True)
def _begun_however_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed in together is in one commit, however long its first parts take here."""
    monkeypatch.setattr(module, "_TOGETHER_SECONDS", 20)


def handed_in(
    units: list[tuple[str, Callable[[], Any]]], when_told: Callable[[str], object] = lambda _: None
) -> list[Any]:
    """What becomes of units that wait together: they are there before the one thread begins."""

    async def main() -> list[Any]:
        lane = Lane(threads=1)
        asked = [asyncio.ensure_future(lane.run(order, unit)) for order, unit in units]
        for (order, _), each in zip(units, asked, strict=True):
            each.add_done_callback(partial(lambda order, _: when_told(order), order))
        await asyncio.sleep(0)
        lane.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        finally:
            await asyncio.to_thread(lane.stop)

    return asyncio.run(main())


def spent() -> int:
    return SpentProof.objects.count()


def test_one_that_fails_is_rolled_back_alone_and_hears_its_own_error() -> None:
    refusal = InvalidRequestError("no")
    units = [spend("a"), fail(refusal, "b"), fail(IntegrityError("twice"), "c"), spend("d")]
    first, second, third, fourth = handed_in([("", atomically(unit)) for unit in units])
    assert (first, second, fourth) == ("a", refusal, "d")
    assert isinstance(third, TemporarilyUnavailableError)
    assert isinstance(third.__cause__, DatabaseError)
    assert spent() == 2


def test_where_the_connection_ends_in_a_shared_commit_nobody_is_told_yes() -> None:
    """Django leaves such a block without a word."""

    def terminated() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pid = cursor.fetchone()[0]
        other = connection.copy()
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        other.close()
        return "ended"

    for units in (
        [spend("a"), terminated, spend("b")],
        [terminated, spend("a")],
        [spend("a"), terminated],
    ):
        told = handed_in([("", atomically(unit)) for unit in units])
        assert [type(each) for each in told] == [TemporarilyUnavailableError] * len(units)
        assert spent() == 0


def test_where_a_statement_fails_outside_any_savepoint_nobody_is_told_yes() -> None:
    """PostgreSQL takes the COMMIT, and rolls back."""

    def reads() -> str:
        with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
        return "read"

    told = handed_in([("", atomically(spend("a"))), ("", reads)])
    assert [type(each) for each in told] == [TemporarilyUnavailableError] * 2
    assert spent() == 0


def test_shared_commits_of_one_grant_never_deadlock() -> None:
    """An agent sends the same two proofs in both orders."""
    place, store = scene(PAY, max_uses=9), DatabaseStore()
    assert words(store.apply(payment(place))) == "yes"
    one, two = payment(place), payment(place)
    told: list[Any] = []

    def other() -> None:
        units = [partial(store.apply, two), partial(store.apply, one)]
        told.extend(committed_together(units, patience=5))
        connection.close()

    thread = threading.Thread(target=other)

    def meets() -> None:
        thread.start()
        until(waits_for_a_lock)

    own = committed_together([partial(store.apply, one), meets, partial(store.apply, two)])
    thread.join(30)
    assert [words(each) for each in (own[0], own[2], *told)] == ["yes", "yes", "replayed", "replayed"]


def waits_for_a_lock() -> bool:
    """Asked over another connection: a transaction looks at activity once."""
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(cursor.fetchone()[0])


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_where_the_commit_fails_nobody_is_told_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(units: list[Any], **more: Any) -> list[Any]:
        committed_together(units, **more)
        raise DatabaseError("the commit's answer did not come")

    monkeypatch.setattr(module, "committed_together", refused)
    told = handed_in([("", atomically(spend(each))) for each in "ab"])
    assert [type(each) for each in told] == [TemporarilyUnavailableError] * 2


def test_a_thread_goes_on_after_a_connection_that_ended() -> None:
    async def main() -> str:
        lane = Lane(threads=1)
        lane.start()
        try:
            with pytest.raises(TemporarilyUnavailableError):
                await lane.run("", atomically(lambda: connection.connection.close() or spend("a")()))
            return await lane.run("", atomically(spend("b")))
        finally:
            await asyncio.to_thread(lane.stop)

    assert asyncio.run(main()) == "b"
    assert spent() == 1


def test_locks_are_taken_in_the_order_of_the_grants() -> None:
    seen: list[str] = []
    handed_in([(order, partial(seen.append, order)) for order in "cabd"])
    assert seen == ["a", "b", "c", "d"]


def test_at_most_so_many_share_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(units: list[Any], **more: Any) -> list[Any]:
        sizes.append(len(units))
        return committed_together(units, **more)

    monkeypatch.setattr(module, "committed_together", counted)
    handed_in([("", lambda: None)] * 70)
    assert sizes == [32, 32, 6]


def test_beyond_the_queue_the_next_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    told = handed_in([("", spend(each)) for each in "abcd"])
    assert told[:3] == ["a", "b", "c"]
    assert isinstance(told[3], TemporarilyUnavailableError)
    assert spent() == 3


def test_what_was_handed_in_is_finished_before_the_end() -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        go_on.wait(10)
        return spend("slow")()

    async def main() -> list[Any]:
        lane = Lane(threads=2)
        lane.start()
        first = asyncio.ensure_future(lane.run("", slow))
        await asyncio.to_thread(began.wait, 10)
        rest = [asyncio.ensure_future(lane.run("", atomically(spend(f"{each}")))) for each in range(9)]
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(asyncio.to_thread(lane.stop))
        await asyncio.sleep(0.05)
        assert not ending.done()
        go_on.set()
        await asyncio.wait_for(ending, 10)
        return await asyncio.gather(first, *rest)

    assert asyncio.run(main()) == ["slow", *map(str, range(9))]
    assert spent() == 10


def test_who_went_away_holds_nobody_up() -> None:
    async def main() -> str:
        lane = Lane(threads=1)
        gone = asyncio.ensure_future(lane.run("", spend("gone")))
        stays = asyncio.ensure_future(lane.run("", spend("stays")))
        await asyncio.sleep(0)
        gone.cancel()
        lane.start()
        try:
            return await asyncio.wait_for(stays, 10)
        finally:
            await asyncio.to_thread(lane.stop)

    assert asyncio.run(main()) == "stays"
    # What nobody waits for any more is not begun.
    assert spent() == 1
