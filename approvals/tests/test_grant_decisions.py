"""What a decision rests on, checked at the service itself."""

from datetime import datetime

import pytest

from agentauth.protocol.errors import ExpiredError
from approvals.services.grant_decisions import approval_page, begin_denial, draw_denial
from approvals.services.term_choices import chosen_terms
from approvals.tests.cast import Person
from registry.models import Grant
from registry.services.grants import latest_end

pytestmark = pytest.mark.django_db


def test_AP_2_the_page_shows_the_limits_that_are_in_force(paying: Grant) -> None:
    assert approval_page(paying).shown["envelope"] == paying.requested_envelope
    paying.envelope = paying.requested_envelope | {"max_requests_per_minute": 5}
    assert approval_page(paying).shown["envelope"]["max_requests_per_minute"] == 5


def test_an_expired_request_is_not_denied(alice: Person, reading: Grant, now: datetime) -> None:
    drawn = draw_denial(reading, "", now=now).drawn
    reading.expires_at = now
    with pytest.raises(ExpiredError):
        begin_denial(
            grant=reading, human=alice.human, session_key="a", reason="", drawn=drawn, now=now
        )


def test_chosen_limits_take_the_place_of_those_asked_for(paying: Grant, now: datetime) -> None:
    choices = {"permission.0": "on", "permission.1": "on", "rate": "5", "uses": "3"}
    chosen = chosen_terms(paying, choices, zone="UTC", now=now).envelope
    assert (chosen.max_requests_per_minute, chosen.max_burst, chosen.max_uses) == (5, None, 3)
    paying.requested_envelope = paying.requested_envelope | {"max_uses": 9, "max_burst": 20}
    chosen = chosen_terms(paying, choices | {"uses": ""}, zone="UTC", now=now).envelope
    assert (chosen.max_burst, chosen.max_uses) == (5, 9)


@pytest.mark.parametrize(("days", "shortened"), [("29", True), ("30", False)])
def test_a_chosen_end_is_a_whole_second_and_at_most_the_latest(
    reading: Grant, now: datetime, days: str, *, shortened: bool
) -> None:
    now = now.replace(microsecond=123)
    choices = {"permission.0": "on", "days": days}
    end = chosen_terms(reading, choices, zone="UTC", now=now).valid_until
    assert end.microsecond == 0
    assert (end < latest_end(reading, now)) is shortened
