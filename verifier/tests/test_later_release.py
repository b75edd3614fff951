"""Two releases side by side: an earlier one leaves a later one's entries in place and whole."""

from datetime import datetime

import pytest
from redis import Redis

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.models import GrantLedger, Home, StreamCursor
from verifier.services.decision_stream_drain import count_waiting, drain
from verifier.stores import decision_stream_reader as waits
from verifier.tests.scene import Scene
from verifier.tests.streams import (
    Verifier,
    assert_whole,
    decided,
    encoded,
    logged_decisions,
    losses,
    proved,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


LATER = waits.FORMAT + 1


def put_later(one: Verifier, place: Scene, form: int = LATER) -> str:
    """Write an entry in a later format, with one more member in its base."""
    one.number += 1
    base = decided(place.grant, later="member")
    one.put(f=form, e=one.epoch, n=one.number, o="a", **proved(encoded(base)))
    return str(base["id"])


def test_an_entry_of_a_later_release_stays_and_blocks_only_its_shard(
    redis: Redis, place: Scene, now: datetime
) -> None:
    first, second = Verifier(redis, place, 0), Verifier(redis, place, 1)
    before = first.write()
    put_later(first, place)
    first.write()
    elsewhere = second.write()
    for _ in range(2):
        with pytest.raises(TemporarilyUnavailableError):
            drain(redis, now=now)
        assert logged_decisions() == sorted([before, elsewhere])
        assert count_waiting(redis)[:2] == [2, 0]
        assert losses() == []
    assert GrantLedger.objects.get().uses == 2
    assert_whole(now)


def test_the_later_release_takes_over_what_the_earlier_one_left(
    redis: Redis, place: Scene, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We cannot parse its format, so it is recorded as lost."""
    one = Verifier(redis, place)
    put_later(one, place)
    after = one.write()
    with pytest.raises(TemporarilyUnavailableError):
        drain(redis, now=now)
    monkeypatch.setattr(waits, "FORMAT", LATER)
    drain(redis, now=now)
    assert logged_decisions() == [after]
    assert [loss["reason"] for loss in losses()] == ["unreadable"]
    assert count_waiting(redis)[0] == 0


def test_what_waits_for_a_later_release_is_not_said_to_be_forgotten(
    redis: Redis, place: Scene, now: datetime
) -> None:
    """Even though its epoch is over and a verifier answered with its number."""
    one = Verifier(redis, place)
    put_later(one, place)
    StreamCursor.objects.create(epoch=1, shard=0, number=0, told=1)
    Home.objects.update_or_create(pk=Home.ONLY, defaults={"epoch": 2, "began_at": now})
    with pytest.raises(TemporarilyUnavailableError):
        drain(redis, now=now)
    assert losses() == []
    assert StreamCursor.objects.values_list("number", flat=True).get(epoch=1, shard=0) == 0


@pytest.mark.parametrize("form", ["0", "1", "2", "x", "-2", "", "9" * 5000])
def test_what_names_no_later_format_is_read_as_ours(
    redis: Redis, place: Scene, now: datetime, form: str
) -> None:
    one = Verifier(redis, place)
    one.number += 1
    base = decided(place.grant)
    one.put(f=form, e=1, n=1, o="a", **proved(encoded(base)))
    assert drain(redis, now=now) == 1
    assert logged_decisions() == [base["id"]]
