"""A human is deleted while a decision is in the outbox: the decision's texts reach no table."""

from datetime import datetime

import pytest
from django.utils import timezone
from redis import Redis

from audit.models import Event, Opening
from audit.services import seal_audit
from audit.verify.verification import verify_log
from registry.services.humans import delete_human
from verifier.services.decision_stream_drain import drain
from verifier.tests.scene import LOOK, SYSTEM, Scene, scene
from verifier.tests.streams import Verifier

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


def test_what_is_drained_of_a_deleted_person_cannot_be_opened(
    redis: Redis, place: Scene, now: datetime
) -> None:
    data = {"action": LOOK}
    mine = Verifier(redis, place).write(data=data)
    other = Verifier(redis, scene(), 1).write(data=data)
    delete_human(human=place.human, actor=SYSTEM, now=timezone.now(), even_last_owner=True)
    assert drain(redis, now=now) == 2
    # Only the streams held these texts, and they are empty.
    assert [redis.xlen(name) for name in redis.scan_iter() if redis.type(name) == b"stream"] == [
        0,
        0,
    ]
    assert Event.objects.get(pk=mine).data.keys() == Event.objects.get(pk=other).data.keys()
    assert Opening.objects.get(member="details").event_id == Event.objects.get(pk=other).pk
    seal_audit(now=now)
    assert verify_log().ok
