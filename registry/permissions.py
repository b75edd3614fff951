"""Who may call an endpoint. The default denies: a view that names nobody answers nobody."""

from typing import Any

from django.utils import timezone
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from agentauth.protocol.errors import (
    AgentInactiveError,
    InvalidClientError,
    InvalidProofError,
    PermissionDeniedError,
)
from registry.authentication import caller_of
from registry.models import Agent, ServiceProvider


class DenyAll(BasePermission):
    """What settings name as the default."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return False


class IsAgent(BasePermission):
    """An agent in any state but revoked."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if caller_of(request) is None:
            raise InvalidProofError("This call needs a DPoP proof by the agent's key.", reason="malformed")
        if not isinstance(caller_of(request), Agent):
            raise PermissionDeniedError("This call is for agents.")
        return True


class IsActiveAgent(IsAgent):
    """An agent that is active now."""

    def has_permission(self, request: Request, view: Any) -> bool:
        super().has_permission(request, view)
        agent, now = caller_of(request), timezone.now()
        if not agent.is_active_at(now):
            raise AgentInactiveError(f"This agent is {agent.status_at(now)}.")
        return True


class IsServiceProvider(BasePermission):
    """An active service provider."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if caller_of(request) is None:
            raise InvalidClientError("Authenticate with client id and secret (Basic).")
        if not isinstance(caller_of(request), ServiceProvider):
            raise PermissionDeniedError("This call is for service providers.")
        return True


class IsAgentOrServiceProvider(BasePermission):
    """Either, for the calls that serve both."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if caller_of(request) is None:
            raise InvalidClientError("Authenticate with a proof, or with client id and secret (Basic).")
        return isinstance(caller_of(request), Agent | ServiceProvider)


class IsAuditor(BasePermission):
    """Whoever may read events at all: an agent its own, a service provider only with the auditor right."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if caller_of(request) is None:
            raise InvalidClientError("Authenticate with a proof, or with client id and secret (Basic).")
        audit_filter = getattr(caller_of(request), "audit_filter", None)
        if audit_filter is None or audit_filter() is None:
            raise PermissionDeniedError("This call needs the auditor right.")
        return True
