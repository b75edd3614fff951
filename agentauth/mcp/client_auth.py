"""Sign the calls of a Python MCP client to a protected server: `httpx2.AsyncClient(auth=…)`.

auth = AgentAuth(client, "calendar-mcp")
async with httpx2.AsyncClient(auth=auth) as http:
    async with Client(streamable_http_client(url, http_client=http)) as session: …
"""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from agentauth.protocol.capability import Action
from agentauth.sdk.client import AgentAuthClient

try:
    import httpx2
except ImportError:
    raise ImportError("For MCP, install the extra: pip install 'agentauth-sdk[mcp]'") from None

_UNAUTHORIZED: Final = 401
ActionOf = Callable[[str, Mapping[str, Any]], Action | None]


class AgentAuth(httpx2.Auth):
    """Signs each `tools/call` as one agent, each try with a fresh proof; nothing else is signed.

    `action_of` tells from tool and arguments which of several grants to use. Raises within the
    call as `AgentAuthClient.authenticate_headers`, so AudienceError for another server's URL.
    """

    requires_request_body = True

    def __init__(
        self, client: AgentAuthClient, service: str, *, action_of: ActionOf | None = None
    ) -> None:
        self._client = client
        self._service = service
        self._action_of = action_of
        self._nonce: str | None = None

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Sign and send; once more with the nonce or the new token that the answer asks for."""
        call = _tool_call(request)
        if call is None:
            yield request
            return
        action = self._action_of(*call) if self._action_of is not None else None
        for last in (False, True):
            signed = await self._client.authenticate_headers(
                self._service, request.method, str(request.url), action=action, nonce=self._nonce
            )
            request.headers.update(signed)
            response = yield request
            fresh = response.headers.get("DPoP-Nonce")
            self._nonce = fresh or self._nonce
            challenge = response.headers.get("WWW-Authenticate", "")
            if last or response.status_code != _UNAUTHORIZED:
                return
            if 'error="invalid_token"' in challenge:
                self._client.forget_tokens(self._service)
            elif 'error="use_dpop_nonce"' not in challenge or fresh is None:
                return


def _tool_call(request: httpx2.Request) -> tuple[str, Mapping[str, Any]] | None:
    try:
        body = json.loads(request.content) if request.method == "POST" else None
    except ValueError:
        return None
    if not isinstance(body, dict) or body.get("method") != "tools/call":
        return None
    params = body.get("params") or {}
    return str(params.get("name", "")), params.get("arguments") or {}
