"""Approval page contents and expiry."""

from datetime import datetime

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.errors import ExpiredError
from approvals.services.decidable_requests import find_case
from approvals.services.grant_decision_signing import approval_page, begin_denial, draw_denial
from approvals.tests.cast import Person
from registry.models import Grant

pytestmark = pytest.mark.django_db


def test_AP_2_the_page_shows_the_limits_that_are_in_force(
    alice: Person, paying: Grant, now: datetime
) -> None:
    case = find_case(paying.pk, alice.human, now)
    assert approval_page(case).shown["envelope"] == paying.requested_envelope
    case.grant.envelope = paying.requested_envelope | {"max_requests_per_minute": 5}
    assert approval_page(case).shown["envelope"]["max_requests_per_minute"] == 5


def test_expired_request_cannot_be_denied(alice: Person, reading: Grant, now: datetime) -> None:
    case = find_case(reading.pk, alice.human, now)
    drawn = draw_denial(case, "", now=now).drawn
    case.grant.expires_at = now
    with pytest.raises(ExpiredError):
        begin_denial(case, "", session_key="a", drawn=drawn, now=now)


def test_a_page_reads_the_catalogue_and_the_names_once(alice: Person, paying: Grant) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert alice.get(f"/approvals/{paying.pk}/").status_code == 200
    statements = [each["sql"] for each in captured]
    assert len([each for each in statements if 'FROM "registry_catalogueversion"' in each]) == 1
    assert len([each for each in statements if 'AS "name" FROM "registry_agent"' in each]) == 1
