"""The client for agents and service providers, on the protocol, httpx and cryptography.

- An agent: `client` is the interface, on `agent_lifecycle` (key, manifest, registration),
  `choosing` (which grant), `tokens` (cache), `calls` (a call to a service provider) and
  `registry_client` (the registry's API). Its key is in a `key_file`, made of `private_files`.
  `manifests` makes what it declares.
- A service provider: `verifier` and `async_verifier` ask the registry, by the rules of `decisions`,
  over kept connections (`connections`, `async_connections`, `http1`); `refusals` answers the agent.
  `agentauth.integrations` protects the routes of a framework.
- Both: `exchange` makes one HTTP exchange, with `nonces` and `addresses`; its result is in
  `answers` and `errors`.
- An auditor: `log_client` reads the public log. `verify_log` and `verify_proof` also run as plain
  files, without this package; `receipts` checks approvals offline, `witness/` cosigns checkpoints.
- The command line: `__main__`, `commands`, `terminal`.
"""

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import AgentAuthError, ManifestError, TemporarilyUnavailableError
from agentauth.protocol.money import Money

from .answers import Agent, Confirmation, Grant, ServiceProvider
from .async_verifier import AsyncVerifierClient
from .client import AgentAuthClient
from .decisions import Question
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
    "AsyncVerifierClient",
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
    "Question",
    "RefusedError",
    "RegistryError",
    "ServiceProvider",
    "TemporarilyUnavailableError",
    "UnknownOutcomeError",
    "VerifierClient",
]
