"""Concurrent commits that need each other's locks: no call fails and no deadlock is waited for."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import QuerySet

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import (
    IdempotencyInProgressError,
    IdempotencyMismatchError,
)
from audit.models import Event
from registry.models import SpentProof
from tests.time_limits import within
from tests.waiting import until
from verifier.models import GrantLedger, ProviderCall
from verifier.services.short_timeout_connection import use_own_connection
from verifier.stores import HeldUpError, NotDoneError, ProviderKey, StoreCall, database_decisions
from verifier.stores.database_decisions import DecisionRequest, decide_one
from verifier.stores.group_commit import decide_all
from verifier.tests.scene import PAY, READ, Scene, scene
from verifier.tests.test_shared_commits import atomically, handed_in, waits_for_a_lock
from verifier.tests.test_store_contract import call, payment, words

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

# PostgreSQL's deadlock_timeout is 1 s.
WELL_UNDER = 0.7


def said(outcome: Any) -> str:
    if isinstance(outcome, IdempotencyMismatchError):
        return "mismatch"
    return outcome if isinstance(outcome, str) else words(outcome)


def crossed(one: Sequence[DecisionRequest], other: Sequence[DecisionRequest]) -> list[str]:
    """The answers of two processes that decide these calls at the same time, each in its order."""
    both = threading.Barrier(2, timeout=20)

    def process(calls: Sequence[DecisionRequest]) -> list[Any]:
        both.wait()
        return handed_in([*calls])

    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        told = [outcome for outcomes in pool.map(process, (one, other)) for outcome in outcomes]
    assert time.monotonic() - began < within(WELL_UNDER)
    return [said(outcome) for outcome in told]


def ledgers_held(
    ledgers: QuerySet[GrantLedger] | None = None,
) -> tuple[threading.Event, threading.Thread]:
    """Lock these counters, or all, until the event is set."""
    held, done = threading.Event(), threading.Event()

    def unit() -> None:
        list((GrantLedger.objects.all() if ledgers is None else ledgers).select_for_update())
        held.set()
        done.wait(20)

    def holds() -> None:
        atomically(unit)()
        connection.close()

    holder = threading.Thread(target=holds)
    holder.start()
    assert held.wait(20)
    return done, holder


def under(mine: StoreCall, place: Scene, name: str, body: bytes = b"1") -> StoreCall:
    """The call under the service provider's name for it."""
    digest = sha256(f"{place.provider.pk} {name}".encode())
    return replace(mine, provider_key=ProviderKey(digest=digest, body_sha256=sha256(body)))


def test_two_proofs_without_action_in_crossed_order_do_not_deadlock() -> None:
    place = scene(READ)
    ask = [DecisionRequest(call(place, None)) for _ in range(2)]
    assert sorted(crossed(ask, ask[::-1])) == ["replayed", "replayed", "yes", "yes"]
    assert Event.objects.filter(kind="verifier.decision.allowed").count() == 2


def test_calls_named_in_crossed_order_across_grants_do_not_deadlock() -> None:
    places = [scene(PAY) for _ in range(4)]
    names = zip(places, "1221", (b"a", b"b", b"c", b"d"), strict=True)
    ask = [DecisionRequest(under(payment(at), places[0], name, body)) for at, name, body in names]
    told = crossed(ask[:2], ask[2:])
    # Each name belongs to the body that used it first, and no grant is blocked.
    assert sorted(told) == ["mismatch", "mismatch", "yes", "yes"]
    assert ProviderCall.objects.count() == 2
    assert not ProviderCall.objects.filter(answer="").exists()


