"""Waiting for a person: the link and its QR code, a spinner, and a time limit."""

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

from agentauth.sdk.addresses import is_loopback
from agentauth.sdk.link_display import link_text, qr_code
from agentauth.sdk.registry_answers import Confirmation, Grant
from agentauth.sdk.stderr_output import encodable, tell

from .output import spinner
from .result import TimeLimitError

T = TypeVar("T")


def show_pending(pending: Grant | Confirmation) -> None:
    """Where the person decides, on stderr, so that stdout has only the answer.

    With a QR code if stderr is a terminal, and if a phone could open the link.
    """
    link = pending.approval_url
    if link and sys.stderr.isatty() and not is_loopback(link):
        drawn = qr_code(link)
        # Escapes of the blocks would show nothing.
        if drawn is not None and encodable(drawn, sys.stderr) == drawn:
            for line in drawn.split("\n"):
                tell(line)
    for line in link_text(pending).split("\n"):
        tell(line)


async def limited(awaited: Awaitable[T], seconds: float | None, *, what: str) -> T:
    """The result of `awaited`, with `what` beside a spinner.

    Raises TimeLimitError after `seconds`; None is no limit.
    """
    try:
        with spinner(f"Waiting for {what} …"):
            async with asyncio.timeout(seconds):
                return await awaited
    except TimeoutError:
        raise TimeLimitError(f"{what.capitalize()} did not come within {seconds:g} s.") from None
