"""Time that goes on only when told, and moves of the home without a keeper."""

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
from verifier.services import home
from verifier.stores.probe import RedisProbe
from verifier.tests.scene import LOOK, SYSTEM, Scene


class Passing:
    """The wall clock of this host, the monotonic clock, and the database's: `ahead` is by how much ours differs from it."""

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
        """From now on this host's clock is so many seconds ahead of the database's."""
        self._travel.shift(seconds - self._ahead)
        self._ahead = seconds

    def database_clock(self) -> Value:
        return Value(timezone.now() - timedelta(seconds=self._ahead), output_field=DateTimeField())


@pytest.fixture
def time(db: None) -> Iterator[Passing]:
    """Nothing passes by itself, and this process has a new lease."""
    with pytest.MonkeyPatch.context() as patch, time_machine.travel(timezone.now(), tick=False) as travel:
        passing = Passing(travel)
        patch.setattr(home, "database_clock", passing.database_clock)
        patch.setattr(home, "LEASE", home.Lease(passing))
        yield passing


def leave(kind: str = "") -> bool:
    """For the cache that the settings choose, unless another is named."""
    row, _database_now = home.look()
    kind = kind or home.configured()
    return home.leave(epoch=row.epoch, for_kind=kind, reason="test", actor=SYSTEM, now=timezone.now())


def begin(servers: frozenset[str] = frozenset()) -> bool:
    """Begin the next epoch where the row leads; False where none is due. A Redis that the settings name is marked."""
    row, _database_now = home.look()
    if home.configured() == row.target == Home.Kind.REDIS and not servers:
        servers = RedisProbe().run_ids()
        RedisProbe().mark(row.epoch + 1)
    with transaction.atomic():
        began_at = home.due(row)
        if row.leaving_at is None or began_at is None:
            return False
        home.begin(
            row,
            following=row.epoch + 1,
            servers=servers,
            began_at=began_at,
            reason="test",
            actor=SYSTEM,
            now=timezone.now(),
        )
    return True


def move(time: Passing, kind: str = "", servers: frozenset[str] = frozenset()) -> Home:
    """Leave, wait, begin: the new row, which this process has not looked at yet."""
    assert leave(kind)
    time.shift(home.LEASE_SECONDS + home.MARGIN_SECONDS)
    assert begin(servers)
    return Home.objects.get()


def with_nonce(place: Scene, epoch: int = 2) -> dict[str, Any]:
    """A question with a fresh proof that carries the present nonce of an epoch."""
    server = str(place.provider.pk) if epoch == 1 else f"{place.provider.pk}/{epoch}"
    token = place.token()
    proof = place.proof(token, nonce=nonces_of(server, timezone.now()).current)
    return place.body(LOOK, token=token, proof=proof)


def unavailable(place: Scene, body: dict[str, Any]) -> None:
    """Asked now, the answer is 503: nothing is spent, and it is no decision."""
    decisions = Event.objects.exclude(kind=CLOCK_OFF)
    before = SpentProof.objects.count(), decisions.count()
    response = place.post(body)
    assert response.status_code == 503
    assert response["Retry-After"]
    assert (SpentProof.objects.count(), decisions.count()) == before
