"""Events in an admin site: rows to read, and nothing that changes one."""

import pytest
from django.contrib.admin import AdminSite
from django.test import RequestFactory

from audit.admin import EventAdmin
from audit.models import Event
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db


def test_DJ_16_no_row_of_the_log_can_be_added_changed_or_deleted_here(make_event: MakeEvent) -> None:
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
