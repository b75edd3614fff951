"""The client for agents and service providers, on the protocol, httpx and cryptography.

- An agent: `client` is the interface, and `sync_client` the same without `await`. They stand on
  `agent_lifecycle` (key, manifest, registration), `agent_grants` (grants and tokens, with
  `ensuring`, `choosing` and the cache of `tokens`), `waiting` (for a person), `calls` (a call to a
  service provider, with `pacing`) and `registry_client` (the registry's API). `http_auth` and
  `requests_auth` sign for other HTTP clients, `approval_link` shows a person the link. The key is
  in a `key_file`, made of `private_files`, or in another `key_store` (`keyring_store`). `manifests`
  makes what the agent declares; `argument_checks` and `clocks` explain mistakes.
- A service provider: `verifier` and `async_verifier` ask the registry, by the rules of `decisions`,
  over kept connections (`connections`, `async_connections`, `http1`); `refusals` answers the agent.
  `agentauth.integrations` protects the routes of a framework.
- Both: `http_exchange` makes one HTTP exchange, with `server_nonces` and `addresses`; its result is
  in `answers` and `errors`.
- An auditor: `log_client` reads the public log. `verify_log` and `verify_proof` also run as plain
  files, without this package; `receipts` checks approvals offline, `witness/` cosigns checkpoints.
- `shown_content` is a service provider's answer as a model may see it.
- `terminal` writes lines to a terminal; the command line is `agentauth.cli`.
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
    ClockError,
    GrantPendingError,
    KeyFileError,
    NoGrantError,
    RefusedError,
    RegistryError,
)
from .http_auth import AgentAuth
from .log_client import LogClient, ProvenEvent
from .sync_client import SyncAgentAuthClient
from .verifier import Allowed, UnknownOutcomeError, VerifierClient

__all__ = [
    "Action",
    "AddressError",
    "Agent",
    "AgentAuth",
    "AgentAuthClient",
    "AgentAuthError",
    "Allowed",
    "AmbiguousGrantError",
    "AsyncVerifierClient",
    "AudienceError",
    "Capability",
    "ClockError",
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
    "SyncAgentAuthClient",
    "TemporarilyUnavailableError",
    "UnknownOutcomeError",
    "VerifierClient",
]
