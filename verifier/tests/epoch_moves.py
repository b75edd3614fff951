"""Clocks that only a test moves, and moves between replay caches without the epoch keeper."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.db.models import DateTimeField, Value
from django.utils import timezone

from audit.kinds import CLOCK_OFF
from audit.models import Event
from registry.models import SpentProof
from registry.services.nonces import nonces_of
from verifier.models import Home
from verifier.services import replay_cache_lease, replay_epochs
from verifier.stores.redis_probe import RedisProbe
from verifier.tests.scene import LOOK, SYSTEM, Scene


class Passing:
    """Wall and monotonic clock of this host, and the database's clock, `ahead` seconds behind."""

    def __init__(self, travel: "time_machine.Traveller") -> None:
        self._travel = travel
        self._seconds = 1000.0
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._seconds

    def shift(self, seconds: float) -> None:
        self._travel.shift(seconds)
        self._seconds += seconds

    def set_ahead(self, seconds: float) -> None:
        """Set this host's clock this many seconds ahead of the database's."""
        self._travel.shift(seconds - self._ahead)
        self._ahead = seconds

    def database_clock(self) -> Value:
        return Value(timezone.now() - timedelta(seconds=self._ahead), output_field=DateTimeField())


@pytest.fixture
def time(db: None) -> Iterator[Passing]:
    """Stopped clocks, and a new lease for this process."""
    with (
        pytest.MonkeyPatch.context() as patch,
        time_machine.travel(timezone.now(), tick=False) as travel,
    ):
        passing = Passing(travel)
        patch.setattr(replay_epochs, "database_clock", passing.database_clock)
        patch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease(passing))
        yield passing


def leave(kind: str = "") -> bool:
    """Leave the current cache for `kind`, by default the one that the settings choose."""
    row, _database_now = replay_epochs.read_or_create_row()
    kind = kind or replay_epochs.configured_cache()
    return replay_epochs.end_epoch(
        epoch=row.epoch, for_kind=kind, reason="test", actor=SYSTEM, now=timezone.now()
    )


def begin(servers: frozenset[str] = frozenset()) -> bool:
    """Mark a configured Redis and begin the next epoch in the row's target; False if not due."""
    row, _database_now = replay_epochs.read_or_create_row()
    if replay_epochs.configured_cache() == row.target == Home.Kind.REDIS and not servers:
        servers = RedisProbe().run_ids()
        RedisProbe().mark(row.epoch + 1)
    with transaction.atomic():
        began_at = replay_epochs.next_epoch_start(row)
        if row.leaving_at is None or began_at is None:
            return False
        replay_epochs.start_epoch(
            row,
            following=row.epoch + 1,
            servers=servers,
            began_at=began_at,
            reason="test",
            actor=SYSTEM,
        )
    return True


def move(time: Passing, kind: str = "", servers: frozenset[str] = frozenset()) -> Home:
    """Leave, wait and begin the next epoch. This process has not read the returned row yet."""
    assert leave(kind)
    time.shift(replay_epochs.LEASE_SECONDS + replay_epochs.MARGIN_SECONDS)
    assert begin(servers)
    return Home.objects.get()


def with_nonce(place: Scene, epoch: int = 2) -> dict[str, Any]:
    """A request with a fresh proof that carries the current nonce of an epoch."""
    server = str(place.provider.pk) if epoch == 1 else f"{place.provider.pk}/{epoch}"
    token = place.token()
    proof = place.proof(token, nonce=nonces_of(server, timezone.now()).current)
    return place.body(LOOK, token=token, proof=proof)


def unavailable(place: Scene, body: dict[str, Any]) -> None:
    """Assert that a request is answered 503, spends nothing and is not recorded as a decision."""
    decisions = Event.objects.exclude(kind=CLOCK_OFF)
    before = SpentProof.objects.count(), decisions.count()
    response = place.post(body)
    assert response.status_code == 503
    assert response["Retry-After"]
    assert (SpentProof.objects.count(), decisions.count()) == before
