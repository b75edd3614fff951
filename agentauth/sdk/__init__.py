"""The client for agents and service providers, on the protocol, httpx and cryptography.

- An agent: `client` is the interface, and `sync_client` the same without `await`. They stand on
  `agent_lifecycle` (key, manifest, registration), `grants_and_tokens` (grants and tokens, with
  `ensure_grant_plan`, `grant_choice` and the caches of `client_cache`), `decision_polling` (for a
  person), `service_calls` (a call to a service provider, with `rate_pacing`) and
  `agent_registry_client` (the registry's API, on `registry_http`, as `log_client` is). `httpx_auth`
  and `requests_auth` sign for other HTTP clients, `link_display`
  shows a person the link. The key and the rest of the `identity` are in a `key_file`, made of
  `private_files`, or in another `key_store` (`keyring_store`); `kms_signer` signs with a key
  elsewhere. `own_manifest` makes what the agent declares; `argument_checks` and `clock_check`
  explain mistakes.
- A service provider: `verifier` and `async_verifier` ask the registry, by the rules of
  `verifier_core`, over kept connections (`verify_connections`, `async_verify_connections`,
  `http1`); `refusal_responses` answers the agent. `agentauth.integrations` protects the routes of a
  framework.
- Both: `bounded_http` makes one HTTP exchange, with `server_nonces` and `url_checks`; its result is
  in `registry_answers` and `errors`.
- An auditor: `log_client` reads the public log. `verify_log` and `verify_log_proof` also run as
  plain files, without this package; `offline_receipt_check` checks approvals offline, `witness/`
  cosigns checkpoints.
- `redacted_response` is a service provider's answer as a model may see it.
- `stderr_output` writes lines to a terminal; the command line is `agentauth.cli`.
"""

from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import AgentAuthError, ManifestError, TemporarilyUnavailableError
from agentauth.protocol.money import Money

from .async_verifier import AsyncVerifierClient
from .client import AgentAuthClient
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
from .httpx_auth import AgentAuth
from .log_client import LogClient, ProvenEvent
from .registry_answers import Agent, Confirmation, Grant, ServiceProvider
from .sync_client import SyncAgentAuthClient
from .verifier import Allowed, UnknownOutcomeError, VerifierClient
from .verifier_core import Question

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
