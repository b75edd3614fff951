"""Ended rows are deleted, and nothing else."""

from datetime import datetime, timedelta

import pytest
from django.contrib.sessions.models import Session

from approvals.models import Challenge
from approvals.services.expiry import expire_everything
from approvals.tests.cast import Person

pytestmark = pytest.mark.django_db


def test_ended_challenges_and_sessions_are_deleted(alice: Person, now: datetime) -> None:
    alice.post("/sign-in/options")
    Session.objects.create(
        session_key="ended", session_data="", expire_date=now - timedelta(seconds=1)
    )
    living = Session.objects.exclude(session_key="ended").count()
    assert living
    nothing = {"challenges": 0, "invitations": 0, "people": 0, "receipts": 0}
    nothing |= {"notifications": 0, "channels": 0, "webhooks": 0, "absences": 0}
    assert expire_everything(now=now) == {**nothing, "sessions": 1}
    assert Session.objects.count() == living
    made = Challenge.objects.count()
    assert made
    assert expire_everything(now=now + timedelta(days=2))["challenges"] == made
