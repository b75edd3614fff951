"""Commits that each hold what the other wants next: nobody is told to come again, and nobody waits for a deadlock to be found."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import QuerySet

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import (
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    TemporarilyUnavailableError,
)
from audit.models import Event
from registry.models import SpentProof
from tests.pace import within
from verifier.models import GrantLedger, ProviderCall
from verifier.stores import Delivery, StoreCall, database, lane
from verifier.stores.database import DatabaseStore
from verifier.stores.lane import HeldUpError, NotDoneError, committed_together
from verifier.tests.scene import PAY, READ, Scene, scene
from verifier.tests.test_shared_commits import atomically, handed_in, spend, until, waits_for_a_lock
from verifier.tests.test_store_contract import call, payment, words

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

Unit = Callable[[], Any]
# PostgreSQL looks for deadlocks after a second.
WELL_UNDER = 0.7


@pytest.fixture(autouse=True)
def _begun_however_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed in together is in one commit, however long its first parts take here."""
    monkeypatch.setattr(lane, "_TOGETHER_SECONDS", 20)


def said(outcome: Any) -> str:
    if isinstance(outcome, IdempotencyMismatchError):
        return "mismatch"
    return outcome if isinstance(outcome, str) else words(outcome)


def crossed(one: tuple[Unit, Unit], other: tuple[Unit, Unit]) -> list[str]:
    """What two processes tell that have each done the first of theirs when they come to the second."""
    both, met = threading.Barrier(2, timeout=20), [0.0]

    def meet() -> str:
        both.wait()
        met[0] = time.monotonic()
        return "met"

    def process(units: tuple[Unit, Unit]) -> list[Any]:
        return handed_in([("a", units[0]), ("b", meet), ("c", units[1])])

    with ThreadPoolExecutor(2) as pool:
        told = [outcome for outcomes in pool.map(process, (one, other)) for outcome in outcomes]
    assert time.monotonic() - met[0] < within(WELL_UNDER)
    return [said(told[place]) for place in (0, 2, 3, 5)]


def ledgers_held(ledgers: QuerySet[GrantLedger] | None = None) -> tuple[threading.Event, threading.Thread]:
    """Somebody holds these counters, or all, until the event is set."""
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
    """The call under its provider's name."""
    digest = sha256(f"{place.provider.pk} {name}".encode())
    return replace(mine, delivery=Delivery(digest=digest, body_sha256=sha256(body)))


def test_two_commits_that_spend_the_same_in_crossed_order() -> None:
    x, y = atomically(spend("x")), atomically(spend("y"))
    assert crossed((x, y), (y, x)) == ["x", "y", "y", "x"]
    assert SpentProof.objects.count() == 2


def test_a_malicious_agent_that_sends_two_proofs_without_an_action_in_both_orders() -> None:
    place, store = scene(READ), DatabaseStore()
    ask = [partial(store.apply, call(place, None)) for _ in range(2)]
    assert sorted(crossed((ask[0], ask[1]), (ask[1], ask[0]))) == ["replayed", "replayed", "yes", "yes"]
    assert Event.objects.filter(kind="verifier.decision.allowed").count() == 2


def test_a_malicious_provider_that_names_calls_of_its_grants_in_crossed_order() -> None:
    places, store = [scene(PAY) for _ in range(4)], DatabaseStore()
    names = zip(places, "1221", (b"a", b"b", b"c", b"d"), strict=True)
    ask = [partial(store.apply, under(payment(at), places[0], name, body)) for at, name, body in names]
    told = crossed((ask[0], ask[1]), (ask[2], ask[3]))
    # Each name stands for the body that was first under it, and every grant goes on.
    assert sorted(told) == ["mismatch", "mismatch", "yes", "yes"]
    assert ProviderCall.objects.count() == 2
    assert not ProviderCall.objects.filter(answer="").exists()


