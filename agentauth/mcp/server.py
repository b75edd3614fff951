"""An MCP server through which any MCP client uses services that AgentAuth protects.

The server is one agent: its key stays in the key file, and clients see neither it nor a token or
proof. Over HTTP, every client that reaches the port acts as this agent.
"""

import functools
from typing import Annotated, Any, Final

from agentauth.sdk.client import AgentAuthClient

from .argument_checks import METHODS
from .mcp_sdk import (
    Context,
    Field,
    MCPServer,
    ToolAnnotations,
    TransportSecuritySettings,
    WithJsonSchema,
)
from .options import LONGEST_WAIT, LOOPBACK_HOSTS, Options
from .server_tools import Access
from .url_elicitation import Asking, Result, qr_code

NAME: Final = "agentauth"
INSTRUCTIONS: Final = (
    "Use these tools to call services that a person must allow first. Ask with request_access for "
    "no more than the task needs. If an answer says waiting_for_person, show the person the link "
    "and the code, and wait. Repeat a call that waited, or whose outcome is unknown, with the same "
    "idempotency_key: it is then done once. Never ask again for what a person denied."
)
_MONEY: Final = {
    "type": "object",
    "properties": {"value": {"type": "string"}, "currency": {"type": "string"}},
    "required": ["value", "currency"],
}
_CAPABILITIES: Final = {
    "type": "array",
    "minItems": 1,
    "maxItems": 32,
    "items": {
        "anyOf": [
            {"type": "string", "description": "type:resource, for example read:calendar/work"},
            {
                "type": "object",
                "properties": {
                    "type": {"enum": ["read", "write", "delete", "transact", "custom"]},
                    "resource": {"type": "string"},
                    "max_amount": {**_MONEY, "description": "required for transact, only there"},
                    "constraints": {
                        "type": "object",
                        "description": '{argument: {operator: operand}}, as {"size": {"max": 9}}',
                    },
                    "namespace": {"type": "string"},
                    "name": {"type": "string"},
                },
                "required": ["type", "resource"],
            },
        ]
    },
}
_LIMITS: Final = {
    "type": "object",
    "properties": {
        "max_requests_per_minute": {"type": "integer"},
        "max_uses": {"type": "integer"},
        "confirm_above": _MONEY,
        "budgets": {"type": "array", "items": {"type": "object"}},
        "allowed_time_windows": {"type": "array", "items": {"type": "object"}},
    },
}
_ACTION: Final = {
    "type": "object",
    "properties": {
        "type": {"enum": ["read", "write", "delete", "transact", "custom"]},
        "resource": {"type": "string"},
        "arguments": {"type": "object"},
        "amount": _MONEY,
    },
    "required": ["type", "resource"],
}

Service = Annotated[str, Field(description="id or slug of the service at the registry")]
Capabilities = Annotated[list[Any], WithJsonSchema(_CAPABILITIES)]
Limits = Annotated[dict[str, Any] | None, WithJsonSchema(_LIMITS)]
ActionOf = Annotated[dict[str, Any] | None, WithJsonSchema(_ACTION)]
Key = Annotated[
    str | None,
    Field(
        description="required unless GET or HEAD. A new text for each operation; a repetition with "
        "the same one is done once"
    ),
]
Seconds = Annotated[int, Field(ge=0, le=LONGEST_WAIT)]


def make_server(
    options: Options | None = None, *, client: AgentAuthClient | None = None
) -> MCPServer[Any]:
    """The server, not yet running. `client` replaces the agent that `options` describe.

    Raises ImportError if the options ask for QR codes and `segno` is missing.
    """
    settings = options or Options()
    if settings.qr_code:
        # Fails here rather than in a call.
        qr_code(settings.registry_url)
    access = Access(settings, client)
    asking = Asking(access.wait, settings.wait_seconds, settings.qr_code)
    # Above INFO: the HTTP client logs each address it calls, and with it a service's query.
    server = MCPServer[Any](NAME, instructions=INSTRUCTIONS, log_level="WARNING")
    _add_tools(server, access, asking)
    return server


def _add_tools(server: MCPServer[Any], access: Access, asking: Asking) -> None:
    async def request_access(
        context: Context,
        service: Service,
        capabilities: Capabilities,
        limits: Limits = None,
        reason: Annotated[str, Field(max_length=500)] = "",
        *,
        ask_again: Annotated[
            bool, Field(description="only if the person wants to be asked after a denial")
        ] = False,
    ) -> Result:
        """Ask a person to let you use a service. Asks once: the same request finds its answer."""
        return await asking.answer(
            context,
            lambda _key, waited: (
                access.request(service, capabilities, limits, reason, ask_again=ask_again)
                if waited is None
                else access.report_decision(waited)
            ),
        )

    async def access_status(
        context: Context, service: Service | None = None, wait_seconds: Seconds = 0
    ) -> Result:
        """What you may use now, what waits for a person, and what was denied."""
        return await asking.once(access.status(service, wait_seconds))

    async def call_service(
        context: Context,
        service: Service,
        method: Annotated[str, Field(json_schema_extra={"enum": [*METHODS]})],
        path: Annotated[str, Field(description="starts with a slash, within the audience")],
        body: Annotated[Any, WithJsonSchema({"description": "JSON"})] = None,
        action: ActionOf = None,
        idempotency_key: Key = None,
    ) -> Result:
        """Call a service that a person allowed. `action` chooses among several grants."""
        return await asking.answer(
            context,
            lambda key, _waited: access.call(
                service, method, path, body, action, key or idempotency_key
            ),
            idempotency_key,
        )

    async def revoke_access(
        context: Context, service: Service, grant_id: str | None = None
    ) -> Result:
        """Give back your access to a service, or one grant of it. You must ask to get it again."""
        return await asking.once(access.revoke(service, grant_id))

    reads = ToolAnnotations(read_only_hint=True, open_world_hint=True)
    acts = ToolAnnotations(destructive_hint=True, open_world_hint=True)
    asks = ToolAnnotations(destructive_hint=False, idempotent_hint=True, open_world_hint=True)
    add = functools.partial(server.add_tool, structured_output=False)
    add(request_access, annotations=asks)
    add(access_status, annotations=reads)
    add(call_service, annotations=acts)
    add(revoke_access, annotations=acts)


def transport_security(options: Options) -> TransportSecuritySettings:
    """Which `Host` and `Origin` headers HTTP requests may have.

    A web page could otherwise reach the port of a browser's own machine (DNS rebinding).
    """
    hosts, origins = [*options.allowed_hosts], [*options.allowed_origins]
    if options.host in LOOPBACK_HOSTS:
        own = ["127.0.0.1", "localhost", "[::1]"]
        hosts += [f"{name}:*" for name in own]
        origins += [f"http://{name}:*" for name in own]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def run(options: Options | None = None) -> None:
    """Serve until the client closes standard input (stdio), or until interrupted (http)."""
    settings = options or Options()
    server = make_server(settings)
    if settings.transport == "stdio":
        server.run("stdio")
    else:
        server.run(
            "streamable-http",
            host=settings.host,
            port=settings.port,
            transport_security=transport_security(settings),
        )
