"""Who may call an endpoint. The default denies: a view that names nobody answers nobody."""

from django.utils import timezone
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from agentauth.protocol.errors import (
    AgentInactiveError,
    InvalidClientError,
    InvalidProofError,
    PermissionDeniedError,
)
from registry.models import Agent, ServiceProvider


class DenyAll(BasePermission):
    """What settings name as the default."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        return False


class IsAgent(BasePermission):
    """An agent in any state but revoked."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if request.user is None:
            raise InvalidProofError("This call needs a DPoP proof by the agent's key.", reason="malformed")
        if not isinstance(request.user, Agent):
            raise PermissionDeniedError("This call is for agents.")
        return True


class IsActiveAgent(IsAgent):
    """An agent that is active now."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        super().has_permission(request, view)
        if not request.user.is_active_at(timezone.now()):
            raise AgentInactiveError(f"This agent is {request.user.status_at(timezone.now())}.")
        return True


class IsServiceProvider(BasePermission):
    """An active service provider."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if request.user is None:
            raise InvalidClientError("Authenticate with client id and secret (Basic).")
        if not isinstance(request.user, ServiceProvider):
            raise PermissionDeniedError("This call is for service providers.")
        return True


class IsAgentOrServiceProvider(BasePermission):
    """Either, for the calls that serve both."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if request.user is None:
            raise InvalidClientError("Authenticate with a proof, or with client id and secret (Basic).")
        return isinstance(request.user, Agent | ServiceProvider)


class IsAuditor(BasePermission):
    """Whoever may read events at all: an agent its own, a service provider only with the auditor right."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if request.user is None:
            raise InvalidClientError("Authenticate with a proof, or with client id and secret (Basic).")
        audit_filter = getattr(request.user, "audit_filter", None)
        if audit_filter is None or audit_filter() is None:
            raise PermissionDeniedError("This call needs the auditor right.")
        return True
