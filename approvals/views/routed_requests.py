"""Requests that rules send to the signed-in person, read once per HTTP request."""

from django.http import HttpRequest
from django.utils import timezone

from approvals.services.routed_requests import Routed, routed_to
from approvals.views.request_helpers import human_of


def routed_of(request: HttpRequest) -> Routed:
    """As `routed_to`: the page and its navigation both need it."""
    found: Routed | None = getattr(request, "_routed", None)
    if found is None:
        found = routed_to(human_of(request), timezone.now())
        request._routed = found  # type: ignore[attr-defined]  # noqa: SLF001 — of this module
    return found
