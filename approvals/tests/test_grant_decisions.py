"""Approval page contents and expiry."""

from datetime import datetime

import pytest

from agentauth.protocol.errors import ExpiredError
from approvals.services.grant_decisions import approval_page, begin_denial, draw_denial
from approvals.tests.cast import Person
from registry.models import Grant

pytestmark = pytest.mark.django_db


def test_AP_2_the_page_shows_the_limits_that_are_in_force(paying: Grant) -> None:
    assert approval_page(paying).shown["envelope"] == paying.requested_envelope
    paying.envelope = paying.requested_envelope | {"max_requests_per_minute": 5}
    assert approval_page(paying).shown["envelope"]["max_requests_per_minute"] == 5


def test_expired_request_cannot_be_denied(alice: Person, reading: Grant, now: datetime) -> None:
    drawn = draw_denial(reading, "", now=now).drawn
    reading.expires_at = now
    with pytest.raises(ExpiredError):
        begin_denial(
            grant=reading, human=alice.human, session_key="a", reason="", drawn=drawn, now=now
        )
