"""A yes that Redis wrote too late to be told is not returned, and the log says it was withheld."""

import json
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import Event
from tests import endpoint_modes
from tests.endpoint_comparison import Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from verifier.endpoint_paths import INTROSPECT
from verifier.services import clock_readings, freshness
from verifier.services.cached_token import CachedToken
from verifier.services.clock_readings import ClockReading
from verifier.services.freshness import DecisionBasis
from verifier.services.replay_cache_lease import Lease
from verifier.services.state_watcher import StateNews, StateReading
from verifier.services.verifier_process import VerifierProcess
from verifier.services.web_verification import WebProcess
from verifier.stores.lua_scripts import Reply, Script
from verifier.stores.redis_decisions import ScriptCall
from verifier.tests.scene import LOOK, key, scene
from verifier.verification import SPARE_SECONDS

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]
AT = [Both._lean, Both._view]


def asked(both: Both, at: Callable[..., Any]) -> tuple[int, list[Event]]:
    """The status of a light call, and its events."""
    place = scene()
    both.running.look()
    status, *_ = at(both, ask(place, place.body(LOOK)))
    endpoint_modes.drain_redis_to_log()
    return status, list(Event.objects.filter(kind__startswith="verifier.decision").order_by("pk"))


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
def test_a_yes_that_comes_too_late_to_be_given_is_said_to_be_withheld(
    both: Both, at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecisionBasis, "check", over)
    assert is_withheld(*asked(both, at))


CHECK = DecisionBasis.check


def over(self: DecisionBasis, spare: float = 0) -> None:
    """`DecisionBasis.check`, but once Redis has answered, the state is too old."""
    CHECK(self, spare)
    if not spare:
        raise TemporarilyUnavailableError


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
def test_yes_returned_on_a_retry_is_not_recorded_as_withheld(
    both: Both, at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    both.running.look()
    question = ask(place, place.body(LOOK), idempotency_key=key())
    with monkeypatch.context() as late:
        late.setattr(DecisionBasis, "check", over)
        assert at(both, question)[0] == 503
    assert json.loads(at(both, question)[2])["valid"]
    endpoint_modes.drain_redis_to_log()
    [event] = Event.objects.filter(kind__startswith="verifier.decision")
    assert event.kind == kinds.DECISION_ALLOWED


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
def test_a_rehearsal_is_withheld_though_it_has_a_name(
    both: Both, at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer of a dry run is kept, so no repeat could get this one."""
    place = scene()
    both.running.look()
    monkeypatch.setattr(DecisionBasis, "check", over)
    assert at(both, ask(place, place.body(LOOK, dry_run=True), idempotency_key=key()))[0] == 503
    endpoint_modes.drain_redis_to_log()
    [withheld] = Event.objects.filter(kind=kinds.DECISION_DENIED)
    assert withheld.reason == "withheld"


def is_withheld(status: int, events: list[Event]) -> bool:
    """The caller got no answer, and the log says so."""
    assert status == 503
    [allowed] = [event for event in events if event.kind == kinds.DECISION_ALLOWED]
    [withheld] = [event for event in events if event.kind == kinds.DECISION_DENIED]
    assert (withheld.reason, withheld.data["withholds"]) == ("withheld", str(allowed.pk))
    assert withheld.grant_id == allowed.grant_id
    return True


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
def test_RV_3_state_from_before_a_halt_stays_unusable_after_a_refresh(
    both: Both, at: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, of_web, evaluate = [0.0], WebProcess.evaluate, VerifierProcess.evaluate
    monkeypatch.setattr(clock_readings, "monotonic", lambda: monotonic() + slept[0])

    async def halted_web(self: WebProcess, script: Script, called: ScriptCall) -> Reply:
        reply = await of_web(self, script, called)
        slept[0] += 6
        return reply

    async def halted_lean(self: VerifierProcess, script: Script, called: ScriptCall) -> Reply:
        reply = await evaluate(self, script, called)
        slept[0] += 6
        self.cached_state._hear(
            StateNews(look=StateReading(ClockReading.now(), self.cached_state.token_keys(), 0.0))
        )
        return reply

    monkeypatch.setattr(WebProcess, "evaluate", halted_web)
    monkeypatch.setattr(VerifierProcess, "evaluate", halted_lean)
    assert is_withheld(*asked(both, at))


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize(
    "what", [(Lease, "last_epoch", 1), (freshness, "check_age", 1)], ids=["lease", "age"]
)
def test_redis_is_not_asked_for_what_could_not_be_told_any_more(
    both: Both, at: Callable[..., Any], what: tuple[Any, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, place = what
    kept = getattr(owner, name)

    def short(*given: Any) -> Any:
        if given[place:] == (SPARE_SECONDS,):
            raise TemporarilyUnavailableError
        return kept(*given)

    monkeypatch.setattr(owner, name, short)
    status, events = asked(both, at)
    assert (status, len(events)) == (503, 0)


@pytest.mark.parametrize("both", ["redis"], indirect=True)
def test_RV_3_nor_is_a_token_said_to_be_active_by_what_was_known_before(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, read, place = [0.0], VerifierProcess.cached_token, scene()
    both.running.look()
    question = ask(place, f"token={place.token()}".encode(), INTROSPECT)
    assert json.loads(both._lean(question)[2])["active"]
    monkeypatch.setattr(clock_readings, "monotonic", lambda: monotonic() + slept[0])

    async def halted(self: VerifierProcess, jti: str) -> CachedToken | None:
        known = await read(self, jti)
        slept[0] += 6
        self.cached_state._hear(
            StateNews(look=StateReading(ClockReading.now(), self.token_keys(), 0.0))
        )
        return known

    monkeypatch.setattr(VerifierProcess, "cached_token", halted)
    assert both._lean(question)[0] == 503
