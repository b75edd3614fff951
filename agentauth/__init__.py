"""AgentAuth: capability-based authentication for AI agents. Imports nothing until asked."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .protocol.capability import Capability
    from .sdk.client import AgentAuthClient

__all__ = ["AgentAuthClient", "Capability"]


def __getattr__(name: str) -> Any:
    """The SDK, on first use: the server imports this package too and must not pay for a client."""
    if name == "AgentAuthClient":
        from .sdk.client import AgentAuthClient

        return AgentAuthClient
    if name == "Capability":
        from .protocol.capability import Capability

        return Capability
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
