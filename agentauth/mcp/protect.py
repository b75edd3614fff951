"""Protect the tools of an MCP server: verify is asked about each call before the tool runs.

    server = MCPServer("calendar")
    …
    protected = Protected(
        server,
        {"add_event": ToolAction("write", "calendar/{name}")},
        endpoint_url="https://mcp.example.com/mcp",
        verifier=VerifierClient(registry_url, client_id, client_secret),
    )
    app = protected.streamable_http_app()

The agent's token and proof come with the HTTP request, as at any service provider (protocol
section 2). There are two layers: this module's ASGI application asks verify, since only HTTP can
answer 401 with `DPoP-Nonce`; a middleware of the server closes what has no action, and refuses a
call that the first layer did not allow. So a server that is also reached another way (stdio) runs
no protected tool there.
"""

import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import anyio.to_thread

from agentauth.protocol.capability import Action
from agentauth.protocol.dpop import authorization_header, single_header
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from agentauth.sdk.errors import AlreadyProcessedError, RefusedError
from agentauth.sdk.refusal_responses import HttpAnswer, answer_for
from agentauth.sdk.registry_http import new_key
from agentauth.sdk.url_checks import check_audience
from agentauth.sdk.verifier import Allowed

from .mcp_sdk import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    ASGIApp,
    CallNext,
    Context,
    HandlerResult,
    MCPError,
    MCPServer,
    Message,
    Receive,
    Scope,
    Send,
    ServerRequestContext,
    TransportSecuritySettings,
)
from .sdk_request_validation import HttpChecks
from .tool_action import ToolAction
from .tool_call_messages import (
    Answer,
    ToolCall,
    link_not_opened,
    read_body,
    refusal,
    take_call,
    waiting,
)
from .tool_schema_validation import ToolSchema

logger = logging.getLogger(__name__)

_VERDICT: Final = "agentauth.mcp"
# What a client may send besides `tools/call`: none of it runs the server's own code but the list.
_OPEN: Final = frozenset(
    {"initialize", "ping", "server/discover", "tools/list", "logging/setLevel"}
)
_UNAVAILABLE: Final = 503
# Refusals of the credentials are HTTP's; the others are the tool's answer, which the model reads.
_HTTP_STATUSES: Final = frozenset({401, _UNAVAILABLE})


class Verifier(Protocol):
    """A client of verify: `VerifierClient`, or one whose `verify` is a coroutine."""

    def verify(
        self,
        *,
        token: str,
        proof: str,
        method: str,
        url: str,
        action: Action | None = None,
        idempotency_key: str | None = None,
        dry_run: bool = False,
    ) -> Any:
        """`VerifierClient.verify`."""


@dataclass(slots=True)
class _Verdict:
    """The decision on one call: `allowed`, or the `answer` instead of the tool's."""

    call: ToolCall
    allowed: Allowed | None = None
    answer: Answer | None = None
    used: bool = False


