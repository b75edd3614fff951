"""The official MCP SDK and its own dependencies, all imported here: the extra `mcp` has them."""

try:
    from jsonschema import Draft202012Validator, FormatChecker
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.transport_security import (
        TransportSecurityMiddleware,
        TransportSecuritySettings,
    )
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
    from referencing import Registry as SchemaRegistry
    from starlette.requests import Request
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
    "Draft202012Validator",
    "ElicitRequest",
    "ElicitRequestURLParams",
    "ElicitResult",
    "Field",
    "FormatChecker",
    "HandlerResult",
    "InputRequiredResult",
    "MCPError",
    "MCPServer",
    "Message",
    "Receive",
    "Request",
    "SchemaRegistry",
    "Scope",
    "Send",
    "ServerRequestContext",
    "TextContent",
    "ToolAnnotations",
    "TransportSecurityMiddleware",
    "TransportSecuritySettings",
    "WithJsonSchema",
    "is_version_at_least",
]
