"""An event without agent and user must not contain personal data, which could never be erased."""

from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from approvals.services.human_suspension_and_erasure import delete_human
from audit import kinds
from audit.models import Event, Opening
from verifier.tests.scene import READ, SYSTEM, scene
from verifier.tests.test_two_grants import token_of

pytestmark = pytest.mark.django_db

ASKED = {"type": "read", "resource": "calendar/planted"}


@pytest.mark.parametrize("token", ["expired", "garbage"])
def test_OG_28_what_was_asked_without_a_good_token_is_not_kept(token: str) -> None:
    place = scene(READ)
    sent = token_of(place, place.grant) if token == "expired" else token
    with time_machine.travel(timezone.now() + timedelta(hours=1)):
        assert place.ask(ASKED, token=sent)["valid"] is False
        delete_human(human=place.human, actor=SYSTEM, now=timezone.now())
    event = Event.objects.get(kind=kinds.DECISION_DENIED)
    assert (event.agent_id, event.human_id, event.data["action"]) == (None, None, {"type": "read"})
    assert not Opening.objects.filter(event=event).exists()
