"""The client for agents and service providers, on the protocol, httpx and cryptography.

- An agent: `client` is the interface, on `agent_lifecycle` (key, manifest, registration),
  `choosing` (which grant), `tokens` (cache), `calls` (a call to a service provider) and
  `registry_client` (the registry's API). Its key is in a `key_file`, made of `private_files`.
  `manifests` makes what it declares.
- A service provider: `verifier` asks the registry; `refusals` answers the agent; `django` protects
  the views of a Django project, and is the one module that imports Django.
- Both: `exchange` makes one HTTP exchange, with `nonces` and `addresses`; its result is in
  `answers` and `errors`.
- An auditor: `log_client` reads the public log. `verify_log` and `verify_proof` also run as plain
  files, without this package; `receipts` checks approvals offline, `witness/` cosigns checkpoints.
- `terminal` writes lines to a terminal; the command line is `agentauth.cli`.
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
from .sync_client import SyncAgentAuthClient
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
    "SyncAgentAuthClient",
    "TemporarilyUnavailableError",
    "UnknownOutcomeError",
    "VerifierClient",
]
