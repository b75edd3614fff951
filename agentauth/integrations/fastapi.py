"""Protect a FastAPI application.

    app = FastAPI()
    protect(app, Provider.from_environment())

    @app.get("/calendar/{id}")
    @protected(requires("read", "calendar/{id}"))
    async def events(id: str, agent: Agent) -> dict[str, str]:
        return {"for": agent.subject}

A dependency does the same: `dependencies=[Depends(needs(requires("read", "calendar/{id}")))]`.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

try:
    from fastapi import Depends, Request
except ModuleNotFoundError as error:
    raise ImportError(
        "agentauth.integrations.fastapi needs FastAPI: install agentauth-sdk[fastapi]."
    ) from error

from agentauth.sdk.verifier import Allowed

from .requirement import GUARDED, Requirement, requires
from .starlette import (
    ConfigurationError,
    Provider,
    checked_for,
    decision,
    protect,
    protected,
    unprotected,
)

__all__ = [
    "Agent",
    "ConfigurationError",
    "Provider",
    "decision",
    "needs",
    "protect",
    "protected",
    "requires",
    "unprotected",
]


async def _decision(request: Request) -> Allowed:
    return decision(request)


# The type of a parameter that is the decision of verify.
Agent = Annotated[Allowed, Depends(_decision)]


def needs(requirement: Requirement) -> Callable[[Request], Awaitable[Allowed]]:
    """A dependency for a route, or for each route of a router, that requires this act.

    Raises ConfigurationError.
    """
    if not isinstance(requirement, Requirement):
        raise ConfigurationError('Write Depends(needs(requires("read", "calendar/{id}"))).')

    async def allowed(request: Request) -> Allowed:
        return checked_for(requirement).allowed

    setattr(allowed, GUARDED, requirement)
    return allowed
