"""What the MCP SDK would refuse in a tool call, refused before verify is asked.

Verify counts an operation that it allows: the same call, corrected and repeated under its key,
would otherwise be answered `already_processed`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk.refusal_responses import HttpAnswer, answer_for

from .mcp_sdk import (
    DEFAULT_NEGOTIATED_VERSION,
    HANDSHAKE_PROTOCOL_VERSIONS,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    Request,
    Scope,
    TransportSecurityMiddleware,
    TransportSecuritySettings,
    classify_inbound_request,
    find_duplicated_routing_header,
    validate_client_request,
    validate_mcp_param_headers,
)
from .tool_schema_validation import ToolSchema

_JSON: Final = "application/json"
_ANY: Final = "*/*"
_BAD, _NOT_ACCEPTABLE, _UNSUPPORTED = 400, 406, 415


class HttpChecks:
    """The checks of one application, by the settings it passes to the official SDK."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._json_alone = bool(settings.get("json_response"))
        self._has_sessions = not settings.get("stateless_http")
        security: TransportSecuritySettings | None = settings.get("transport_security")
        self._security = TransportSecurityMiddleware(security)

    async def refusal(self, scope: Scope, body: Mapping[str, object]) -> HttpAnswer | None:
        """The answer to the tool call `body`; None if the SDK takes it."""
        request = Request(scope)
        response = await self._security.validate_request(request, is_post=True)
        if response is not None:
            return _answer(response.status_code, bytes(response.body).decode())
        kind = request.headers.get("content-type", "").split(";")[0].strip()
        if kind != _JSON:
            return _answer(_UNSUPPORTED, f"The Content-Type must be {_JSON}.")
        accepted = {
            each.split(";")[0].strip().lower()
            for each in request.headers.get("accept", "").split(",")
        }
        if not accepted & {_JSON, "application/*", _ANY} or not (
            self._json_alone or accepted & {"text/event-stream", "text/*", _ANY}
        ):
            return _answer(_NOT_ACCEPTABLE, f"Accept must have {_JSON} and text/event-stream.")
        named = body.get("id")
        if isinstance(named, bool) or not isinstance(named, str | int):
            # The SDK takes a call without an id, does nothing, and answers nothing.
            return _answer(_BAD, "A tools/call needs an id: a text or an integer.")
        if body.get("jsonrpc") != "2.0":
            return _answer(_BAD, 'A tools/call needs "jsonrpc": "2.0".')
        return None

    def sdk_refuses(self, scope: Scope, body: Mapping[str, Any], schema: ToolSchema | None) -> bool:
        """Does the SDK refuse the message, by its protocol version and what that version demands?

        The SDK then answers itself: its error names the versions that the client may use. `schema`
        is the tool's, if there is one of that name.
        """
        headers, params = Request(scope).headers, body["params"]
        version = headers.get(MCP_PROTOCOL_VERSION_HEADER)
        if version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS:
            if find_duplicated_routing_header(headers.items()) is not None:
                return True
            route = classify_inbound_request(body, headers=dict(headers))
            if isinstance(route, InboundLadderRejection):
                return True
            arguments = params.get("arguments") or {}
            if schema and validate_mcp_param_headers(schema.schema, arguments, headers):
                return True
        if version is None and self._has_sessions:
            # The version is the session's, which only the SDK knows.
            return False
        try:
            known = version or DEFAULT_NEGOTIATED_VERSION
            validate_client_request("tools/call", known, params)
        except (ValueError, KeyError):
            # Also a ValidationError.
            return True
        return False


def _answer(status: int, sentence: str) -> HttpAnswer:
    return replace(answer_for(InvalidRequestError(sentence)), status=status)
