"""Links for a person: as URL-mode elicitation where the client has it, else as text.

A client of MCP 2026-07-28 gets `input_required` and repeats the call with the person's answer; one
of 2025-11-25 gets the request `elicitation/create` during the call. Both answers say only that the
person agreed to open the link: the decision itself is the registry's.
"""

import asyncio
import io
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.untrusted_text import printable
from agentauth.sdk.redacted_response import in_each_text

from .argument_checks import is_key
from .mcp_sdk import (
    CallToolResult,
    ClientCapabilities,
    Context,
    ElicitRequest,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequiredResult,
    MCPError,
    TextContent,
    is_version_at_least,
)
from .outcomes import Outcome, Waiting, as_json, whole

logger = logging.getLogger(__name__)

# Seconds. Clients give up on a call after 60 s unless told otherwise, and then have no answer.
LONGEST_CALL: Final = 54
# Of these, kept for the call itself after a person was waited for.
_KEPT: Final = 10
INPUT_REQUIRED_SINCE: Final = "2026-07-28"
# A call may need access first and a confirmation then. More links in one call are a mistake.
_MAX_LINKS: Final = 3
_KEY: Final = "person"

Result = CallToolResult | InputRequiredResult
# One try of the tool. After another try: its idempotency key, and what it waited for.
Attempt = Callable[[str | None, Waiting | None], Awaitable[Outcome]]
Wait = Callable[[Waiting, float], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Asking:
    """How to bring a link to the person: `wait` waits for the decision, up to `seconds`."""

    wait: Wait
    seconds: float
    qr_code: bool = False

    async def answer(
        self, context: Context[Any, Any], attempt: Attempt, named: str | None = None
    ) -> Result:
        """Run the tool; if a person must act, bring the link and then run it again.

        `named` is the idempotency key in the arguments. There is an answer within `LONGEST_CALL`.
        """
        until = asyncio.get_running_loop().time() + LONGEST_CALL

        async def bounded(key: str | None, waited: Waiting | None) -> Outcome:
            return await outcome_until(until, attempt(key, waited), key or named)

        if not takes_links(context.client_capabilities):
            return self.result(await bounded(None, None))
        if is_version_at_least(context.protocol_version or "", INPUT_REQUIRED_SINCE):
            return await self._in_rounds(context, bounded, until)
        return await self._in_one_call(context, bounded, until)

    async def once(self, attempt: Awaitable[Outcome]) -> CallToolResult:
        """The result of a tool that waits for no link. There is one within `LONGEST_CALL`."""
        until = asyncio.get_running_loop().time() + LONGEST_CALL
        return self.result(await outcome_until(until, attempt, None))

    async def _wait(self, waiting: Waiting, until: float) -> bool:
        left = until - _KEPT - asyncio.get_running_loop().time()
        return await self.wait(waiting, max(0, min(self.seconds, left)))

    async def _in_rounds(
        self, context: Context[Any, Any], attempt: Attempt, until: float
    ) -> Result:
        state = _read_state(context.request_state)
        answer = (context.input_responses or {}).get(_KEY)
        if isinstance(answer, ElicitResult) and state.waiting is not None:
            if answer.action != "accept":
                return self.result(_not_opened(state.waiting, state.key))
            await self._wait(state.waiting, until)
        outcome = await attempt(state.key, state.waiting)
        following = outcome.waiting
        if following is None or following.id in state.seen or len(state.seen) >= _MAX_LINKS:
            return self.result(outcome)
        request = ElicitRequest(
            params=ElicitRequestURLParams(message=following.message, url=following.url)
        )
        return InputRequiredResult(
            input_requests={_KEY: request},
            request_state=_state_text(following, _key_of(outcome), state.seen),
        )

    async def _in_one_call(
        self, context: Context[Any, Any], attempt: Attempt, until: float
    ) -> Result:
        seen: list[str | None] = []
        outcome = await attempt(None, None)
        while (waiting := outcome.waiting) and waiting.id not in seen and len(seen) < _MAX_LINKS:
            seen.append(waiting.id)
            name = secrets.token_urlsafe(16)
            try:
                async with asyncio.timeout_at(until - _KEPT):
                    answer = await context.elicit_url(waiting.message, waiting.url, name)
            except (MCPError, TimeoutError):
                # The client declared links but cannot take one now, or the person takes their time.
                break
            if answer.action != "accept":
                return self.result(_not_opened(waiting, _key_of(outcome)))
            if await self._wait(waiting, until):
                await context.session.send_elicit_complete(name, context.request_id)
            outcome = await attempt(_key_of(outcome), waiting)
        return self.result(outcome)

    def result(self, outcome: Outcome) -> CallToolResult:
        """The outcome as MCP: a sentence and JSON as text, and the JSON as structured content."""
        body: Any = in_each_text({"status": "failed", **outcome.body}, whole)
        text = f"{printable(whole(outcome.text))}\n{as_json(body)}"
        content = [TextContent(type="text", text=text)]
        if self.qr_code and outcome.waiting is not None:
            content.append(TextContent(type="text", text=qr_code(outcome.waiting.url)))
        return CallToolResult(
            content=[*content],
            structured_content=body,
            is_error=outcome.is_error,
        )


async def outcome_until(until: float, attempt: Awaitable[Outcome], key: str | None) -> Outcome:
    """The outcome of `attempt`, with the operation's key whatever happens."""
    try:
        async with asyncio.timeout_at(until):
            outcome = await attempt
    except TimeoutError:
        outcome = _unfinished("There was no answer in time.", "temporarily_unavailable")
    except Exception as error:  # noqa: BLE001 — the client must learn the key
        # Only the class: the message may have what a service sent.
        logger.error("a tool failed: %s", type(error).__name__)  # noqa: TRY400 — as above
        outcome = _unfinished("This server made a mistake.", "server_error")
    shown = {"idempotency_key": key} if key is not None and is_key(key) else {}
    return replace(outcome, body={**shown, **outcome.body})


def _unfinished(why: str, code: str) -> Outcome:
    return Outcome(
        f"{why} It may have been done. Repeat a call that has an idempotency_key with the same "
        "one: it is done once. After another call, call access_status first.",
        {"status": "failed", "error": code},
        is_error=True,
    )


def qr_code(url: str) -> str:
    """`url` as a QR code of block characters. Raises ImportError without the package `segno`."""
    try:
        import segno  # optional, and only for this
    except ImportError:
        raise ImportError("For QR codes, install segno: pip install segno") from None
    drawn = io.StringIO()
    segno.make(url, micro=False).terminal(out=drawn, compact=True)
    return drawn.getvalue()


def takes_links(capabilities: ClientCapabilities | None) -> bool:
    elicitation = capabilities.elicitation if capabilities is not None else None
    return elicitation is not None and elicitation.url is not None


@dataclass(frozen=True, slots=True)
class _State:
    """What the rounds of one call have in common. The SDK seals it and binds it to the call."""

    waiting: Waiting | None = None
    key: str | None = None
    seen: tuple[str | None, ...] = ()


def _state_text(waiting: Waiting, key: str | None, seen: tuple[str | None, ...]) -> str:
    fields = [waiting.kind, waiting.id, waiting.url, waiting.question, waiting.code]
    return json.dumps({"waiting": fields, "key": key, "seen": [*seen, waiting.id]})


def _read_state(text: str | None) -> _State:
    """The state of the round before; empty if there is none."""
    if text is None:
        return _State()
    try:
        body: Any = read_object(text)
        return _State(Waiting(*body["waiting"]), body["key"], tuple(body["seen"]))
    except (AgentAuthError, KeyError, TypeError):
        return _State()


def _key_of(outcome: Outcome) -> str | None:
    key = outcome.body.get("idempotency_key")
    return key if isinstance(key, str) else None


def _not_opened(waiting: Waiting, key: str | None) -> Outcome:
    body: dict[str, object] = {
        "status": "link_not_opened",
        "approval_url": waiting.url,
        **({"idempotency_key": key} if key else {}),
    }
    return Outcome(
        "The person did not open the link. The request stays open until it expires; ask them "
        "before you try again.",
        body,
        is_error=True,
    )
