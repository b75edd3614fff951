"""Protect views of Django REST framework: `requirement` of the class says what each act needs.

    MIDDLEWARE = ["agentauth.integrations.django.AgentAuthMiddleware", …]
    REST_FRAMEWORK = {
        "DEFAULT_AUTHENTICATION_CLASSES": ["agentauth.integrations.drf.AgentAuthentication"],
        "DEFAULT_PERMISSION_CLASSES": ["agentauth.integrations.drf.AgentPermission"],
    }

    class Calendar(ViewSet):
        requirement = {
            "retrieve": requires("read", "calendar/{pk}"),
            "update": requires("write", "calendar/{pk}"),
        }

The middleware asks verify, so settings and refusals are those of `agentauth.integrations.django`.
The two classes bring its decision to where REST framework looks: `request.user` is the agent,
`request.auth` the decision. Without the middleware, AgentPermission lets nothing through.
"""

from dataclasses import dataclass
from typing import Any

try:
    # Not rest_framework.views, which imports this module by the settings.
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.permissions import BasePermission
    from rest_framework.request import Request
except ModuleNotFoundError as error:
    raise ImportError(
        "agentauth.integrations.drf needs Django REST framework: install agentauth-sdk[drf]."
    ) from error

from agentauth.protocol.errors import InvalidTokenError
from agentauth.sdk.refusal_responses import answer_for
from agentauth.sdk.verifier import Allowed

from .django import decision, protected, unprotected
from .django_decorators import checked_act, required_act
from .requirement import ConfigurationError, requires

__all__ = [
    "AgentAuthentication",
    "AgentPermission",
    "ConfigurationError",
    "decision",
    "protected",
    "requires",
    "unprotected",
]


@dataclass(frozen=True, slots=True)
class Agent:
    """The user of a request: an agent, which has no row in the project's database."""

    pk: str
    name: str
    is_active: bool = True
    is_authenticated: bool = True
    is_anonymous: bool = False
    is_staff: bool = False
    is_superuser: bool = False

    @property
    def id(self) -> str:
        return self.pk

    def __str__(self) -> str:
        return self.name


class AgentAuthentication(BaseAuthentication):
    """`request.user` is the agent that verify allowed, `request.auth` its decision (`Allowed`)."""

    def authenticate(self, request: Request) -> tuple[Agent, Allowed] | None:
        allowed = getattr(request, "agentauth", None)
        if not isinstance(allowed, Allowed):
            return None
        return Agent(allowed.agent_id, allowed.agent_name), allowed

    def authenticate_header(self, request: Request) -> str:
        refusal = answer_for(InvalidTokenError("The request carries no access token."))
        return refusal.headers["WWW-Authenticate"]


class AgentPermission(BasePermission):
    """Lets a request through if verify allowed exactly what this view requires of it."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if not isinstance(getattr(request, "agentauth", None), Allowed):
            return False
        actions = getattr(view, "action_map", None)
        wanted = required_act(
            type(view), actions, str(request.method), getattr(view, "requirement", None)
        )
        return wanted is None or checked_act(request, getattr(view, "kwargs", {})) is wanted
