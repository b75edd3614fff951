"""Foreign tokens cost the log a few events a minute, however often a provider asks (SA-6)."""

from types import SimpleNamespace
from typing import Any

import pytest

from audit.log.refusal_counts import RECORDED_PER_MINUTE, Batches
from audit.models import Event
from verifier import credential_checks
from verifier.tests.scene import LOOK, Scene

pytestmark = pytest.mark.django_db
TIMES = 30


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The real pace, on a stopped clock."""
    moment = {"now": 100.0}
    monkeypatch.setattr(
        credential_checks, "_UNRECOGNISED", Batches(seconds=60 / RECORDED_PER_MINUTE)
    )
    # Only this module's clock: the event loop's timers would stop too.
    monkeypatch.setattr(credential_checks, "time", SimpleNamespace(monotonic=lambda: moment["now"]))
    return moment


def counts(**of: Any) -> list[int]:
    denied = Event.objects.filter(kind="verifier.decision.denied", **of).order_by("id")
    return [event.data.get("count", 1) for event in denied]


def test_SA_6_garbage_tokens_are_counted_and_sampled(place: Scene, clock: dict[str, float]) -> None:
    for number in range(TIMES):
        answer = place.ask(LOOK, token=f"garbage-{number}")
        assert (answer["valid"], answer["reason"]) == (False, "malformed")
    assert counts() == [1]
    clock["now"] += 60 / RECORDED_PER_MINUTE
    place.ask(LOOK, token="garbage")
    assert counts() == [1, TIMES]


def test_SA_6_each_reason_has_its_own_pace(place: Scene, clock: dict[str, float]) -> None:
    place.ask(LOOK, token="garbage")
    place.ask(LOOK, token=place.token()[:-8] + "A" * 8)
    assert counts(reason="malformed") == [1]
    assert len(counts()) == 2


def test_SA_6_what_is_refused_of_a_token_of_ours_is_each_an_event(
    place: Scene, clock: dict[str, float]
) -> None:
    token = place.token()
    for _ in range(TIMES):
        place.ask(LOOK, token=token, proof="garbage")
    assert counts(agent_id=place.agent.pk) == [1] * TIMES
