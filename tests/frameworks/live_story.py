"""One story for each framework, at a live registry: `act` is what the framework's agent does."""

import json
import os
from importlib import import_module
from typing import Any

from tests.frameworks.live_stage import LIMITS, LiveStage, live
from tests.frameworks.stage import LARGE, SMALL

__all__ = ["live"]
NAME = json.loads(os.environ["AGENTAUTH_STORY"])["framework"]
STORY: Any = import_module(f"tests.frameworks.{NAME.lower().replace(' ', '_')}_story")
act = STORY.act


def test_an_allowed_call_is_done_once_a_person_has_approved(live: LiveStage) -> None:
    live.decisions = [("approve", {})]
    result = act(live, SMALL)
    assert (result["status"], result["from_service"]) == ("answered", {"paid": SMALL["amount"]})
    assert (live.kinds, live.paid) == (["grant"], [SMALL])
    # The grant covers the next call too: the person is not asked again.
    assert act(live, SMALL)["status"] == "answered"
    assert (live.kinds, live.paid) == (["grant"], [SMALL, SMALL])


def test_a_step_up_is_parked_and_goes_on_as_one_payment(live: LiveStage) -> None:
    live.decisions = [("approve", {"envelope": LIMITS}), ("confirm", {})]
    result = act(live, LARGE)
    assert (result["status"], result["from_service"]) == ("answered", {"paid": LARGE["amount"]})
    assert (live.kinds, live.paid) == (["grant", "confirmation"], [LARGE])


def test_a_denied_grant_tells_the_model_why_and_pays_nothing(live: LiveStage) -> None:
    live.decisions = [("deny", {"reason": "Not on holidays"})]
    result = act(live, SMALL)
    assert result["status"] == "denied"
    assert "Not on holidays" in result["why"]
    assert (live.kinds, live.paid) == (["grant"], [])


def test_a_payment_beyond_the_grant_is_not_made(live: LiveStage) -> None:
    live.decisions = [("approve", {})]
    dear = LARGE | {"amount": {"value": "100.01", "currency": "EUR"}}
    result = act(live, dear)
    assert result["status"] != "answered"
    assert live.paid == []
