"""After a human is deleted, a live token is refused for its grant's state, not for erased terms."""

from functools import partial

import pytest
from django.utils import timezone

from audit import kinds
from audit.models import Event
from registry.models import Grant
from registry.services.humans import delete_human
from registry.services.text_erasure import agents_of, erase_texts
from tests.endpoint_comparison import Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from verifier.endpoint_paths import BATCH, INTROSPECT
from verifier.tests.scene import LOOK, SYSTEM, scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def test_a_token_of_a_deleted_person_is_grant_inactive(both: Both) -> None:
    place = scene()
    token = place.token()
    make = partial(place.body, LOOK, token=token)
    assert both.same(lambda: ask(place, make()))["valid"]
    delete_human(human=place.human, actor=SYSTEM, now=timezone.now(), even_last_owner=True)
    erase_texts(human_id=place.human.pk, agent_ids=agents_of(place.human.pk))
    assert Grant.objects.get(pk=place.grant.pk).capabilities == []
    alone = both.same(lambda: ask(place, make()))
    in_batch = both.same(lambda: ask(place, {"requests": [make()]}, BATCH))["results"][0]
    for answer in (alone, in_batch):
        said = (answer["valid"], answer["error"], answer["reason"])
        assert said == (False, "invalid_token", "grant_inactive")
    assert both.same(ask(place, f"token={token}".encode(), INTROSPECT)) == {
        "active": False,
        "status": 200,
    }
    refused = Event.objects.filter(kind=kinds.DECISION_DENIED, grant_id=place.grant.pk)
    assert [each.reason for each in refused] == ["grant_inactive"] * 4
