"""Two overlapping grants of an agent at a service provider: what is separate and what is shared."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from kms.state_change_publisher import Subject, publish_change
from registry.models import Grant, Token
from registry.services.grant_requests import GrantRequest, request_grant
from registry.services.grants import revoke_grant
from registry.services.tokens import issue_token, sign_issued
from tests import receipts
from verifier.models import GrantLedger
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, key, pay, scene

pytestmark = pytest.mark.django_db

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


def second(place: Scene, *capabilities: dict[str, Any], **envelope: Any) -> Grant:
    """Another grant of the same agent at the same service provider, by the same human."""
    now = timezone.now()
    terms: dict[str, Any] = {
        "capabilities": parse_capabilities(list(capabilities)),
        "envelope": parse_envelope(envelope),
    }
    asked = GrantRequest(service_provider=place.provider, seconds=86_400, reason="", **terms)
    grant, created = request_grant(agent=place.agent, asked=asked, actor=SYSTEM, now=now)
    assert created
    grant = Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)
    end = now.replace(microsecond=0) + timedelta(hours=20)
    receipts.approve(grant, place.human, valid_until=end, actor=SYSTEM, now=now)
    return grant


def token_of(place: Scene, grant: Grant) -> str:
    now = timezone.now()
    return sign_issued(
        issue_token(agent=place.agent, grant_id=str(grant.pk), actor=SYSTEM, now=now).claims, now
    )


def verdict(answer: dict[str, Any]) -> str:
    return "valid" if answer["valid"] else answer["reason"]


def uses() -> dict[Any, int]:
    return dict(GrantLedger.objects.values_list("grant_id", "uses"))


def test_EN_18_each_grant_has_its_own_max_uses_when_used_in_turn() -> None:
    place = scene(READ, max_uses=2)
    other = second(place, READ, max_uses=1)
    first, then = token_of(place, place.grant), token_of(place, other)
    answers = [place.ask(LOOK, token=token) for token in (first, then, first, then, first)]
    assert [verdict(answer) for answer in answers] == [
        "valid",
        "valid",
        "valid",
        "max_uses",
        "max_uses",
    ]
    # Each answer names the grant it used and what is left of it.
    named = [(answer["grant_id"], answer["limits"]["uses_remaining"]) for answer in answers[:3]]
    assert named == [(str(place.grant.pk), 1), (str(other.pk), 0), (str(place.grant.pk), 0)]
    assert uses() == {place.grant.pk: 2, other.pk: 1}


def test_EN_18_a_token_of_one_grant_does_not_reach_into_the_other() -> None:
    place = scene(READ, PAY)
    reading = second(place, READ)
    token = token_of(place, reading)
    assert verdict(place.ask(LOOK, token=token)) == "valid"
    assert verdict(place.ask(pay("1.00"), token=token, idempotency_key=key())) == "no_capability"
    assert verdict(place.pay("1.00")) == "valid"


def test_token_whose_row_names_another_grant_is_unknown() -> None:
    """The signature binds the token to its grant, whatever the database says."""
    place = scene(READ, PAY)
    reading = second(place, READ)
    token = token_of(place, reading)
    assert verdict(place.ask(LOOK, token=token)) == "valid"
    rows = Token.objects.filter(grant=reading)
    with transaction.atomic():
        publish_change(Subject.TOKEN, rows.get().jti, now=timezone.now())
        rows.update(grant=place.grant)
    assert verdict(place.ask(LOOK, token=token)) == "unknown"
    assert verdict(place.ask(pay("1.00"), token=token, idempotency_key=key())) == "unknown"


def test_EN_18_total_budgets_and_operations_are_each_grants_own() -> None:
    day = {"value": "10.00", "currency": "EUR", "period": "total", "zone": "UTC"}
    place = scene(PAY, budgets=[day])
    other = second(place, PAY, budgets=[day | {"value": "6.00"}])
    tokens, operation = [token_of(place, place.grant), token_of(place, other)], key()
    first, then = (place.pay("6.00", operation, token=token) for token in tokens)
    # The same key under another grant is another operation: debited there, and not a repeat.
    assert [verdict(first), verdict(then)] == ["valid", "valid"]
    assert "repeated" not in then
    remaining = [answer["limits"]["budgets"][0]["remaining"] for answer in (first, then)]
    assert remaining == ["4.00", "0.00"]
    # Neither grant lends its rest to the other.
    assert verdict(place.pay("1.00", token=tokens[1])) == "budget"
    assert verdict(place.pay("6.00", token=tokens[0])) == "budget"
    assert verdict(place.pay("4.00", token=tokens[0])) == "valid"


def test_EN_18_one_grant_ends_and_the_other_stays() -> None:
    place = scene(READ)
    other = second(place, READ, max_uses=5)
    first, then = token_of(place, place.grant), token_of(place, other)
    revoke_grant(grant=other, actor=SYSTEM, now=timezone.now())
    assert [verdict(place.ask(LOOK, token=token)) for token in (first, then)] == [
        "valid",
        "grant_inactive",
    ]


def test_EN_18_overlapping_grants_share_what_is_spent_in_a_period() -> None:
    day = {"value": "10.00", "currency": "EUR", "period": "day", "zone": "UTC"}
    with time_machine.travel(NOON, tick=False):
        place = scene(PAY, budgets=[day])
        other = second(place, PAY, budgets=[day | {"value": "6.00"}])
        first, then = token_of(place, place.grant), token_of(place, other)
        answers = [place.pay("2.00", token=token) for token in (first, then, first)]
        remaining = [answer["limits"]["budgets"][0]["remaining"] for answer in answers]
        # Each compares the sum with its own limit.
        assert remaining == ["8.00", "2.00", "4.00"]
        assert verdict(place.pay("0.01", token=then)) == "budget"
        assert verdict(place.pay("4.01", token=first)) == "budget"
        assert verdict(place.pay("4.00", token=first)) == "valid"
        assert verdict(place.pay("0.01", token=first)) == "budget"


def test_EN_18_the_rates_of_overlapping_grants_are_each_ones_own() -> None:
    with time_machine.travel(NOON, tick=False):
        place = scene(READ, max_requests_per_minute=2, max_burst=2)
        other = second(place, READ, max_requests_per_minute=60)
        first, then = token_of(place, place.grant), token_of(place, other)
        answers = [place.ask(LOOK, token=token) for token in (first, first, first, then, then)]
        assert [verdict(answer) for answer in answers] == [
            "valid",
            "valid",
            "rate",
            "valid",
            "rate",
        ]
