"""Options of the MCP server (registry, key store, transport, port, hosts), checked when set.

Needs no package beyond the SDK, so a command line can import it.
"""

import os
from dataclasses import dataclass, field
from os import PathLike
from typing import Final, Literal

from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk.key_store import KeyStore
from agentauth.sdk.key_store_choice import KeyStoreName, choose_key_store

DEFAULT_REGISTRY: Final = "http://localhost:8000"
LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
# Seconds. Clients give up on a call after 60 s unless told otherwise.
LONGEST_WAIT: Final = 50
_MAX_PORT: Final = 65_535

Transport = Literal["stdio", "http"]


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one MCP server, which is one agent at one registry.

    `registry_url`, `key_file`, `enrolment_code` and `name` are those of `AgentAuthClient`.
    `key_store` is where the key is: `file`, `keyring` or `env` (`key_store_choice`).
    `services` are the ids or slugs of the only service providers that may be used; empty: all.
    `transport` is `stdio`, or `http` for streamable HTTP at `http://host:port/mcp`.
    `allowed_hosts` and `allowed_origins` are the `Host` and `Origin` headers that HTTP requests
    may have; they are required if `host` is not a loopback address, because a client that reaches
    the port acts as this agent. `wait_seconds` is how long a call waits for a person who opened
    the link, 0 to 50. `qr_code` adds the link as a QR code to texts (needs the package `segno`).
    """

    registry_url: str = field(
        default_factory=lambda: os.environ.get("AGENTAUTH_REGISTRY", DEFAULT_REGISTRY)
    )
    key_file: str | PathLike[str] | None = None
    key_store: KeyStoreName = "file"
    enrolment_code: str | None = field(default=None, repr=False)
    name: str | None = None
    services: tuple[str, ...] = ()
    transport: Transport = "stdio"
    host: str = "127.0.0.1"
    port: int = 8765
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    wait_seconds: int = LONGEST_WAIT
    qr_code: bool = False

    def __post_init__(self) -> None:
        """Check the settings. Raises AddressError, InvalidRequestError and ImportError."""
        self.keys()
        if self.transport not in {"stdio", "http"}:
            raise InvalidRequestError("The transport must be stdio or http.")
        if not 0 <= self.wait_seconds <= LONGEST_WAIT:
            raise InvalidRequestError(f"wait_seconds must be 0 to {LONGEST_WAIT}.")
        if not 0 <= self.port <= _MAX_PORT:
            raise InvalidRequestError(f"The port must be 0 to {_MAX_PORT}.")
        if self.host not in LOOPBACK_HOSTS and not self.allowed_hosts:
            raise InvalidRequestError(
                "Listen on 127.0.0.1: a client that reaches the port acts as this agent. To listen "
                "elsewhere, behind a proxy that authenticates its clients, name the Host headers "
                "that requests may have."
            )

    def keys(self) -> KeyStore:
        """The agent's key store."""
        return choose_key_store(self.key_store, self.registry_url, self.key_file)
