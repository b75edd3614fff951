"""Sign the tool calls that a Python MCP client makes to a protected server.

    signing = SigningTransport(client, "calendar")
    async with httpx2.AsyncClient(transport=signing) as http:
        async with Client(streamable_http_client(url, http_client=http)) as session: …

It is a transport, not an `httpx2.Auth`: an exception in an Auth would end the whole MCP session.
The transport answers only the failed call, with a JSON-RPC error.
"""

import json
from typing import Any, Final

from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.server_nonces import read_nonce

try:
    import httpx2
except ImportError:
    raise ImportError("For MCP, install the extra: pip install 'agentauth-sdk[mcp]'") from None

# JSON-RPC reserves -32000 to -32099 for implementation-defined errors.
NOT_SIGNED: Final = -32_000
_UNAUTHORIZED: Final = 401


class SigningTransport(httpx2.AsyncBaseTransport):
    """Signs each `tools/call` as one agent, with a fresh proof per attempt. Signs nothing else.

    `service` is the protected server's id or slug at the registry. `inner` sends the requests; by
    default over the network. If the agent gets no token for the call, the call is not sent, and
    the client gets a JSON-RPC error with the SDK's message. Its `data` has `error`, `reason` if
    there is one, and `approval_url` and `claim_code` while a person must decide.
    """

    def __init__(
        self,
        client: AgentAuthClient,
        service: str,
        *,
        inner: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = client
        self._service = service
        self._inner = inner or httpx2.AsyncHTTPTransport()
        self._nonce: str | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request. Retry once if the server asks for a nonce or rejects the token."""
        content = await request.aread()
        call = _tool_call(request.method, content)
        if call is None:
            return await self._inner.handle_async_request(request)
        try:
            response = await self._try(request, content)
            if not self._may_retry(response):
                return response
            await response.aclose()
            return await self._try(request, content)
        except AgentAuthError as error:
            return _not_sent(call, error)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    async def _try(self, request: httpx2.Request, content: bytes) -> httpx2.Response:
        signed = await self._client.authenticate_headers(
            self._service, request.method, str(request.url), nonce=self._nonce
        )
        # Sign a copy: on a redirect, the client copies the original's headers to the new target.
        headers = httpx2.Headers(request.headers)
        headers.update(signed)
        return await self._inner.handle_async_request(
            httpx2.Request(
                request.method,
                request.url,
                headers=headers,
                content=content,
                extensions=request.extensions,
            )
        )

    def _may_retry(self, response: httpx2.Response) -> bool:
        fresh = read_nonce(response.headers.get("DPoP-Nonce"))
        self._nonce = fresh or self._nonce
        if response.status_code != _UNAUTHORIZED:
            return False
        challenge = response.headers.get("WWW-Authenticate", "")
        if 'error="invalid_token"' in challenge:
            self._client.forget_tokens(self._service)
            return True
        return 'error="use_dpop_nonce"' in challenge and fresh is not None


def _tool_call(method: str, content: bytes) -> dict[str, Any] | None:
    """The JSON-RPC request, if it calls a tool."""
    try:
        body = json.loads(content) if method == "POST" else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("method") != "tools/call":
        return None
    params = body.get("params")
    return body if isinstance(params, dict) and isinstance(params.get("name"), str) else None


def _not_sent(call: dict[str, Any], error: AgentAuthError) -> httpx2.Response:
    """The JSON-RPC error response for a call that could not be signed."""
    data = {"error": error.code, "reason": error.reason}
    data |= {name: error.fields.get(name) for name in ("approval_url", "claim_code")}
    shown = {name: value for name, value in data.items() if value is not None}
    told = {"code": NOT_SIGNED, "message": error.description, "data": shown}
    return httpx2.Response(200, json={"jsonrpc": "2.0", "id": call.get("id"), "error": told})
