"""The client for agents and service providers.

Uses the protocol, httpx and cryptography, never Django.
"""

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import AgentAuthError, ManifestError, TemporarilyUnavailableError
from agentauth.protocol.money import Money

from .answers import Agent, Confirmation, Grant, ServiceProvider
from .client import AgentAuthClient
from .errors import (
    AddressError,
    AmbiguousGrantError,
    AudienceError,
    GrantPendingError,
    KeyFileError,
    NoGrantError,
    RefusedError,
    RegistryError,
)
from .log_client import LogClient, ProvenEvent
from .verifier import Allowed, UnknownOutcomeError, VerifierClient

__all__ = [
    "Action",
    "AddressError",
    "Agent",
    "AgentAuthClient",
    "AgentAuthError",
    "Allowed",
    "AmbiguousGrantError",
    "AudienceError",
    "Capability",
    "Confirmation",
    "Grant",
    "GrantPendingError",
    "KeyFileError",
    "LogClient",
    "ManifestError",
    "Money",
    "NoGrantError",
    "ProvenEvent",
    "RefusedError",
    "RegistryError",
    "ServiceProvider",
    "TemporarilyUnavailableError",
    "UnknownOutcomeError",
    "VerifierClient",
]
