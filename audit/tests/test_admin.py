"""Events in the admin site: readable rows that nothing can change."""

import uuid
from types import SimpleNamespace

import pytest
from django.contrib.admin import AdminSite
from django.test import RequestFactory

from audit import admin, kinds
from audit.admin import EventAdmin, KindFilter, ShortPaginator
from audit.log.event_inserts import KINDS
from audit.models import Event
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db


def test_DJ_16_no_row_of_the_log_can_be_added_changed_or_deleted_here(
    make_event: MakeEvent,
) -> None:
    event, request = make_event(), RequestFactory().get("/admin/audit/event/")
    shown = EventAdmin(Event, AdminSite())
    assert not shown.has_add_permission(request)
    assert not shown.has_change_permission(request, event)
    assert not shown.has_delete_permission(request, event)


def test_the_salt_is_on_no_page(make_event: MakeEvent) -> None:
    shown = EventAdmin(Event, AdminSite())
    assert "salt" not in shown.list_display
    assert "salt" in shown.exclude


def test_the_salt_cannot_be_guessed_by_filtering(make_event: MakeEvent) -> None:
    request = RequestFactory().get("/admin/audit/event/")
    shown = EventAdmin(Event, AdminSite())
    assert not shown.lookup_allowed("salt__startswith", "x", request)
    assert shown.lookup_allowed("outcome__exact", "denied", request)


def _listed(query: str) -> list[Event]:
    request = RequestFactory().get(f"/admin/audit/event/?{query}")
    request.user = SimpleNamespace(has_perm=lambda _right: True, pk=None)  # type: ignore[assignment]
    return list(EventAdmin(Event, AdminSite()).get_changelist_instance(request).result_list)


def test_events_are_found_by_indexed_ids_and_recent_ones_by_free_text(
    make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [uuid.UUID(int=number) for number in range(1, 4)]
    made = [make_event(agent_id=ids[0], token_jti="jti-1") for _ in range(3)]
    other = make_event(human_id=ids[1], grant_id=ids[2], kind=kinds.KEY_PUBLISHED, outcome="denied")
    newest = sorted((event.pk for event in made), reverse=True)
    for query, wanted in (
        ("", sorted([other.pk, *newest], reverse=True)),
        (f"q={made[1].pk}", [made[1].pk]),
        (f"q={ids[0]}", newest),
        (f"q={ids[1]}", [other.pk]),
        (f"q={ids[2]}", [other.pk]),
        ("q=jti-1", newest),
        ("q=jti", []),
        (f"q={uuid.UUID(int=9)}", []),
        ("kind=kms.key.published", [other.pk]),
        ("outcome__exact=denied", [other.pk]),
        (f"q={ids[0]}&kind=kms.key.published", []),
    ):
        assert [event.pk for event in _listed(query)] == wanted, query
    # Free text is searched only in the last events.
    monkeypatch.setattr(admin, "LAST_EVENTS", 2)
    last = sorted([other.pk, *newest], reverse=True)[:2]
    assert [event.pk for event in _listed("q=jti-1")] == [pk for pk in last if pk != other.pk]


def test_list_counts_rows_only_up_to_a_bound(
    make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "MOST_COUNTED", 2)
    for _ in range(3):
        make_event()
    assert ShortPaginator(Event.objects.order_by("id"), 100).count == 2


def test_no_list_reads_the_whole_log_to_show_its_filters_or_its_order() -> None:
    shown = EventAdmin(Event, AdminSite())
    assert shown.sortable_by == ()
    request = RequestFactory().get("/admin/audit/event/")
    assert [kind for kind, _ in KindFilter(request, {}, Event, shown).lookup_choices] == sorted(
        KINDS
    )
