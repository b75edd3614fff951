"""The JSON-RPC of a tool call over HTTP: read before the check, and what is answered instead.

The strict reader of the protocol reads it, and the server gets what was read: two readers could
otherwise see two calls in one text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from agentauth.protocol.untrusted_text import printable
from agentauth.sdk.errors import RefusedError
from agentauth.sdk.redacted_response import in_each_text
from agentauth.sdk.refusal_responses import answer_for

from .mcp_sdk import (
    CallToolResult,
    ElicitRequest,
    ElicitRequestURLParams,
    InputRequiredResult,
    Receive,
    ServerRequestContext,
    TextContent,
    is_version_at_least,
)
from .outcomes import as_json, shortened, whole
from .url_elicitation import INPUT_REQUIRED_SINCE, takes_links

# The verifier reads at most 65,536 bytes of arguments; other tools' texts may be longer.
MAX_BODY_BYTES: Final = 1_048_576
# In `_meta` of a call: the client's name for the operation, as the header Idempotency-Key.
OPERATION_KEY: Final = "agentauth/idempotency-key"
# Names the answered link in `inputResponses`, and with it the operation.
_LINK: Final = "agentauth:"
_MAX_KEY: Final = 128


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One `tools/call`. `content` is the message for the server, without what is only for us."""

    name: str
    arguments: Mapping[str, Any]
    content: bytes
    operation_key: str | None = None
    answered_link: bool = False
    declined_link: bool = False

    def is_of(self, params: Mapping[str, Any]) -> bool:
        """Are these the parameters that were checked?"""
        return params.get("name") == self.name and (params.get("arguments") or {}) == dict(
            self.arguments
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer instead of the tool's: a sentence and JSON, and the link for a person if any."""

    text: str
    body: Mapping[str, object]
    link: str | None = None
    operation_key: str | None = None

    def result(
        self, context: ServerRequestContext[Any, Any]
    ) -> CallToolResult | InputRequiredResult:
        """As MCP: a link as elicitation if the client takes one in rounds, else as text."""
        if (
            self.link is not None
            and is_version_at_least(context.protocol_version, INPUT_REQUIRED_SINCE)
            and takes_links(context.session.client_capabilities)
        ):
            params = ElicitRequestURLParams(message=printable(self.text), url=self.link)
            return InputRequiredResult(
                input_requests={f"{_LINK}{self.operation_key or ''}": ElicitRequest(params=params)}
            )
        body: Any = in_each_text(self.body, whole)
        text = f"{printable(whole(self.text))}\n{as_json(body)}"
        return CallToolResult(
            content=[TextContent(type="text", text=text)],
            structured_content=body,
            is_error=True,
        )


async def read_body(receive: Receive) -> tuple[bytes, dict[str, object]]:
    """The request's body, and the JSON object it is. Raises InvalidRequestError."""
    content = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise InvalidRequestError("The request ended early.")
        content += message.get("body", b"")
        more = message.get("more_body", False)
        if len(content) > MAX_BODY_BYTES:
            raise InvalidRequestError(f"The body must be at most {MAX_BODY_BYTES:,} bytes.")
    return bytes(content), read_object(bytes(content), max_bytes=MAX_BODY_BYTES)


def take_call(body: dict[str, object], headers: Sequence[tuple[bytes, bytes]]) -> ToolCall | None:
    """The tool call in `body`; None if it is another message, or none the server can run.

    Raises InvalidRequestError for two different keys of one operation.
    """
    params = body.get("params")
    if body.get("method") != "tools/call" or not isinstance(params, dict):
        return None
    name, arguments = params.get("name"), params.get("arguments")
    if not isinstance(name, str) or not (arguments is None or isinstance(arguments, dict)):
        return None
    lines = [value for header, value in headers if header.lower() == b"idempotency-key"]
    meta = params.get("_meta")
    keys = {line.decode("latin-1") for line in lines}
    if isinstance(meta, dict) and OPERATION_KEY in meta:
        keys.add(meta[OPERATION_KEY] if isinstance(meta[OPERATION_KEY], str) else "")
    responses = params.get("inputResponses")
    answers = {
        each.removeprefix(_LINK): value
        for each, value in (responses.items() if isinstance(responses, dict) else ())
        if each.startswith(_LINK)
    }
    keys |= {key for key in answers if key}
    key = _one(keys)
    accepted = all(_action(value) == "accept" for value in answers.values())
    sent = dict(params)
    if answers and isinstance(responses, dict):
        rest = {each: value for each, value in responses.items() if not each.startswith(_LINK)}
        sent["inputResponses"] = rest
        if not rest:
            del sent["inputResponses"]
    content = json.dumps({**body, "params": sent}).encode()
    return ToolCall(name, arguments or {}, content, key, bool(answers), not accepted)


def _one(keys: set[str]) -> str | None:
    if not keys:
        return None
    [key, *others] = keys
    if others or not 1 <= len(key) <= _MAX_KEY or "," in key or not key.isascii():
        raise InvalidRequestError(
            "The operation's key must be one text of 1 to 128 plain characters."
        )
    return key


def _action(response: object) -> object:
    return response.get("action") if isinstance(response, dict) else None


def waiting(call: ToolCall, error: RefusedError, key: str | None) -> Answer:
    """The call is parked until a person acts; the same call under the same key resumes it."""
    url = error.fields.get("approval_url")
    body: dict[str, object] = {
        "status": "waiting_for_person",
        "error": error.error,
        "reason": error.reason,
        "confirmation_id": error.fields.get("confirmation_id"),
        "approval_url": url,
        "idempotency_key": key,
    }
    if error.reason == "confirmation_denied":
        return replace(refusal(error, key), link=None)
    link = url if isinstance(url, str) else None
    text = f"Waiting for a person. They must decide at {link or 'the registry'}. Then repeat the "
    text += f"call with the same key: `_meta` {OPERATION_KEY!r}."
    shown = {name: value for name, value in body.items() if value is not None}
    # Once: after the person opened the link, a second one would only repeat it.
    return Answer(text, shown, None if call.answered_link else link, key)


def refusal(error: AgentAuthError, key: str | None) -> Answer:
    """A no that the model can read: the words of the HTTP answer of any service provider."""
    if isinstance(error, InvalidRequestError):
        body: dict[str, object] = {
            "error": "invalid_request",
            "error_description": error.description,
        }
    else:
        body = read_object(answer_for(error).body)
    more = {"idempotency_key": key} if key else {}
    return Answer(shortened(str(body["error_description"])), {"status": "refused", **body, **more})


def link_not_opened(key: str | None) -> Answer:
    """The person declined to open the link."""
    body = {"status": "link_not_opened", **({"idempotency_key": key} if key else {})}
    return Answer("The person did not open the link. Ask them before you try again.", body)
