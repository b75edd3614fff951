"""Light calls with an Idempotency-Key: a lost answer is repeated, wherever it is kept."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from audit.models import Event
from registry.services.grants import revoke_grant
from verifier.models import ProviderCall
from verifier.tests.scene import LOOK, SYSTEM, Scene, assert_refused, key, pay, scene

pytestmark = pytest.mark.django_db


def twice(place: Scene, body: dict[str, Any]) -> dict[str, Any]:
    """Send the same bytes twice; assert the same answer and no second effect."""
    name = key()
    first = place.post(body, call_key=name)
    known = Event.objects.count()
    again = place.post(body, call_key=name)
    assert (
        (again.status_code, again.content)
        == (first.status_code, first.content)
        == (200, first.content)
    )
    assert Event.objects.count() == known
    answer: dict[str, Any] = json.loads(first.content)
    return answer


def test_retry_repeats_the_yes_and_takes_one_use_of_the_rate() -> None:
    place = scene(max_requests_per_minute=60, max_burst=9)
    assert twice(place, place.body(LOOK))["limits"]["rate_remaining"] == 8
    assert place.ask(LOOK)["limits"]["rate_remaining"] == 7


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (pay("1.00"), "no_capability"),
        ({"type": "read", "resource": "mail"}, "no_capability"),
        (LOOK, "rate"),
    ],
)
def test_a_no_stays_one(action: dict[str, Any], reason: str) -> None:
    place, more = scene(max_requests_per_minute=60, max_burst=1), {}
    if "amount" in action:
        more["idempotency_key"] = key()
    body = place.body(action, **more)
    if reason == "rate":
        assert place.ask(LOOK)["valid"]
    assert twice(place, body)["reason"] == reason


def test_a_yes_is_not_told_again_once_the_token_has_ended() -> None:
    place, name = scene(), key()
    body = place.body(LOOK)
    assert json.loads(place.post(body, call_key=name).content)["valid"]
    revoke_grant(grant=place.grant, actor=SYSTEM, now=timezone.now())
    assert assert_refused(place, body, call_key=name)["reason"] == "grant_inactive"


def test_retry_repeats_the_yes_after_its_window_closed() -> None:
    with time_machine.travel(datetime(2027, 1, 11, 11, 59, 50, tzinfo=UTC), tick=False) as clock:
        window = {"days": ["mon"], "start": "10:00", "end": "12:00", "zone": "UTC"}
        place, name = scene(allowed_time_windows=[window]), key()
        body = place.body(LOOK)
        first = place.post(body, call_key=name)
        assert json.loads(first.content)["valid"]
        clock.shift(20)
        assert place.post(body, call_key=name).content == first.content
        assert place.ask(LOOK)["error"] == "outside_time_window"


def test_a_rehearsal_is_judged_each_time() -> None:
    place, name = scene(), key()
    body = place.body(LOOK, dry_run=True)
    for _ in range(2):
        assert json.loads(place.post(body, call_key=name).content)["valid"]


def test_SA_6_refusal_of_a_foreign_token_stores_no_row() -> None:
    """Anyone can make a service provider ask about such a token, and its answer never changes."""
    place, name = scene(), key()
    body = place.body(LOOK, token="x.y.z")
    answer = assert_refused(place, body, call_key=name)
    assert json.loads(place.post(body, call_key=name).content) == answer
    assert not ProviderCall.objects.exists()