def test_two_concurrent_first_uses_and_a_replay_do_not_deadlock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first spent its proof, the second inserts counters, the replay needs that proof."""
    place = scene(PAY)
    first, second = payment(place), payment(place)
    spent, go, told = threading.Event(), threading.Event(), list[str]()

    def meanwhile(name: str) -> None:
        if name == "verify.after_spend" and threading.current_thread().name == "first":
            spent.set()
            go.wait(20)

    def asks(mine: StoreCall) -> None:
        told.append(words(decide_one(mine)))
        connection.close()

    monkeypatch.setattr(database_decisions, "fault_point", meanwhile)
    asked = [
        threading.Thread(target=asks, args=[mine], name=name)
        for mine, name in ((first, "first"), (second, "second"), (first, "replay"))
    ]
    asked[0].start()
    assert spent.wait(20)
    asked[1].start()
    until(lambda: bool(told) or waits_for_a_lock())
    asked[2].start()
    time.sleep(0.3)
    go.set()
    for each in asked:
        each.join(20)
    assert sorted(told) == ["replayed", "yes", "yes"]


def test_provider_retry_at_another_process_finds_the_first_answer() -> None:
    place = scene(PAY, max_uses=9)
    first, named = under(payment(place), place, "0"), under(payment(place), place, "1")
    told = crossed([DecisionRequest(first), DecisionRequest(named)], [DecisionRequest(named)])
    assert told[0] == "yes"
    assert sorted(told[1:]) == ["recalled", "yes"]
    assert GrantLedger.objects.get().uses == 2
    # Each answer was kept with its decision.
    assert [words(decide_one(each)) for each in (first, named)] == ["recalled", "recalled"]


def test_call_that_hits_a_lock_is_undone_without_delaying_its_commit() -> None:
    place, other = scene(PAY), scene(PAY)
    assert words(decide_one(payment(place))) == "yes"
    named, free = (
        DecisionRequest(under(payment(place), place, "1")),
        DecisionRequest(payment(other)),
    )
    done, holder = ledgers_held()
    known = SpentProof.objects.count()
    use_own_connection("test", wait_seconds=0.005)
    try:
        told = decide_all([free, named])
        assert (words(told[0]), type(told[1]), type(told[1].told)) == (
            "yes",
            HeldUpError,
            NotDoneError,
        )
        assert not ProviderCall.objects.exists()
        assert SpentProof.objects.count() == known + 1
        # With patience, it waits for the lock.
        threading.Timer(0.3, done.set).start()
        assert [words(each) for each in decide_all([named], patience=5)] == ["yes"]
    finally:
        done.set()
        holder.join(20)
        connections.close_all()


def test_RF_8_locked_grants_do_not_delay_other_grants() -> None:
    """For example after a host was cut off from the database in the middle of a commit."""
    held, free = [scene(PAY, max_uses=9) for _ in range(4)], scene(PAY, max_uses=9)
    told_at = dict[int, float]()
    for place in (*held, free):
        assert words(decide_one(payment(place))) == "yes"
    ledgers = GrantLedger.objects.filter(grant_id__in=[place.grant.pk for place in held])
    done, holder = ledgers_held(ledgers)

    calls = [DecisionRequest(payment(place)) for place in (*held, *held, free)]
    began = time.monotonic()
    told = handed_in([*calls], lambda place: told_at.setdefault(place, time.monotonic() - began))
    done.set()
    holder.join(20)
    assert words(told[-1]) == "yes"
    # Before the patience for any lock ends.
    assert told_at[8] == min(told_at.values())
    assert told_at[8] < within(1.5)
    # Hopeless calls do not occupy the thread longer than one of them would.
    assert {type(each) for each in told[:-1]} == {NotDoneError}
    assert max(told_at.values()) < within(4)


def test_retry_reports_the_running_first_try_despite_other_lock_waits() -> None:
    """It shares a commit with a held grant, and its first try holds its name elsewhere."""
    held, place = scene(PAY, max_uses=9), scene(PAY, max_uses=9)
    assert words(decide_one(payment(held))) == "yes"
    named = under(payment(place), place, "1")
    runs, go_on = threading.Event(), threading.Event()

    def first_try() -> None:
        with transaction.atomic():
            decide_one(named)
            runs.set()
            go_on.wait(20)
        connection.close()

    first = threading.Thread(target=first_try)
    first.start()
    assert runs.wait(20)
    done, holder = ledgers_held(GrantLedger.objects.filter(grant_id=held.grant.pk))
    told = handed_in([DecisionRequest(payment(held)), DecisionRequest(named)])
    for each in (go_on, done):
        each.set()
    first.join(20)
    holder.join(20)
    assert [type(each) for each in told] == [NotDoneError, IdempotencyInProgressError]


def test_a_call_that_waited_for_its_first_try_is_still_in_progress() -> None:
    """The caller is told to ask again under the same key, not that the database is away."""
    place = scene(PAY, max_uses=9)
    named = under(payment(place), place, "1")
    runs, go_on, told = threading.Event(), threading.Event(), list[Exception]()

    def first_try() -> None:
        with transaction.atomic():
            decide_one(named)
            runs.set()
            go_on.wait(20)
        connection.close()

    def second_try() -> None:
        use_own_connection("test", wait_seconds=0.005)
        try:
            decide_one(named)
        except Exception as error:  # noqa: BLE001 — compared below
            told.append(error)
        connection.close()

    first, second = (threading.Thread(target=each) for each in (first_try, second_try))
    first.start()
    assert runs.wait(20)
    second.start()
    second.join(20)
    go_on.set()
    first.join(20)
    assert [type(each) for each in told] == [IdempotencyInProgressError]
    assert words(decide_one(named)) == "recalled"
