"""Which callers may use an endpoint. The default denies everyone."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from agentauth.protocol.errors import InvalidClientError, InvalidProofError, PermissionDeniedError
from registry.authentication import caller_of
from registry.models import Agent, ServiceProvider


class DenyAll(BasePermission):
    """The default in the settings: a view that names no permission answers no caller."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return False


class IsAgent(BasePermission):
    """An agent in any state but revoked."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if caller_of(request) is None:
            raise InvalidProofError(
                "This call needs a DPoP proof by the agent's key.", reason="malformed"
            )
        if not isinstance(caller_of(request), Agent):
            raise PermissionDeniedError("This call is for agents.")
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
    """An agent or a service provider, for calls that serve both."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if caller_of(request) is None:
            raise InvalidClientError(
                "Authenticate with a proof, or with client id and secret (Basic)."
            )
        return isinstance(caller_of(request), Agent | ServiceProvider)
