"""Prebuilt statements return the same models as the ORM."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.contrib.contenttypes.models import ContentType
from django.db import DataError, OperationalError, connection, connections, transaction

from audit.db.prebuilt_sql import Columns, SelectQuery, Statement, all_but, run_together
from audit.models import Event
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db
EVENT = SelectQuery("SELECT {}, 7 FROM audit_event e WHERE e.id = %s", e=all_but(Event, "reason"))
LABELS = SelectQuery(
    "SELECT {} FROM django_content_type a LEFT JOIN django_content_type b ON b.id = a.id AND "
    "b.model = %s"
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
    # A deferred field is loaded on access.
    assert [getattr(event, name) for name in names] == [getattr(expected, name) for name in names]


def test_what_an_outer_join_does_not_find_is_none() -> None:
    ((label, found),) = LABELS.ask("event", "audit", "event")
    assert (label.model, found.model) == ("event", "event")
    ((label, missing),) = LABELS.ask("nothing", "audit", "event")
    assert (label.model, missing) == ("event", None)


class Slowly(list[Any]):
    """The first replies arrive before the last statement is sent."""

    def __iter__(self) -> Iterator[Any]:
        for each in super().__iter__():
            yield each
            time.sleep(0.05)


def test_statements_together_have_the_rows_each_has_alone(make_event: MakeEvent) -> None:
    made = make_event(data={}, reason="expired")
    label = LABELS.of("event", "audit", "event")
    added = Statement("INSERT INTO auth_group (name) VALUES (%s)", ["a"])
    read = Statement("SELECT name FROM auth_group", [])
    assert run_together([EVENT.of(made.pk), added, label, read]) == [
        EVENT.ask(made.pk),
        [],
        label.answer(),
        [("a",)],
    ]
    assert run_together([]) == []


@pytest.mark.postgres
def test_first_failing_statement_is_reported_and_later_ones_do_not_run() -> None:
    insert = "INSERT INTO auth_group (name) VALUES (%s)"
    first, second = Statement(insert, ["first"]), Statement(insert, ["second"])
    for _ in range(2):
        # The second time, all statements are prepared.
        with pytest.raises(DataError, match="division by zero"), transaction.atomic():
            run_together(
                [
                    first,
                    Statement("SELECT 1 / %s::int", [0]),
                    second,
                    Statement("SELECT nothing", []),
                ]
            )
        assert not Group.objects.exists()
    with transaction.atomic():
        run_together([first, second])
    assert Group.objects.count() == 2


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_RF_8_a_lock_that_ends_statements_together_leaves_the_connection() -> None:
    """The server has reported the error and owes no further reply."""
    Group.objects.create(name="held")
    update = Statement("UPDATE auth_group SET name = %s WHERE name = 'held'", ["other"])
    other = connections.create_connection("default")
    try:
        with transaction.atomic():
            update.answer()
            with other.cursor() as cursor:
                cursor.execute("SET lock_timeout = '5ms'")
            used = other.connection
            with pytest.raises(OperationalError, match="lock timeout"):
                other.run_pipelined(Slowly([update[:2], ("SELECT 1", []), ("SELECT 2", [])]))  # type: ignore[attr-defined]  # our own
        both = other.run_pipelined([("SELECT 1", []), ("SELECT 2", [])])  # type: ignore[attr-defined]  # our own
        assert both == [([(1,)], 1), ([(2,)], 1)]
        assert other.connection is used
    finally:
        other.close()
    assert connection.is_usable()
