"""Which message is a tool call, and what of it reaches the server."""

import asyncio
import json
from typing import Any

import pytest

from agentauth.mcp.tool_call_messages import (
    MAX_BODY_BYTES,
    OPERATION_KEY,
    ToolCall,
    read_body,
    take_call,
)
from agentauth.protocol.errors import InvalidRequestError


def message(**params: Any) -> dict[str, Any]:
    told = {"name": "pay", "arguments": {"payee": "ACME"}, **params}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": told}


def read(*parts: dict[str, Any]) -> tuple[bytes, dict[str, object], int]:
    """What `read_body` made of these ASGI messages, and how many it took."""
    left = list(parts)

    async def receive() -> Any:
        return left.pop(0)

    content, body = asyncio.run(read_body(receive))
    return content, body, len(parts) - len(left)


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts_is_read_whole() -> None:
    content, body, taken = read(part(b'{"a"', more=True), part(b": 1}", more=False))
    assert (content, body, taken) == (b'{"a": 1}', {"a": 1}, 2)


def test_a_body_of_the_longest_length_is_read() -> None:
    text = b'{"a": "' + b"x" * (MAX_BODY_BYTES - 9) + b'"}'
    assert len(text) == MAX_BODY_BYTES
    assert read(part(text, more=False))[0] == text


def test_an_endless_body_is_not_read_to_its_end() -> None:
    with pytest.raises(InvalidRequestError, match="at most"):
        read(part(b" " * MAX_BODY_BYTES, more=True), part(b" ", more=True))


def test_a_caller_that_hangs_up_has_sent_nothing() -> None:
    with pytest.raises(InvalidRequestError, match="ended early"):
        read(part(b"{}", more=True), {"type": "http.disconnect"})


@pytest.mark.parametrize(
    "body",
    [
        message() | {"method": "tools/list"},
        message() | {"params": None},
        message() | {"params": []},
        {"method": "tools/call"},
    ],
    ids=["list", "null", "array", "none"],
)
def test_another_message_is_no_tool_call(body: dict[str, Any]) -> None:
    assert take_call(body, []) is None


@pytest.mark.parametrize("key", ["k", "k" * 128])
@pytest.mark.parametrize("where", ["header", "meta", "link"])
def test_the_operation_has_the_key_that_the_caller_names(key: str, where: str) -> None:
    headers = [(b"Idempotency-Key", key.encode())] if where == "header" else []
    named: dict[str, dict[str, Any]] = {
        "header": {},
        "meta": {"_meta": {OPERATION_KEY: key}},
        "link": {"inputResponses": {f"agentauth:{key}": {"action": "accept"}}},
    }
    call = take_call(message(**named[where]), headers)
    assert call is not None
    assert call.operation_key == key
    assert (call.answered_link, call.declined_link) == (where == "link", False)


@pytest.mark.parametrize("key", ["", "k" * 129, "a,b", "ä", 5, None, ["k"]])
def test_a_key_of_another_form_is_refused(key: object) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 128"):
        take_call(message(_meta={OPERATION_KEY: key}), [])


@pytest.mark.parametrize("answer", [{"action": "decline"}, {"action": "cancel"}, {}, None, "x"])
def test_any_answer_but_accept_declines_the_link(answer: object) -> None:
    call = take_call(message(inputResponses={"agentauth:k": answer}), [])
    assert call is not None
    assert call.declined_link


def test_the_server_gets_its_own_answers_and_not_ours() -> None:
    own = {"question": {"action": "accept"}}
    both = own | {"agentauth:k": {"action": "accept"}}
    for sent, passed_on in ((both, own), (own, own), ({"agentauth:k": {}}, None)):
        call = take_call(message(inputResponses=sent), [])
        assert call is not None
        assert json.loads(call.content)["params"].get("inputResponses") == passed_on


@pytest.mark.parametrize(
    ("params", "same"),
    [
        ({"name": "pay", "arguments": {"payee": "ACME"}}, True),
        ({"name": "wipe", "arguments": {"payee": "ACME"}}, False),
        ({"name": "pay", "arguments": {"payee": "Mallory"}}, False),
        ({"name": "pay"}, False),
    ],
)
def test_a_decision_is_for_one_call_alone(params: dict[str, Any], *, same: bool) -> None:
    assert ToolCall("pay", {"payee": "ACME"}, b"").is_of(params) is same
