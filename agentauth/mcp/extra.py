"""The official MCP SDK, imported in this one place: it comes with the extra `mcp`."""

try:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp.shared.exceptions import MCPError
    from mcp_types import (
        INVALID_PARAMS,
        METHOD_NOT_FOUND,
        CallToolResult,
        ClientCapabilities,
        ElicitRequest,
        ElicitRequestURLParams,
        ElicitResult,
        InputRequiredResult,
        TextContent,
        ToolAnnotations,
    )
    from mcp_types.version import is_version_at_least
    from pydantic import Field, WithJsonSchema
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError:
    raise ImportError("For MCP, install the extra: pip install 'agentauth-sdk[mcp]'") from None

__all__ = [
    "INVALID_PARAMS",
    "METHOD_NOT_FOUND",
    "ASGIApp",
    "CallNext",
    "CallToolResult",
    "ClientCapabilities",
    "Context",
    "ElicitRequest",
    "ElicitRequestURLParams",
    "ElicitResult",
    "Field",
    "HandlerResult",
    "InputRequiredResult",
    "MCPError",
    "MCPServer",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "ServerRequestContext",
    "TextContent",
    "ToolAnnotations",
    "TransportSecuritySettings",
    "WithJsonSchema",
    "is_version_at_least",
]
