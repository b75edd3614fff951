"""Protect an ASGI application: a middleware asks verify before the application sees a request.

Every path is closed unless its route says otherwise: a route with a requirement is checked for that
act, an open one is not checked, every other is checked without an act (token, proof, windows and
presence). WebSocket upgrades are refused. No framework: `routes` or a function says which route a
request is for; `agentauth.integrations.starlette` brings that function for its routers.

    app = AgentAuthMiddleware(app, Provider.from_environment(), routes=[
        ("GET", "/calendar/{id}", requires("read", "calendar/{id}")),
        ("GET", "/health", UNPROTECTED),
    ])
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from agentauth.sdk.async_verifier import AsyncVerifierClient
from agentauth.sdk.refusal_responses import HttpAnswer
from agentauth.sdk.verifier import Allowed

from . import refusals_and_caching
from .incoming_request import (
    WEBSOCKET,
    Incoming,
    asgi_headers,
    asgi_target,
    bounded,
    check_length,
    question,
)
from .provider_settings import Provider
from .requirement import ConfigurationError, Requirement

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# In a table of routes: open to every caller.
UNPROTECTED: Final = "unprotected"
# Policy violation (RFC 6455 section 7.4.1); before it is accepted, a server sends 403 instead.
_POLICY: Final = 1008
_KEY: Final = "agentauth"
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")


@dataclass(frozen=True, slots=True)
class Route:
    """The route of one request. By default none is known: it is checked without an act.

    `converted`: as `Incoming.converted`.
    """

    requirement: Requirement | None = None
    is_open: bool = False
    parameters: Mapping[str, object] = field(default_factory=dict)
    converted: Callable[[], Mapping[str, Sequence[object]]] = field(default=dict, repr=False)


RouteOf = Callable[[Scope], Route]
Line = tuple[str, str, Requirement | str]


@dataclass(slots=True)
class Checked:
    """The decision on one request. It is for one run of the route that it was made for."""

    allowed: Allowed
    route: Route
    used: bool = False


_current: ContextVar[Checked | None] = ContextVar("agentauth_checked", default=None)


class DisconnectedError(Exception):
    """The caller hung up before its body had arrived."""


class AgentAuthMiddleware:
    """The outermost layer of an ASGI application.

    `routes` is a table of (method, path, requirement or UNPROTECTED), or a function from the scope
    to a Route. `{name}` in a path is one segment, `{name:path}` all that follow. The first line
    that matches counts. `verifier` is a client of its own, if one is given it is not closed here.

    Raises ConfigurationError.
    """

    def __init__(
        self,
        app: Application,
        provider: Provider,
        *,
        routes: Sequence[Line] | RouteOf = (),
        verifier: AsyncVerifierClient | None = None,
    ) -> None:
        self._app = app
        self._audience = provider.audience
        self._route: RouteOf = routes if callable(routes) else table(routes)
        self._verifier = verifier or provider.async_verifier()
        self._closes = verifier is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                if self._closes:
                    await self._verifier.close()
            return
        route = self._route(scope)
        if route.is_open:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._protected(route, scope, receive, send)
        else:
            raise ConfigurationError(f"Nothing is allowed over {scope['type']!r}.")

    async def _protected(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            allowed, receive = await self._check(route, scope, receive)
        except AgentAuthError as error:
            await send_answer(refusals_and_caching.refusal(error), send)
            return
        except DisconnectedError:
            return
        checked = scope[_KEY] = Checked(allowed, route)
        before = _current.set(checked)
        try:
            await self._app(scope, receive, _private(send, allowed))
        finally:
            _current.reset(before)

    async def _check(self, route: Route, scope: Scope, receive: Receive) -> tuple[Allowed, Receive]:
        """Ask verify; also the `receive` that the application then reads the body from."""
        incoming = Incoming(
            scope["method"],
            asgi_target(scope),
            asgi_headers(scope),
            route.parameters,
            converted=route.converted,
        )
        asked = question(incoming, self._audience)
        needed, act = route.requirement, None
        if needed is not None:
            if needed.reads_body:
                body, receive = await _read_body(incoming, receive)
                incoming = replace(incoming, read_body=lambda: body)
            act = needed.action(incoming)
        allowed = await self._verifier.verify(**asked, action=act)
        # A route without a requirement handles repeated operations itself.
        repeats = needed is None or needed.handles_repeats
        return refusals_and_caching.once(allowed, handles_repeats=repeats), receive


def table(lines: Sequence[Line]) -> RouteOf:
    """The function for a table of routes. Raises ConfigurationError for a line that is wrong."""
    compiled = [_compiled(line) for line in lines]

    def route(scope: Scope) -> Route:
        path, asked = scope["path"], scope.get("method", "WEBSOCKET")
        # The path of a scope includes the prefix that the application is served under.
        root = scope.get("root_path", "").rstrip("/")
        path = path[len(root) :] if root and path.startswith(root + "/") else path
        for method, pattern, wanted in compiled:
            match = pattern.fullmatch(path)
            if match is not None and asked in {method, "HEAD" if method == "GET" else method}:
                if isinstance(wanted, Requirement):
                    return Route(wanted, parameters=match.groupdict())
                return Route(is_open=True)
        return Route()

    return route


def current() -> Checked | None:
    """The decision on the request that is being answered; None outside the middleware."""
    return _current.get()


def decision(scope: Mapping[str, Any]) -> Allowed:
    """The answer of verify to the request with this scope. Raises ConfigurationError if none was
    asked for.
    """
    checked = scope.get(_KEY)
    if not isinstance(checked, Checked):
        raise ConfigurationError("This request was not checked: its route is open.")
    return checked.allowed


async def send_answer(answer: HttpAnswer, send: Send) -> None:
    """Send a whole answer."""
    headers = [(n.lower().encode("ascii"), v.encode("latin-1")) for n, v in answer.headers.items()]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _compiled(line: Line) -> tuple[str, re.Pattern[str], Requirement | str]:
    method, path, wanted = line
    if not path.startswith("/") or "{" in (bare := _PARAMETER.sub("", path)) or "}" in bare:
        raise ConfigurationError(f"{path!r} must be a path such as /calendar/{{id}}.")
    if isinstance(wanted, Requirement):
        names = [name for name, _ in _PARAMETER.findall(path)]
        wanted.check_parameters(names, f"the path {path}")
    elif wanted != UNPROTECTED:
        raise ConfigurationError(f"{method} {path}: use requires(…) or UNPROTECTED.")
    parts: list[str] = []
    end = 0
    for match in _PARAMETER.finditer(path):
        kind = ".+" if match[2] else "[^/]+"
        parts += [re.escape(path[end : match.start()]), f"(?P<{match[1]}>{kind})"]
        end = match.end()
    return method, re.compile("".join(parts) + re.escape(path[end:]), re.DOTALL), wanted


async def _read_body(incoming: Incoming, receive: Receive) -> tuple[bytes, Receive]:
    """The whole body, and a `receive` that gives it again."""
    check_length(incoming.lines("Content-Length"))
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise DisconnectedError
        body = bounded(body + message.get("body", b""))
        if not message.get("more_body", False):
            break
    kept: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return kept.pop() if kept else await receive()

    return body, again


def _private(send: Send, allowed: Allowed) -> Send:
    """`send` for a protected answer: kept out of caches, with the nonce for the next proof."""

    async def private(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": _headers(message.get("headers", ()), allowed)}
        await send(message)

    return private


def _headers(lines: Iterable[tuple[bytes, bytes]], allowed: Allowed) -> list[tuple[bytes, bytes]]:
    given = [(bytes(name), bytes(value)) for name, value in lines]
    stated = [value for name, value in given if name.lower() == b"cache-control"]
    kept = [each for each in given if each[0].lower() != b"cache-control"]
    private = refusals_and_caching.kept_private(b", ".join(stated).decode("latin-1"))
    kept.append((b"cache-control", private.encode("latin-1")))
    if allowed.nonce is not None:
        kept = [each for each in kept if each[0].lower() != b"dpop-nonce"]
        kept.append((b"dpop-nonce", allowed.nonce.encode("ascii")))
    return kept


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    answer = refusals_and_caching.refusal(InvalidRequestError(WEBSOCKET))
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY, "reason": WEBSOCKET})
        return

    async def as_websocket(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await send_answer(answer, as_websocket)
