"""`agentauth mcp`: runs the server of `agentauth.mcp`, which the extra `mcp` brings."""

import contextlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from agentauth.sdk.key_store_choice import KeyStoreName

from .agent_options import Connection
from .result import UsageError

_MISSING = "The MCP server needs further packages: pip install 'agentauth-sdk[mcp]'"


def serve(
    *,
    registry: str,
    key_file: Path | None,
    key_store: KeyStoreName,
    name: str | None,
    enrolment_code: str | None,
    services: Sequence[str],
    http: bool,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
    qr_code: bool,
) -> None:
    """Serve until the client or the user ends it. Raises UsageError, AgentAuthError."""
    Connection(registry, key_file, key_store).stored()
    try:
        run = import_module("agentauth.mcp.server").run
        options = import_module("agentauth.mcp.options").Options
    except ImportError as error:
        told = str(error) if "agentauth-sdk[mcp]" in str(error) else _MISSING
        raise UsageError(told) from None
    # Ctrl-C is how a person ends it.
    with contextlib.suppress(KeyboardInterrupt):
        run(
            options(
                registry_url=registry,
                key_file=key_file,
                key_store=key_store,
                name=name,
                enrolment_code=enrolment_code,
                services=tuple(services),
                transport="http" if http else "stdio",
                host=host,
                port=port,
                allowed_hosts=tuple(allowed_hosts),
                allowed_origins=tuple(allowed_origins),
                qr_code=qr_code,
            )
        )
