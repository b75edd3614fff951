"""From one epoch to the next: no proof, pending decision or burst is carried over."""

from collections import Counter

import pytest
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from registry.models import SpentProof
from registry.services.nonces import nonces_of
from verifier.models import GrantLedger
from verifier.services import replay_cache_lease
from verifier.services.replay_epochs import (
    CAREFUL_SECONDS,
    LEASE_SECONDS,
    MARGIN_SECONDS,
    ReplayEpoch,
)
from verifier.stores.database_decisions import decide_one
from verifier.tests.epoch_moves import Passing, begin, leave, move, unavailable, with_nonce
from verifier.tests.scene import LOOK, Scene, assert_refused, scene
from verifier.tests.test_store_contract import call
from verifier.verification import SPARE_SECONDS

pytestmark = pytest.mark.django_db


# ---- proofs


def test_for_a_while_after_a_move_a_proof_needs_a_nonce_of_the_new_epoch(time: Passing) -> None:
    place = scene()
    server = str(place.provider.pk)
    former = with_nonce(place, 1)
    assert place.ask(LOOK)["valid"]
    move(time)
    answer = assert_refused(place, place.body(LOOK))
    assert answer["error"] == "use_dpop_nonce"
    assert answer["nonce"] == nonces_of(f"{server}/2", timezone.now()).current
    assert answer["nonce"] not in nonces_of(server, timezone.now()).accepted
    assert assert_refused(place, former)["error"] == "use_dpop_nonce"
    token = place.token()
    proof = place.proof(token, nonce=answer["nonce"])
    assert place.ask(LOOK, token=token, proof=proof)["valid"]
    time.shift(CAREFUL_SECONDS)
    assert assert_refused(place, place.body(LOOK))["error"] == "use_dpop_nonce"
    time.shift(1.1)
    assert place.ask(LOOK)["valid"]
    # A proof that carries a nonce is still checked against it, then accepted as before.
    assert assert_refused(place, with_nonce(place, 1))["error"] == "use_dpop_nonce"
    assert place.ask(**with_nonce(place))["valid"]


def test_RF_12_no_epoch_begins_by_a_clock_of_the_database_that_is_wrong(time: Passing) -> None:
    """Such an epoch would count as old once the clock is right, and no proof would need a nonce."""
    assert leave()
    time.shift(LEASE_SECONDS + MARGIN_SECONDS)
    for ahead in (600, -600):
        # The database's clock is behind, and ahead.
        time.set_ahead(ahead)
        assert not begin()
    time.set_ahead(5)
    assert begin()
    time.set_ahead(0)
    assert assert_refused(place := scene(), place.body(LOOK))["error"] == "use_dpop_nonce"


def test_RF_5_proof_never_passes_in_the_next_epoch_with_an_empty_cache(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every clock at its worst.

    The proof passes at the last moment, on a host that is ahead, with the latest possible `iat`.
    """
    # This process learns of the move as late as any process may.
    monkeypatch.setattr(replay_cache_lease, "FRESH_SECONDS", LEASE_SECONDS)
    place = scene()
    token = place.token()
    time.set_ahead(5)
    replay_cache_lease.LEASE.current()
    assert leave()
    # Redis is not used in the last moment of a lease.
    time.shift(LEASE_SECONDS - SPARE_SECONDS)
    proof = place.proof(token, iat=int(timezone.now().timestamp()) + 60)
    body = place.body(LOOK, token=token, proof=proof)
    assert place.ask(**body)["valid"]
    time.shift(MARGIN_SECONDS + SPARE_SECONDS)
    assert begin()
    SpentProof.objects.all().delete()
    time.set_ahead(-5)
    monkeypatch.setattr(replay_cache_lease, "FRESH_SECONDS", 0)
    said = Counter[str]()
    for _ in range(140):
        answer = assert_refused(place, body)
        said[answer.get("reason") or answer["error"]] += 1
        time.shift(1)
    # First the missing nonce refuses it, then its age.
    assert said.keys() == {"use_dpop_nonce", "iat"}
    assert said["use_dpop_nonce"] > 120


def test_what_was_prepared_under_one_epoch_is_not_decided_under_the_next(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither if the epoch changes before the store is called, nor while the store works."""
    place = scene(max_requests_per_minute=10)
    first = replay_cache_lease.LEASE.current()
    second = ReplayEpoch(2, "database", frozenset(), first.began_at)
    for tenures in ([first, second, second], [first, first, second]):
        told = iter(tenures)
        body = place.body(LOOK)
        with monkeypatch.context() as patch:
            for look in ("current", "last_epoch"):
                patch.setattr(replay_cache_lease.LEASE, look, lambda *_, told=told: next(told))
            unavailable(place, body)
        assert next(told, None) is None
        assert not GrantLedger.objects.filter(tat_us__isnull=False).exists()
    assert place.ask(**body)["valid"]


def test_the_database_decides_nothing_while_the_home_is_redis(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    move(time, "redis", frozenset({"another"}))
    unavailable(place, with_nonce(place))
    with pytest.raises(TemporarilyUnavailableError):
        decide_one(call(place))


# ---- rates


def passed(place: Scene, tries: int, epoch: int = 2) -> int:
    return sum(bool(place.ask(**with_nonce(place, epoch))["valid"]) for _ in range(tries))


def test_EN_7_a_rate_of_which_nothing_is_known_does_not_begin_with_a_burst(time: Passing) -> None:
    place = scene(max_requests_per_minute=10, max_burst=3)
    assert passed(place, 5, 1) == 3
    move(time)
    # The new cache does not know the rate.
    GrantLedger.objects.update(tat_us=None)
    # The burst counts as used when this epoch began, so the next use is one interval later.
    answers = [place.ask(**with_nonce(place), dry_run=dry) for dry in (True, False)]
    assert [(each["reason"], each["retry_after"]) for each in answers] == [("rate", 6)] * 2
    time.shift(6)
    assert place.ask(**with_nonce(place), dry_run=True)["limits"]["rate_remaining"] == 1
    assert passed(place, 3) == 1
    # The burst refills at the rate, as usual.
    time.shift(18)
    assert passed(place, 5) == 3


def test_EN_7_rate_further_ahead_is_not_moved_back_by_a_new_epoch(time: Passing) -> None:
    place = scene(max_requests_per_minute=10, max_burst=3)
    assert passed(place, 1, 1) == 1
    move(time)
    GrantLedger.objects.update(tat_us=int((timezone.now().timestamp() + 60) * 1_000_000))
    time.shift(47)
    assert passed(place, 2) == 0
    time.shift(1.1)
    assert passed(place, 2) == 1


def test_where_no_rate_is_set_none_is_counted(time: Passing) -> None:
    place = scene()
    move(time)
    assert passed(place, 3) == 3
    assert not GrantLedger.objects.filter(tat_us__isnull=False).exists()