def test_a_malicious_agent_that_sends_two_first_uses_of_a_grant_and_one_of_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first has spent its proof; the second makes the counters, if it may; the replay has those and wants that proof."""
    place, store = scene(PAY), DatabaseStore()
    first, second = payment(place), payment(place)
    spent, go, told = threading.Event(), threading.Event(), list[str]()

    def meanwhile(name: str) -> None:
        if name == "verify.after_spend" and threading.current_thread().name == "first":
            spent.set()
            go.wait(20)

    def asks(mine: StoreCall) -> None:
        [outcome] = committed_together([partial(store.apply, mine)])
        told.append("unavailable" if isinstance(outcome, TemporarilyUnavailableError) else words(outcome))
        connection.close()

    monkeypatch.setattr(database, "fault_point", meanwhile)
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


@pytest.mark.parametrize("alone", [True, False], ids=["in a commit of its own", "in a shared commit"])
def test_a_providers_second_try_at_another_process_while_the_first_shares_a_commit(*, alone: bool) -> None:
    """T1 has done one call of a grant; T2 holds the name of the next and waits for the grant; T1 comes to that name."""
    place, store = scene(PAY, max_uses=9), DatabaseStore()
    assert words(store.apply(payment(place))) == "yes"
    first, named = under(payment(place), place, "0"), under(payment(place), place, "1")
    told: list[Any] = []
    met = [0.0]

    def second_try() -> None:
        rest = [] if alone else [("z", atomically(spend("z")))]
        told.extend(handed_in([("a", partial(store.apply, named)), *rest]))

    other = threading.Thread(target=second_try)

    def meet() -> None:
        other.start()
        until(waits_for_a_lock)
        met[0] = time.monotonic()

    own = handed_in([("a", partial(store.apply, first)), ("b", meet), ("c", partial(store.apply, named))])
    other.join(30)
    assert time.monotonic() - met[0] < within(WELL_UNDER)
    assert words(own[0]) == "yes"
    assert sorted([words(own[2]), words(told[0])]) == ["recalled", "yes"]
    assert GrantLedger.objects.get().uses == 3
    # Each answer is kept with its decision.
    assert [words(store.apply(each)) for each in (first, named)] == ["recalled", "recalled"]


def test_a_job_that_hits_a_lock_in_a_shared_commit_leaves_nothing() -> None:
    place, store = scene(PAY), DatabaseStore()
    assert words(store.apply(payment(place))) == "yes"
    named = under(payment(place), place, "1")
    done, holder = ledgers_held()
    spent = SpentProof.objects.count()
    own = committed_together(
        [atomically(spend("own")), partial(store.apply, named), atomically(spend("last"))]
    )
    assert type(own[1].told) is NotDoneError
    assert (own[0], type(own[1]), own[2]) == ("own", HeldUpError, "last")
    assert not ProviderCall.objects.exists()
    assert SpentProof.objects.count() == spent + 2
    # Where each of them would be told soon, nobody waits.
    assert type(committed_together([partial(store.apply, named), lambda: None])[0]) is HeldUpError
    # Who is first holds nothing that others wait for, and so it waits.
    threading.Timer(0.3, done.set).start()
    assert [words(committed_together([partial(store.apply, named)], patience=5)[0])] == ["yes"]
    holder.join(20)


def test_RF_8_grants_that_somebody_holds_hold_up_none_of_the_others() -> None:
    """As what a host leaves behind whose way to the database was cut in the middle of a commit."""
    held, free = [scene(PAY, max_uses=9) for _ in range(4)], scene(PAY, max_uses=9)
    store, told_at = DatabaseStore(), dict[str, float]()
    for place in (*held, free):
        assert words(store.apply(payment(place))) == "yes"
    ledgers = GrantLedger.objects.filter(grant_id__in=[place.grant.pk for place in held])
    done, holder = ledgers_held(ledgers)

    def pays(place: Scene, name: str) -> tuple[str, Unit]:
        return name, lambda: store.apply(payment(place))

    units = [pays(place, name) for name, place in zip("abcd", held, strict=True) for _ in range(2)]
    units.append(pays(free, "z"))
    began = time.monotonic()
    told = handed_in(units, lambda order: told_at.setdefault(order, time.monotonic() - began))
    done.set()
    holder.join(20)
    assert words(told[-1]) == "yes"
    # Before anybody's patience is over.
    assert told_at["z"] < 1.5
    # Nor do those for whom there is no hope take the thread for longer than one of them would.
    assert {type(each) for each in told[:-1]} == {NotDoneError}
    assert max(told_at.values()) < 4


def test_a_second_try_is_told_that_the_first_one_runs_whoever_else_was_waited_for() -> None:
    """It shares a commit with a grant that is held, and its first try holds its name elsewhere."""
    held, place, store = scene(PAY, max_uses=9), scene(PAY, max_uses=9), DatabaseStore()
    assert words(store.apply(payment(held))) == "yes"
    named = under(payment(place), place, "1")
    runs, go_on = threading.Event(), threading.Event()

    def first_try() -> None:
        with transaction.atomic():
            store.apply(named)
            runs.set()
            go_on.wait(20)
        connection.close()

    first = threading.Thread(target=first_try)
    first.start()
    assert runs.wait(20)
    done, holder = ledgers_held(GrantLedger.objects.filter(grant_id=held.grant.pk))
    told = handed_in([("a", lambda: store.apply(payment(held))), ("b", partial(store.apply, named))])
    for each in (go_on, done):
        each.set()
    first.join(20)
    holder.join(20)
    assert [type(each) for each in told] == [NotDoneError, IdempotencyInProgressError]
