"""Redis entries that no verifier of this installation wrote are recorded as such, not decided."""

from datetime import datetime
from typing import Any

import pytest
from redis import Redis

from kms import row_seals
from kms.models import SealsPending
from verifier.models import GrantLedger, StreamCursor
from verifier.services import decision_stream_drain
from verifier.services.decision_stream_drain import count_waiting, drain
from verifier.stores.stream_entry_macs import mac_of
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
UNPROVED = {"reason": "unproved", "epoch": 0, "shard": 0, "first": 0, "count": 1}


@pytest.fixture
def release_3_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    SealsPending.objects.create()
    monkeypatch.setattr(decision_stream_drain, "DEMAND", row_seals._Demand())


def forged(place: Scene, mac: bytes | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"e": 1, "n": 2, "o": "a", "b": encoded(decided(place.grant))}
    return fields if mac is None else fields | {"m": mac}


MACS = (None, b"", b"0123456789abcdef", mac_of(b"{}"))


@pytest.mark.parametrize("mac", MACS)
def test_a_forged_decision_counts_nothing_and_is_stated(
    verifier: Verifier,
    redis: Redis,
    now: datetime,
    caplog: pytest.LogCaptureFixture,
    mac: bytes | None,
) -> None:
    before = verifier.write()
    verifier.put(**forged(verifier.place, mac))
    after = verifier.write()
    assert drain(redis, now=now) == 3
    assert logged_decisions() == sorted([before, after])
    assert losses() == [UNPROVED]
    assert "has no MAC of this installation" in caplog.text
    assert GrantLedger.objects.get().uses == 2
    assert StreamCursor.objects.get().number == 2
    assert count_waiting(redis)[0] == 0
    assert_whole(now)


def test_a_changed_decision_is_stated_and_so_is_the_missing_number(
    verifier: Verifier, redis: Redis, now: datetime
) -> None:
    base = encoded(
        decided(verifier.place.grant, kind="denied", error="invalid_token", reason="expired")
    )
    verifier.put(e=1, n=1, o="v", **proved(base) | {"b": encoded(decided(verifier.place.grant))})
    verifier.number = 1
    after = verifier.write()
    drain(redis, now=now)
    assert logged_decisions() == [after]
    assert losses() == [
        UNPROVED,
        {"reason": "missing", "epoch": 1, "shard": 0, "first": 1, "count": 1},
    ]


@pytest.mark.usefixtures("release_3_may_run")
@pytest.mark.parametrize("mac", MACS)
def test_while_release_3_may_run_a_wrong_mac_is_refused_and_none_is_taken(
    verifier: Verifier, redis: Redis, now: datetime, mac: bytes | None
) -> None:
    verifier.write()
    verifier.put(**forged(verifier.place, mac))
    drain(redis, now=now)
    assert len(logged_decisions()) == (2 if mac is None else 1)
    assert losses() == ([] if mac is None else [UNPROVED])


def test_a_decision_under_a_former_secret_key_counts(
    verifier: Verifier, redis: Redis, now: datetime, settings: Any
) -> None:
    written = verifier.write()
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    drain(redis, now=now)
    assert logged_decisions() == [written]
    settings.SECRET_KEY_FALLBACKS = []
    verifier.write()
    drain(redis, now=now)
    settings.SECRET_KEY = "a third"
    verifier.write()
    settings.SECRET_KEY = "another"
    drain(redis, now=now)
    assert len(logged_decisions()) == 2
    assert losses() == [UNPROVED]
