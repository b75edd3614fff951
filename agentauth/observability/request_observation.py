"""One log line and one measurement per request: caller, route, outcome and duration."""

import logging
import time
from collections.abc import Callable

from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from agentauth.observability import metrics
from registry.authentication import actor_of
from registry.refusal_recording import method_of

logger = logging.getLogger("agentauth.requests")
# All requests without a route of ours share one label, so that strangers create no series.
NO_ROUTE = "none"


class ObservingMiddleware:
    """Logs the route, never the path: paths hold ids, and some hold secrets."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        begun = time.monotonic()
        response = self.get_response(request)
        seconds = time.monotonic() - begun
        method, route = method_of(request), route_of(request)
        metrics.observe_request(
            method=method, route=route, status=response.status_code, seconds=seconds
        )
        if logger.isEnabledFor(logging.INFO):
            self.log(request, response, method, route, seconds)
        return response

    @staticmethod
    def log(
        request: HttpRequest, response: HttpResponseBase, method: str, route: str, seconds: float
    ) -> None:
        try:
            caller = actor_of(request)
            kind, name = caller.kind, caller.id
        except (DatabaseError, InterfaceError):
            # The caller's row is in the database, which did not answer.
            kind, name = "unknown", ""
        members = {
            "method": method,
            "route": route,
            "status": response.status_code,
            "duration_ms": round(seconds * 1000, 1),
            "caller_kind": kind,
            "caller_id": name,
        }
        said = f"{method} {route} {response.status_code} {members['duration_ms']} ms {kind} {name}"
        logger.info(said.rstrip(), extra={"members": members})


def route_of(request: HttpRequest) -> str:
    """The URL's pattern as the URLconf writes it; NO_ROUTE if there is none."""
    match = request.resolver_match
    return f"/{match.route}" if match else NO_ROUTE
