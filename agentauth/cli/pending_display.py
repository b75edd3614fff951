"""Shows that a person must decide: the link and its QR code, a spinner, and a time limit."""

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

from agentauth.sdk.link_display import link_text, qr_code
from agentauth.sdk.registry_answers import Confirmation, Grant
from agentauth.sdk.stderr_output import encodable, print_stderr
from agentauth.sdk.url_checks import is_loopback

from .output import spinner
from .result import TimeLimitError

T = TypeVar("T")


def show_pending(pending: Grant | Confirmation) -> None:
    """Print the approval link to stderr; stdout carries only the result.

    Adds a QR code on a terminal, unless the link is a loopback address.
    """
    link = pending.approval_url
    if link and sys.stderr.isatty() and not is_loopback(link):
        drawn = qr_code(link)
        # If stderr cannot encode the block characters, the code is unreadable: omit it.
        if drawn is not None and encodable(drawn, sys.stderr) == drawn:
            for line in drawn.split("\n"):
                print_stderr(line)
    for line in link_text(pending).split("\n"):
        print_stderr(line)


async def await_with_limit(
    awaited: Awaitable[T], seconds: float | None, *, what: str, next_step: str
) -> T:
    """The result of `awaited`, with a spinner that names `what`.

    Raises TimeLimitError, which says the `next_step`, after `seconds`; None is no limit. A
    TimeoutError of `awaited` itself passes through.
    """
    try:
        with spinner(f"Waiting for the {what} …"):
            async with asyncio.timeout(seconds) as limit:
                return await awaited
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeLimitError(f"No {what} within {seconds:g} s. {next_step}") from None
