"""What only the ASGI middleware meets: WebSockets, its table of routes, callers that hang up."""

import asyncio
from typing import Any

import pytest

from agentauth.integrations.asgi import (
    UNPROTECTED,
    AgentAuthMiddleware,
    Line,
    Message,
    Receive,
    Scope,
    Send,
    decision,
)
from agentauth.integrations.provider_settings import Provider
from agentauth.integrations.requirement import ConfigurationError, requires
from agentauth.sdk import Allowed

PROVIDER = Provider("https://registry.example.com", "id", "secret", "https://api.sp.example")
ALLOWED = Allowed("d", "a", "A", "s", "g")
SIGNED = [(b"authorization", b"DPoP t"), (b"dpop", b"a.b.c")]
READ = requires("read", "calendar/{name}")


class Verifier:
    """Allows everything, and records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def verify(self, **asked: Any) -> Allowed:
        self.asked.append(asked)
        return ALLOWED


class Call:
    """One call of the middleware: what it sent, and the scopes that reached the application."""

    def __init__(self, routes: list[Line], *messages: Message) -> None:
        self.verifier, self.reached, self.sent = Verifier(), list[Scope](), list[Message]()
        self._messages = list(messages)
        self._app = AgentAuthMiddleware(self._application, PROVIDER, routes=routes)
        self._app._verifier = self.verifier  # type: ignore[assignment]  # no client of a registry

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached.append(scope)

    async def _receive(self) -> Message:
        return self._messages.pop(0)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def __call__(self, kind: str, path: str = "/calendar/work", **scope: Any) -> "Call":
        whole = {"type": kind, "path": path, "headers": SIGNED, **scope}
        if kind == "http":
            whole = {"method": "GET", **whole}
        asyncio.run(self._app(whole, self._receive, self._send))
        return self


OPEN: list[Line] = [("GET", "/open", UNPROTECTED), ("WEBSOCKET", "/chat", UNPROTECTED)]
CONNECT = {"type": "websocket.connect"}


def test_a_websocket_is_refused_with_an_answer_where_the_server_can() -> None:
    call = Call([], CONNECT)("websocket", extensions={"websocket.http.response": {}})
    start, body = call.sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    assert body["type"] == "websocket.http.response.body"
    assert b"WebSockets are not supported" in body["body"]
    assert (call.reached, call.verifier.asked) == ([], [])


def test_a_websocket_is_closed_where_the_server_cannot_answer() -> None:
    call = Call([], CONNECT)("websocket")
    [close] = call.sent
    assert (close["type"], close["code"]) == ("websocket.close", 1008)
    assert len(close["reason"].encode()) <= 123
    assert call.reached == []


def test_an_open_websocket_reaches_the_application() -> None:
    assert len(Call(OPEN)("websocket", "/chat").reached) == 1


def test_another_protocol_reaches_nothing() -> None:
    call = Call([])
    with pytest.raises(ConfigurationError, match="webtransport"):
        call("webtransport")
    assert call.reached == []


@pytest.mark.parametrize("path", ["/open/", "/Open", "/open\n", "/openx", "/x/open"])
def test_a_path_is_open_only_if_it_is_the_one_named(path: str) -> None:
    assert len(Call(OPEN)("http", "/open").verifier.asked) == 0
    assert len(Call(OPEN)("http", path).verifier.asked) == 1
    assert len(Call(OPEN)("http", "/open", method="POST").verifier.asked) == 1


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/calendar/work", "calendar/work"),
        ("/calendar/a b", "calendar/a%20b"),
        ("/calendar/a/b", None),
        ("/calendar/", None),
    ],
)
def test_a_parameter_of_the_table_is_one_segment(path: str, resource: str | None) -> None:
    [asked] = Call([("GET", "/calendar/{name}", READ)])("http", path).verifier.asked
    assert (asked["action"].resource if asked["action"] else None) == resource


WRONG: dict[str, tuple[Any, str]] = {
    "no path": (("GET", "calendar", READ), "must be a path"),
    "open brace": (("GET", "/calendar/{name", READ), "must be a path"),
    "another parameter": (("GET", "/calendar/{id}", READ), r"names \{name\}.*only id"),
    "no requirement": (("GET", "/calendar/{name}", "read"), "UNPROTECTED"),
}


@pytest.mark.parametrize(("line", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_of_the_table_is_named(line: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Call([line])


def test_a_caller_that_hangs_up_reaches_nothing() -> None:
    needed = requires("read", "calendar", arguments=["size"])
    call = Call(
        [("POST", "/x", needed)],
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    )
    call("http", "/x", method="POST", headers=[*SIGNED, (b"content-type", b"application/json")])
    assert (call.reached, call.sent, call.verifier.asked) == ([], [], [])


def test_an_open_route_has_no_decision() -> None:
    [scope] = Call(OPEN)("http", "/open").reached
    with pytest.raises(ConfigurationError, match="not checked"):
        decision(scope)
    [scope] = Call([])("http").reached
    assert decision(scope) is ALLOWED


def test_the_decision_of_the_caller_s_scope_is_not_taken() -> None:
    [scope] = Call([])("http", agentauth="forged").reached
    assert decision(scope) is ALLOWED
