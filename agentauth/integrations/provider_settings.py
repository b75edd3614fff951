"""Who the service provider is and where its registry is: the settings of the integrations that have
no settings file of their own.
"""

import os
from dataclasses import dataclass, field
from typing import Self

from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.async_verifier import AsyncVerifierClient
from agentauth.sdk.url_checks import check_audience, check_registry_url
from agentauth.sdk.verifier import VerifierClient

from .requirement import ConfigurationError

ENVIRONMENT = {
    "registry_url": "AGENTAUTH_REGISTRY",
    "client_id": "AGENTAUTH_CLIENT_ID",
    "client_secret": "AGENTAUTH_CLIENT_SECRET",
    "audience": "AGENTAUTH_AUDIENCE",
}


@dataclass(frozen=True, slots=True)
class Provider:
    """One service provider at one registry. The repr hides the secret.

    `audience` is the URL under which the API is served, without a final slash, as the registry
    knows it. Raises ConfigurationError.
    """

    registry_url: str
    client_id: str
    client_secret: str = field(repr=False)
    audience: str

    def __post_init__(self) -> None:
        for name in ENVIRONMENT:
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigurationError(f"`{name}` of the service provider must be set.")
        for name, check in (("registry_url", check_registry_url), ("audience", check_audience)):
            try:
                check(getattr(self, name))
            except AgentAuthError as error:
                raise ConfigurationError(f"`{name}`: {error.description}") from None

    @classmethod
    def from_environment(cls) -> Self:
        """Of AGENTAUTH_REGISTRY, AGENTAUTH_CLIENT_ID, AGENTAUTH_CLIENT_SECRET and
        AGENTAUTH_AUDIENCE. Raises ConfigurationError naming those that are missing.
        """
        missing = [name for name in ENVIRONMENT.values() if not os.environ.get(name)]
        if missing:
            raise ConfigurationError(f"Set {', '.join(missing)} in the environment.")
        return cls(**{name: os.environ[key] for name, key in ENVIRONMENT.items()})

    def verifier(self) -> VerifierClient:
        """A client of verify for threads."""
        return VerifierClient(self.registry_url, self.client_id, self.client_secret)

    def async_verifier(self) -> AsyncVerifierClient:
        """A client of verify for asyncio."""
        return AsyncVerifierClient(self.registry_url, self.client_id, self.client_secret)
