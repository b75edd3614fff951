"""Record a refused request: the caller, whose events it belongs to, and the route.

Called by the error handler of all views, and by admin actions that show a refusal as a message.
"""

from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from agentauth.protocol.errors import AgentAuthError
from audit import kinds
from audit.services import record_refusal
from registry.authentication import actor_of
from registry.models import Agent, Human, ServiceProvider

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})


def record_refused_request(
    request: HttpRequest | Request, error: AgentAuthError, *, stands_for: int | None = None
) -> None:
    """Record the refusal in a transaction of its own, after the service's rollback.

    `stands_for` as in `audit.services.record_refusal`. Raises TemporarilyUnavailableError.
    """
    record_refusal(
        kind=kinds.REQUEST_REFUSED,
        actor=actor_of(request),
        at=timezone.now(),
        error=error,
        route=method_and_route(request),
        stands_for=stands_for,
        **_whose(request),
    )


def method_of(request: HttpRequest | Request) -> str:
    """The method, or `other`: each made-up method would be a counter and a series of its own."""
    return str(request.method) if request.method in METHODS else "other"


def method_and_route(request: HttpRequest | Request) -> str:
    """The key by which refusals are counted: the URL pattern, never the path a caller chose."""
    match = getattr(request, "resolver_match", None)
    return f"{method_of(request)} {match.route if match else ''}"


def _whose(request: HttpRequest | Request) -> dict[str, Any]:
    user = getattr(request, "user", None)
    if isinstance(user, Agent):
        return {"agent_id": user.pk, "human_id": user.human_id}
    if isinstance(user, ServiceProvider):
        return {"service_provider_id": user.pk}
    return {"human_id": user.pk} if isinstance(user, Human) else {}
