"""State and lease must still be valid at the commit: also for a shared commit and a kept answer."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import Event
from registry.models import SpentProof
from verifier import stores
from verifier.models import ProviderCall
from verifier.services import clock_readings, freshness, replay_cache_lease, replay_epochs
from verifier.services.clock_readings import ClockReading
from verifier.services.freshness import DecisionBasis
from verifier.stores import EarlyRefusal, HeldUpError, StoredAnswer, database_decisions
from verifier.stores.database_decisions import DecisionRequest, decide_one, decide_together
from verifier.stores.group_commit import decide_all
from verifier.tests.scene import LOOK, SYSTEM, scene
from verifier.tests.test_store_contract import call, named, prepared, words

pytestmark = pytest.mark.django_db(transaction=True)


def grows_old() -> None:
    time.sleep(1.2)


def is_left() -> None:
    """Another process starts leaving the cache, and this one reads the row."""
    row, _ = replay_epochs.read_or_create_row()
    replay_epochs.end_epoch(
        epoch=row.epoch, for_kind=row.kind, reason="test", actor=SYSTEM, now=timezone.now()
    )
    replay_cache_lease.LEASE._last = None


@pytest.fixture(params=[grows_old, is_left])
def meanwhile(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """What happens between a decision and its commit."""
    monkeypatch.setattr(freshness, "STALE_SECONDS", 1.0)
    made: Callable[[], None] = request.param
    return made


def test_what_others_of_its_commit_take_counts_too(
    meanwhile: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    mine, other = call(place), call(place)
    known = Event.objects.count()
    monkeypatch.setattr(
        database_decisions,
        "fault_point",
        lambda name: meanwhile() if name == "verify.after_debit" else None,
    )
    for asked in ([DecisionRequest(mine)], [DecisionRequest(mine), DecisionRequest(other)]):
        assert all(isinstance(each, TemporarilyUnavailableError) for each in decide_all(asked))
        replay_cache_lease.LEASE._last = None
    assert Event.objects.count() == known
    assert not SpentProof.objects.exists()


def test_RF_4_late_commit_gives_503_and_a_named_retry_gets_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = scene()
    mine = replace(call(place), provider_key=named(place))
    with monkeypatch.context() as patch:
        patch.setattr(freshness, "STALE_SECONDS", 1.0)
        patch.setattr(
            database_decisions,
            "fault_point",
            lambda name: time.sleep(1.2 * (name == "verify.after_commit")),
        )
        with pytest.raises(TemporarilyUnavailableError):
            decide_one(mine)
    assert words(decide_one(mine)) == "recalled"
    assert not Event.objects.filter(reason="withheld").exists()


def test_RF_4_late_commit_of_an_unnamed_yes_is_recorded_as_withheld(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = scene()
    mine = call(place)
    monkeypatch.setattr(freshness, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(
        database_decisions,
        "fault_point",
        lambda name: time.sleep(1.2 * (name == "verify.after_commit")),
    )
    with pytest.raises(TemporarilyUnavailableError):
        decide_one(mine)
    allowed = Event.objects.get(kind=kinds.DECISION_ALLOWED)
    withheld = Event.objects.get(kind=kinds.DECISION_DENIED)
    assert (withheld.reason, withheld.data["withholds"]) == ("withheld", str(allowed.pk))
    assert (withheld.grant_id, withheld.human_id) == (allowed.grant_id, allowed.human_id)
    # A refusal is not recorded as withheld.
    with pytest.raises(TemporarilyUnavailableError):
        decide_one(mine)
    assert Event.objects.filter(reason="withheld").count() == 1


def test_commit_is_not_decided_again_if_withholding_cannot_be_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If proofs are in Redis, each would be debited twice."""

    def fails(_drafts: object) -> None:
        raise OperationalError

    place = scene()
    asked = [DecisionRequest(call(place)), DecisionRequest(call(place))]
    monkeypatch.setattr(freshness, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(database_decisions, "record_drafts", fails)
    monkeypatch.setattr(
        database_decisions,
        "fault_point",
        lambda name: grows_old() if name == "verify.after_commit" else None,
    )
    assert all(isinstance(each, TemporarilyUnavailableError) for each in decide_all(asked))
    told = Event.objects.filter(kind__startswith="verifier.decision").values_list("kind", flat=True)
    assert list(told) == [kinds.DECISION_ALLOWED] * 2


def test_a_yes_is_given_again_only_where_one_could_be_given(
    meanwhile: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proof is too old by now, so it arrives as a refusal."""
    place = scene()
    mine = replace(call(place), provider_key=named(place))
    assert words(decide_one(mine)) == "yes"
    late = replace(early(place), claims=mine.claims, provider_key=mine.provider_key)
    assert isinstance(decide_one(late), StoredAnswer)
    known = Event.objects.count()

    monkeypatch.setattr(
        database_decisions,
        "fault_point",
        lambda name: meanwhile() if name == "verify.after_debit" else None,
    )
    for refusal in (late, replace(late, provider_key=None)):
        replay_cache_lease.LEASE._last = None
        with pytest.raises(TemporarilyUnavailableError):
            decide_one(refusal)
    assert Event.objects.count() == known
    assert ProviderCall.objects.count() == 1


def test_without_leave_to_decide_no_yes_is_given_again() -> None:
    """The lease ended while the call waited for its turn."""
    place = scene()
    mine = replace(call(place), provider_key=named(place))
    assert words(decide_one(mine)) == "yes"
    late = replace(early(place), claims=mine.claims, provider_key=mine.provider_key)
    replay_epochs.read_or_create_row()
    is_left()
    with pytest.raises(TemporarilyUnavailableError):
        decide_one(late)


def test_proof_whose_time_ends_before_the_commit_is_not_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have been spent elsewhere and forgotten since the call began."""
    place = scene()
    mine, known = call(place), Event.objects.count()

    def halted(name: str) -> None:
        if name == "verify.after_debit":
            monkeypatch.setattr(stores, "_MOST_WAIT", timedelta(0))

    monkeypatch.setattr(database_decisions, "fault_point", halted)
    with pytest.raises(TemporarilyUnavailableError):
        decide_one(mine)
    assert (Event.objects.count(), SpentProof.objects.count()) == (known, 0)
    # A refusal spends no proof, and is recorded however late.
    assert words(decide_one(early(place))) == "malformed"


def test_call_that_waited_too_long_holds_up_no_other_of_its_commit() -> None:
    place = scene()
    late = call(place)
    late = replace(late, now=late.now - stores._MOST_WAIT)
    refused, decision = decide_together([DecisionRequest(late), DecisionRequest(call(place))])
    assert isinstance(refused, TemporarilyUnavailableError)
    assert words(decision) == "yes"
    assert SpentProof.objects.count() == 1


def test_same_named_call_is_judged_once_in_one_commit() -> None:
    place = scene()
    asked = DecisionRequest(replace(call(place), provider_key=named(place)))
    decision, held_up = decide_together([asked, asked])
    assert words(decision) == "yes"
    assert isinstance(held_up, HeldUpError)
    assert words(decide_one(asked.call)) == "recalled"


def test_basis_is_good_for_five_seconds_of_one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [1000.0]
    for clock in ("monotonic", "time"):
        monkeypatch.setattr(clock_readings, clock, lambda: at[0])
    held = DecisionBasis(ClockReading.now(), replay_cache_lease.LEASE.current())
    at[0] += freshness.STALE_SECONDS - 0.5
    # A later read of the same epoch does not invalidate the basis.
    replay_cache_lease.LEASE._last = None
    assert replay_cache_lease.LEASE.current() is not held.replay_epoch
    held.check()
    freshness.check_age(held.began)
    with pytest.raises(TemporarilyUnavailableError):
        replace(
            held, replay_epoch=replace(held.replay_epoch, number=held.replay_epoch.number + 1)
        ).check()
    for act in (partial(held.check, 0.6), partial(freshness.check_age, held.began, 0.6)):
        with pytest.raises(TemporarilyUnavailableError):
            act()


def early(place: Any) -> EarlyRefusal:
    refusal = prepared(place, LOOK, proof="x")
    assert isinstance(refusal, EarlyRefusal)
    return refusal