class Protected:
    """`server` with `tools`, tool name → act. A tool without an act is neither listed nor run.

    `endpoint_url` is the public URL of the MCP endpoint, at or below the service provider's
    audience; proofs are checked against it, never against `Host`. `verifier` asks the registry as
    that service provider. Raises AddressError for another kind of URL.
    """

    def __init__(
        self,
        server: MCPServer[Any],
        tools: Mapping[str, ToolAction],
        *,
        endpoint_url: str,
        verifier: Verifier,
    ) -> None:
        self.server = server
        self.tools = dict(tools)
        self.endpoint_url = check_audience(endpoint_url)
        self._verifier = verifier
        server.middleware.append(self._guard)

    def streamable_http_app(
        self, *, streamable_http_path: str = "/mcp", **settings: Any
    ) -> ASGIApp:
        """The server as an ASGI application; `settings` are those of the official SDK.

        Without sessions unless you say otherwise: one caller's session is no other caller's
        business. `Host` may be that of `endpoint_url`, or local.
        """
        settings.setdefault("stateless_http", True)
        settings.setdefault("transport_security", self._transport_security())
        checks = HttpChecks(settings)
        app = self.server.streamable_http_app(streamable_http_path=streamable_http_path, **settings)

        async def protected(scope: Scope, receive: Receive, send: Send) -> None:
            path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
            if scope["type"] == "http" and path == streamable_http_path:
                await self._http(app, checks, scope, receive, send)
            else:
                await app(scope, receive, send)

        return protected

    # ---- first layer: HTTP

    async def _http(
        self, app: ASGIApp, checks: HttpChecks, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["method"] != "POST":
            await app(scope, receive, send)
            return
        try:
            content, body = await read_body(receive)
            call = take_call(body, scope["headers"])
        except AgentAuthError as error:
            await _send(send, answer_for(error))
            return
        if call is not None:
            content = call.content
            refused = await checks.refusal(scope, body)
            schema = await self._schema(call.name)
            if refused is None and not checks.sdk_refuses(scope, json.loads(content), schema):
                verdict = await self._verdict(call, schema, _headers(scope))
                if isinstance(verdict, _Verdict):
                    scope = {**scope, _VERDICT: verdict}
                    nonce = verdict.allowed.nonce if verdict.allowed else None
                    send = _kept_from_caches(send, nonce)
                else:
                    refused = verdict
            if refused is not None:
                await _send(send, refused)
                return
        await app(_with_length(scope, content), _replayed(content, receive), send)

    async def _verdict(
        self, call: ToolCall, schema: ToolSchema | None, headers: Mapping[str, list[str]]
    ) -> _Verdict | HttpAnswer:
        rule = self.tools.get(call.name)
        if rule is None or schema is None:
            # The second layer closes it.
            return _Verdict(call)
        if call.declined_link:
            return _Verdict(call, answer=link_not_opened(call.operation_key))
        key = call.operation_key or (new_key() if rule.needs_key else None)
        try:
            token = authorization_header(headers.get("authorization", []))
            proof = single_header(headers.get("dpop", []))
        except AgentAuthError as error:
            return answer_for(error)
        try:
            action = rule.action(call.arguments, schema)
        except InvalidRequestError as error:
            return _Verdict(call, answer=refusal(error, key))
        try:
            allowed = await self._verify(token, proof, action, key)
            if allowed.repeated and not rule.handles_repeats:
                raise AlreadyProcessedError("This operation was allowed before.")
        except AgentAuthError as error:
            return _refused(call, error, key)
        return _Verdict(call, allowed)

    async def _schema(self, tool: str) -> ToolSchema | None:
        """The tool's schema; None if the server has no such tool."""
        for each in await self.server.list_tools():
            if each.name == tool:
                # No public method of the SDK returns its own tool.
                own = self.server._tool_manager.get_tool(tool)  # noqa: SLF001
                return ToolSchema(each.input_schema, own and own.fn_metadata)
        return None

    async def _verify(self, token: str, proof: str, action: Action, key: str | None) -> Allowed:
        asked: dict[str, Any] = {
            "token": token,
            "proof": proof,
            "method": "POST",
            "url": self.endpoint_url,
            "action": action,
            "idempotency_key": key,
        }
        ask = self._verifier.verify
        if inspect.iscoroutinefunction(ask):
            decided: Allowed = await ask(**asked)
        else:
            # A blocking call in its own thread: it would stall the event loop.
            decided = await anyio.to_thread.run_sync(lambda: ask(**asked))
        return decided

    def _transport_security(self) -> TransportSecuritySettings:
        own = urlsplit(self.endpoint_url)
        return TransportSecuritySettings(
            allowed_hosts=[own.netloc, "127.0.0.1:*", "localhost:*"],
            allowed_origins=[f"{own.scheme}://{own.netloc}"],
        )

    # ---- second layer: MCP

    async def _guard(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Runs before each message; closes everything that is neither checked nor harmless."""
        if ctx.method == "tools/call":
            return await self._run(ctx, call_next)
        if ctx.request_id is not None and ctx.method not in _OPEN:
            raise MCPError(METHOD_NOT_FOUND, "Only the tools of this server may be used.")
        result = await call_next(ctx)
        return self._listed(result) if ctx.method == "tools/list" else result

    async def _run(
        self, context: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        params = context.params or {}
        name = params.get("name")
        if not isinstance(name, str) or name not in self.tools:
            raise MCPError(INVALID_PARAMS, "There is no such tool here.")
        scope = getattr(context.request, "scope", {})
        verdict = scope.get(_VERDICT)
        if not isinstance(verdict, _Verdict) or verdict.used or not verdict.call.is_of(params):
            raise MCPError(INVALID_PARAMS, "This call was not checked, so the tool was not run.")
        verdict.used = True
        if verdict.answer is not None:
            return verdict.answer.result(context)
        if verdict.allowed is None:
            raise MCPError(INVALID_PARAMS, "This call was not allowed, so the tool was not run.")
        return await call_next(context)

    def _listed(self, result: HandlerResult) -> HandlerResult:
        if isinstance(result, dict):
            tools = [each for each in result.get("tools", []) if each.get("name") in self.tools]
            return {**result, "tools": tools}
        raise MCPError(METHOD_NOT_FOUND, "The list of tools could not be read.")


def decision(context: Context[Any, Any]) -> Allowed:
    """In a protected tool: the answer of verify. Raises LookupError elsewhere."""
    scope = getattr(context.request_context.request, "scope", {})
    verdict = scope.get(_VERDICT)
    if not isinstance(verdict, _Verdict) or verdict.allowed is None:
        raise LookupError("This tool is not protected by agentauth.mcp.")
    return verdict.allowed


def _refused(call: ToolCall, error: AgentAuthError, key: str | None) -> _Verdict | HttpAnswer:
    """Credentials and faults are HTTP's; what a person or the model can change is the tool's."""
    if isinstance(error, RefusedError) and error.error == "step_up_required":
        return _Verdict(call, answer=waiting(call, error, key))
    answer = answer_for(error)
    if answer.status == _UNAVAILABLE:
        logger.error("a call could not be checked: %s", error)
    if answer.status in _HTTP_STATUSES:
        return answer
    return _Verdict(call, answer=refusal(error, key))


# ---- ASGI


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _with_length(scope: Scope, content: bytes) -> Scope:
    framing = {b"content-length", b"transfer-encoding"}
    headers = [each for each in scope["headers"] if each[0].lower() not in framing]
    return {**scope, "headers": [*headers, (b"content-length", str(len(content)).encode())]}


def _replayed(content: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    return replay


def _kept_from_caches(send: Send, nonce: str | None) -> Send:
    """Keep the answer out of caches, which would skip the check, and add the agent's next nonce."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message["headers"] if each[0].lower() != b"cache-control"]
            kept.append((b"cache-control", b"private, no-store"))
            if nonce is not None:
                kept.append((b"dpop-nonce", nonce.encode("latin-1")))
            message = {**message, "headers": kept}
        await send(message)

    return sending


async def _send(send: Send, answer: HttpAnswer) -> None:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items()
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
