"""Decisions that share a commit: each fails alone, and no caller is told an uncommitted yes."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.utils import timezone

from agentauth.protocol.decision_rules import decide
from agentauth.protocol.errors import InvalidRequestError, TemporarilyUnavailableError
from registry.models import SpentProof
from registry.services.spent_proofs import spend_proof
from verifier.models import GrantLedger
from verifier.stores import Permit, StoreCall, database_decisions
from verifier.stores import group_commit as module
from verifier.stores.database_decisions import DecisionRequest, UncertainError
from verifier.stores.group_commit import GroupCommitter
from verifier.tests.scene import PAY, scene
from verifier.tests.test_store_contract import payment, words

# Concurrent transactions need PostgreSQL.
pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def spend(jti: str) -> Callable[[], str]:
    """A unit of work that writes one row."""

    def unit() -> str:
        spend_proof(jkt="jkt", jti=jti, until=timezone.now() + timedelta(minutes=1))
        return jti

    return unit


def atomically(unit: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with transaction.atomic():
            return unit()

    return run


def handed_in(
    works: list[DecisionRequest | tuple[str, Callable[[], Any]]],
    when_told: Callable[[int], object] = lambda _: None,
) -> list[Any]:
    """The outcomes of calls and other units that wait together before the only thread starts."""

    async def main() -> list[Any]:
        committer = GroupCommitter(threads=1)
        asked = [
            asyncio.ensure_future(
                committer.decide(work)
                if isinstance(work, DecisionRequest)
                else committer.run(work[1], queue=work[0])
            )
            for work in works
        ]
        for place, each in enumerate(asked):
            each.add_done_callback(partial(lambda place, _: when_told(place), place))
        await asyncio.sleep(0)
        committer.start()
        try:
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        finally:
            await asyncio.to_thread(committer.stop)

    return asyncio.run(main())


def spent() -> int:
    return SpentProof.objects.count()


def payments(number: int) -> list[DecisionRequest]:
    """Payments of as many agents."""
    return [DecisionRequest(payment(scene(PAY, max_uses=9))) for _ in range(number)]


def debits() -> int:
    return sum(GrantLedger.objects.values_list("uses", flat=True))


@pytest.mark.parametrize("error", [InvalidRequestError("no"), IntegrityError("twice")])
def test_one_that_fails_is_rolled_back_alone_and_hears_its_own_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = payments(3)

    def decides(call: StoreCall, *more: Any) -> Any:
        if call is calls[1].call:
            raise error
        return decide(call, *more)

    monkeypatch.setattr(database_decisions, "decide", decides)
    first, second, third = handed_in([*calls])
    assert (words(first), words(third)) == ("yes", "yes")
    assert second is error or (
        isinstance(second, TemporarilyUnavailableError) and second.__cause__ is error
    )
    assert (debits(), spent()) == (2, 2)


def test_where_the_connection_ends_in_a_shared_commit_each_is_decided_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Django leaves such an atomic block without an error."""
    ended: list[int] = []

    def terminates(name: str) -> None:
        if name == "verify.after_debit" and not ended:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                ended.append(cursor.fetchone()[0])
            with closing(connection.copy()) as other, other.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", ended)

    monkeypatch.setattr(database_decisions, "fault_point", terminates)
    told = handed_in([*payments(3)])
    assert len(ended) == 1
    assert [type(each) for each in told].count(Permit) == debits() == spent()


def test_statement_failure_outside_a_savepoint_gives_no_yes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PostgreSQL answers the COMMIT with a rollback."""

    def divides(name: str) -> None:
        if name == "verify.after_debit":
            with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
                cursor.execute("SELECT 1 / 0")

    monkeypatch.setattr(database_decisions, "fault_point", divides)
    told = handed_in([*payments(2)])
    assert [type(each) for each in told] == [TemporarilyUnavailableError] * 2
    assert spent() == 0


def test_shared_commits_of_one_grant_never_deadlock() -> None:
    """An agent sends the same two proofs in both orders."""
    place = scene(PAY, max_uses=9)
    one, two = DecisionRequest(payment(place)), DecisionRequest(payment(place))
    with ThreadPoolExecutor(2) as pool:
        told = [*pool.map(lambda calls: handed_in([*calls]), ([one, two], [two, one]))]
    assert sorted(words(each) for each in chain(*told)) == ["replayed", "replayed", "yes", "yes"]


def waits_for_a_lock() -> bool:
    """Over another connection, because a transaction sees one snapshot of the activity."""
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname "
            "= current_database()"
        )
        return bool(cursor.fetchone()[0])


def test_failed_commit_gives_no_yes_and_no_second_decision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapper: Any = type(connections[DEFAULT_DB_ALIAS])
    commit = wrapper._commit

    def lost(self: Any) -> None:
        commit(self)
        if self.settings_dict["OPTIONS"].get("application_name") == "agentauth-commits":
            raise OperationalError("the commit's answer did not come")

    calls = payments(2)
    monkeypatch.setattr(wrapper, "_commit", lost)
    told = handed_in([*calls])
    assert [type(each) for each in told] == [UncertainError] * 2
    assert (debits(), spent()) == (2, 2)


def test_a_thread_goes_on_after_a_connection_that_ended() -> None:
    async def main() -> str:
        committer = GroupCommitter(threads=1)
        committer.start()
        try:
            with pytest.raises(TemporarilyUnavailableError):
                await committer.run(
                    atomically(lambda: connection.connection.close() or spend("a")())
                )
            return await committer.run(atomically(spend("b")))
        finally:
            await asyncio.to_thread(committer.stop)

    assert asyncio.run(main()) == "b"
    assert spent() == 1


def test_at_most_so_many_share_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(asked: list[DecisionRequest], **_: object) -> list[Any]:
        sizes.append(len(asked))
        return asked

    monkeypatch.setattr(module, "decide_all", counted)
    handed_in([DecisionRequest(cast("Any", SimpleNamespace(queue="")))] * 70)
    assert sizes == [32, 32, 6]


def test_call_beyond_the_queue_limit_is_shed(monkeypatch: pytest.MonkeyPatch) -> None:
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
        committer = GroupCommitter(threads=2)
        committer.start()
        first = asyncio.ensure_future(committer.run(slow))
        await asyncio.to_thread(began.wait, 10)
        rest = [
            asyncio.ensure_future(committer.run(atomically(spend(f"{each}")))) for each in range(9)
        ]
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(asyncio.to_thread(committer.stop))
        await asyncio.sleep(0.05)
        assert not ending.done()
        go_on.set()
        await asyncio.wait_for(ending, 10)
        return await asyncio.gather(first, *rest)

    assert asyncio.run(main()) == ["slow", *map(str, range(9))]
    assert spent() == 10


def test_cancelled_call_delays_no_other_call() -> None:
    async def main() -> str:
        committer = GroupCommitter(threads=1)
        gone = asyncio.ensure_future(committer.run(spend("gone")))
        stays = asyncio.ensure_future(committer.run(spend("stays")))
        await asyncio.sleep(0)
        gone.cancel()
        committer.start()
        try:
            return await asyncio.wait_for(stays, 10)
        finally:
            await asyncio.to_thread(committer.stop)

    assert asyncio.run(main()) == "stays"
    # Work whose caller is gone is not begun.
    assert spent() == 1
