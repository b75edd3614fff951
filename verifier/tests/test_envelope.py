"""Steps 10 to 14: the server enforces the envelope, whatever the agent's SDK does."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.errors import InvalidRequestError
from registry.services.tokens import issue_token, sign_issued
from verifier.models import GrantLedger
from verifier.tests.scene import LOOK, PAY, SYSTEM, assert_refused, key, pay, scene

pytestmark = pytest.mark.django_db

HOURS = {
    "days": ["mon", "tue", "wed", "thu", "fri"],
    "start": "09:00",
    "end": "17:00",
    "zone": "Europe/Berlin",
}


def test_EN_1_a_burst_and_then_one_per_interval() -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        place = scene(max_requests_per_minute=10, max_burst=3)
        assert [place.ask(LOOK)["limits"]["rate_remaining"] for _ in range(3)] == [2, 1, 0]
        answer = assert_refused(place, place.body(LOOK))
        assert (answer["error"], answer["reason"], answer["retry_after"]) == (
            "envelope_exceeded",
            "rate",
            6,
        )
        clock.shift(6)
        assert place.ask(LOOK)["valid"]
        assert assert_refused(place, place.body(LOOK))["reason"] == "rate"


def test_EN_1_never_more_than_rate_and_burst_in_a_minute() -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        place = scene(max_requests_per_minute=10, max_burst=3)
        passed = 0
        for _ in range(60):
            passed += place.ask(LOOK)["valid"]
            clock.shift(1)
        assert passed == 12


def test_EN_2_limits_are_enforced_without_the_sdk() -> None:
    place = scene(PAY, max_uses=1)
    # Only HTTP and a signature made here, without the SDK.
    assert place.pay("1.00")["valid"]
    answer = assert_refused(place, place.body(pay("1.00"), idempotency_key=key()))
    assert (answer["error"], answer["reason"]) == ("envelope_exceeded", "max_uses")
    assert "retry_after" not in answer


def test_EN_3_the_budget_is_exact_and_heals_with_its_period() -> None:
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    with time_machine.travel(noon, tick=False) as clock:
        place = scene(
            PAY, budgets=[{"value": "100.00", "currency": "EUR", "period": "day", "zone": "UTC"}]
        )
        passed = [place.pay("3.00")["valid"] for _ in range(40)]
        assert sum(passed) == 33
        answer = assert_refused(place, place.body(pay("1.01"), idempotency_key=key()))
        assert (answer["reason"], answer["retry_after"]) == ("budget", 12 * 3600)
        assert place.pay("1.00")["limits"]["budgets"][0]["remaining"] == "0.00"
        clock.shift(timedelta(hours=12))
        assert place.pay("3.00")["limits"]["budgets"][0]["remaining"] == "97.00"


def test_refusal_outside_the_hours_reveals_only_when_they_begin() -> None:
    # A Sunday noon; Monday 09:00 in Berlin is 08:00 UTC in winter.
    with time_machine.travel(datetime(2027, 1, 10, 12, tzinfo=UTC), tick=False) as clock:
        place = scene(allowed_time_windows=[HOURS])
        answer = assert_refused(place, place.body(LOOK))
        assert answer["error"] == "outside_time_window"
        assert answer["retry_after"] == 20 * 3600
        # The hours also apply without an action.
        assert assert_refused(place, place.body())["error"] == "outside_time_window"
        clock.shift(timedelta(hours=20, seconds=-1))
        assert assert_refused(place, place.body(LOOK))["retry_after"] == 1
        clock.shift(1)
        assert place.ask(LOOK)["valid"]


def test_without_an_action_nothing_is_counted() -> None:
    place = scene(max_uses=1, max_requests_per_minute=1)
    for _ in range(3):
        answer = place.ask()
        assert answer["valid"]
        assert "capability" not in answer
    assert not GrantLedger.objects.exists()
    assert place.ask(LOOK)["limits"]["uses_remaining"] == 0


def test_a_session_limit_caps_the_tokens_life() -> None:
    place = scene(max_session_seconds=120)
    issued = issue_token(
        agent=place.agent, grant_id=str(place.grant.pk), actor=SYSTEM, now=timezone.now()
    )
    assert issued.expires_in <= 120
    assert sign_issued(issued.claims, timezone.now())
    assert place.ask(LOOK)["expires_in"] <= 120


@pytest.mark.parametrize(
    "envelope",
    [
        {"max_requests_per_minute": 5, "max_burst": 6},
        {"max_requests_per_minute": 0},
        {"max_session_seconds": 0},
        {"max_uses": 0},
        {"allowed_time_windows": [HOURS | {"end": "09:00"}]},
        {"allowed_time_windows": [HOURS | {"zone": "Mars/Olympus"}]},
        {"allowed_time_windows": []},
        {"unknown": 1},
    ],
    ids=str,
)
def test_EN_15_an_envelope_that_means_nothing_is_refused(envelope: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        parse_envelope(envelope)
