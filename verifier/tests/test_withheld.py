"""A yes that Redis has written and that may not be told any more: it is not asked for, or the log says that it was not given."""

import json
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import Event
from tests import through
from tests.equal import INTROSPECT, Both, ask
from tests.equal import both as both  # noqa: PLC0414 — a fixture
from tests.equal import served as served  # noqa: PLC0414 — a fixture
from verifier.services import lean, moment
from verifier.services.following import Follower
from verifier.services.home import Lease, Tenure
from verifier.services.lean import LeanVerifier
from verifier.services.moment import Moment
from verifier.services.snapshots import Known
from verifier.services.watching import Look, News
from verifier.stores import redis
from verifier.stores.light import Called
from verifier.stores.redis import SPARE_SECONDS, RedisStore
from verifier.stores.scripts import Reply, Script
from verifier.tests.scene import LOOK, scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]
AT = [Both._lean, Both._view]


def asked(both: Both, at: Callable[..., Any]) -> tuple[int, list[Event]]:
    """The status of a light call, and the events of it."""
    place = scene()
    both.running.look()
    status, *_ = at(both, ask(place, place.body(LOOK)))
    through.drained()
    return status, list(Event.objects.filter(kind__startswith="verifier.decision").order_by("pk"))


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
def test_a_yes_that_comes_too_late_to_be_given_is_said_to_be_withheld(
    both: Both, at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(tenure: Tenure) -> None:
        raise TemporarilyUnavailableError

    for module in (lean, redis):
        monkeypatch.setattr(module, "check_lease", over)
    assert is_withheld(*asked(both, at))


def is_withheld(status: int, events: list[Event]) -> bool:
    """The caller was told nothing, and the log says so."""
    assert status == 503
    [allowed] = [event for event in events if event.kind == kinds.DECISION_ALLOWED]
    [withheld] = [event for event in events if event.kind == kinds.DECISION_DENIED]
    assert (withheld.reason, withheld.data["withholds"]) == ("withheld", str(allowed.pk))
    assert withheld.grant_id == allowed.grant_id
    return True


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
def test_RV_3_what_was_known_before_a_halt_allows_nothing_after_it_though_others_have_looked_since(
    both: Both, at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, judged, evaluate = [0.0], RedisStore._judged, LeanVerifier._evaluate
    monkeypatch.setattr(moment, "monotonic", lambda: monotonic() + slept[0])

    def halted_view(self: RedisStore, called: Called) -> Reply:
        reply = judged(self, called)
        slept[0] += 6
        return reply

    async def halted_lean(self: LeanVerifier, script: Script, called: Called) -> Reply:
        reply = await evaluate(self, script, called)
        slept[0] += 6
        self.follower._hear(News(look=Look(Moment.now(), self.follower.token_keys(), 0.0)))
        return reply

    monkeypatch.setattr(RedisStore, "_judged", halted_view)
    monkeypatch.setattr(LeanVerifier, "_evaluate", halted_lean)
    assert is_withheld(*asked(both, at))


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("what", [(Lease, "held"), (Follower, "fresh")], ids=["lease", "look"])
def test_redis_is_not_asked_for_what_could_not_be_told_any_more(
    both: Both, at: Callable[..., Any], what: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = getattr(*what)

    def short(self: Any, spare: float = 0, *more: Any) -> Any:
        if spare == SPARE_SECONDS:
            raise TemporarilyUnavailableError
        return kept(self, spare, *more)

    monkeypatch.setattr(*what, short)
    status, events = asked(both, at)
    # The view has no look of its own beside the lease.
    own_look = what[0] is Lease or at is Both._lean
    assert (status, len(events)) == ((503, 0) if own_look else (200, 1))


@pytest.mark.parametrize("both", ["redis"], indirect=True)
def test_RV_3_nor_is_a_token_said_to_be_active_by_what_was_known_before(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, read, place = [0.0], Follower.state, scene()
    both.running.look()
    question = ask(place, f"token={place.token()}".encode(), INTROSPECT)
    assert json.loads(both._lean(question)[2])["active"]
    monkeypatch.setattr(moment, "monotonic", lambda: monotonic() + slept[0])

    async def halted(self: Follower, jti: str) -> Known | None:
        known = await read(self, jti)
        slept[0] += 6
        self._hear(News(look=Look(Moment.now(), self.token_keys(), 0.0)))
        return known

    monkeypatch.setattr(Follower, "state", halted)
    assert both._lean(question)[0] == 503
