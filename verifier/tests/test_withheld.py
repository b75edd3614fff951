"""A yes that Redis has written and that may not be told any more: it is not asked for, or the log says that it was not given."""

from collections.abc import Callable
from typing import Any

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import Event
from tests import through
from tests.equal import Both, ask
from tests.equal import both as both  # noqa: PLC0414 — a fixture
from tests.equal import served as served  # noqa: PLC0414 — a fixture
from verifier.services import lean
from verifier.services.following import Follower
from verifier.services.home import Lease, Tenure
from verifier.stores import redis
from verifier.stores.redis import SPARE_SECONDS
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
    status, events = asked(both, at)
    assert status == 503
    [allowed] = [event for event in events if event.kind == kinds.DECISION_ALLOWED]
    [withheld] = [event for event in events if event.kind == kinds.DECISION_DENIED]
    assert (withheld.reason, withheld.data["withholds"]) == ("withheld", str(allowed.pk))
    assert withheld.grant_id == allowed.grant_id


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("what", [(Lease, "held"), (Follower, "fresh")], ids=["lease", "look"])
def test_redis_is_not_asked_for_what_could_not_be_told_any_more(
    both: Both, at: Callable[..., Any], what: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = getattr(*what)

    def short(self: Any, spare: float = 0) -> Any:
        if spare == SPARE_SECONDS:
            raise TemporarilyUnavailableError
        return kept(self, spare)

    monkeypatch.setattr(*what, short)
    status, events = asked(both, at)
    # The view has no look of its own beside the lease.
    own_look = what[0] is Lease or at is Both._lean
    assert (status, len(events)) == ((503, 0) if own_look else (200, 1))
