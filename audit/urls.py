"""URLs of the audit app."""

from django.urls import path

from audit.api import EventsView

urlpatterns = [path("v1/audit/events", EventsView.as_view(), name="audit-events")]
