"""The official MCP SDK and its own dependencies, all imported here: the extra `mcp` has them."""

try:
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema import ValidationError as JsonSchemaError
    from jsonschema.validators import extend as extend_validator
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.transport_security import (
        TransportSecurityMiddleware,
        TransportSecuritySettings,
    )
    from mcp.shared.exceptions import MCPError
    from mcp.shared.inbound import (
        MCP_PROTOCOL_VERSION_HEADER,
        InboundLadderRejection,
        classify_inbound_request,
        find_duplicated_routing_header,
        validate_mcp_param_headers,
    )
    from mcp_types import (
        DEFAULT_NEGOTIATED_VERSION,
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
    from mcp_types.methods import validate_client_request
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, is_version_at_least
    from pydantic import Field, ValidationError, WithJsonSchema
    from pydantic_core import SchemaError, SchemaValidator, core_schema, to_jsonable_python
    from referencing import Registry as SchemaRegistry
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError:
    raise ImportError("For MCP, install the extra: pip install 'agentauth-sdk[mcp]'") from None

__all__ = [
    "DEFAULT_NEGOTIATED_VERSION",
    "HANDSHAKE_PROTOCOL_VERSIONS",
    "INVALID_PARAMS",
    "MCP_PROTOCOL_VERSION_HEADER",
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
    "InboundLadderRejection",
    "InputRequiredResult",
    "JsonSchemaError",
    "MCPError",
    "MCPServer",
    "Message",
    "Receive",
    "Request",
    "SchemaError",
    "SchemaRegistry",
    "SchemaValidator",
    "Scope",
    "Send",
    "ServerRequestContext",
    "TextContent",
    "ToolAnnotations",
    "TransportSecurityMiddleware",
    "TransportSecuritySettings",
    "ValidationError",
    "WithJsonSchema",
    "classify_inbound_request",
    "core_schema",
    "extend_validator",
    "find_duplicated_routing_header",
    "is_version_at_least",
    "to_jsonable_python",
    "validate_client_request",
    "validate_mcp_param_headers",
]
