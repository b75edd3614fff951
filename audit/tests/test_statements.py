"""Statements that are written once: their rows are the models the ORM would have made."""

import pytest
from django.contrib.contenttypes.models import ContentType

from audit.models import Event
from audit.statements import Columns, Question, all_but
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db
EVENT = Question("SELECT {}, 7 FROM audit_event e WHERE e.id = %s", e=all_but(Event, "reason"))
LABELS = Question(
    "SELECT {} FROM django_content_type a LEFT JOIN django_content_type b ON b.id = a.id AND b.model = %s"
    " WHERE a.app_label = %s AND a.model = %s",
    a=Columns(ContentType, {"model"}),
    b=Columns(ContentType, {"model"}),
)


def test_a_row_is_the_model_the_orm_would_have_made(make_event: MakeEvent) -> None:
    made = make_event(data={"b": [1]}, reason="expired")
    ((event, beside),) = EVENT.ask(made.pk)
    expected = Event.objects.defer("reason").get(pk=made.pk)
    assert beside == 7
    assert event == expected
    assert type(event) is Event
    assert (event._state.db, event._state.adding) == (expected._state.db, expected._state.adding)
    assert event.get_deferred_fields() == expected.get_deferred_fields() == {"reason"}
    names = [field.attname for field in Event._meta.concrete_fields]
    # What was not read is read at use.
    assert [getattr(event, name) for name in names] == [getattr(expected, name) for name in names]


def test_what_an_outer_join_does_not_find_is_none() -> None:
    ((label, found),) = LABELS.ask("event", "audit", "event")
    assert (label.model, found.model) == ("event", "event")
    ((label, missing),) = LABELS.ask("nothing", "audit", "event")
    assert (label.model, missing) == ("event", None)
