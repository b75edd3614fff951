"""Waiting for a person: the link and its QR code, a spinner, and a time limit."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from agentauth.sdk.answers import Grant
from agentauth.sdk.client import AgentAuthClient
from agentauth.sdk.terminal import tell

from .output import show_code, spinner
from .result import TimeLimitError

T = TypeVar("T")


async def wait_for_decision(client: AgentAuthClient, grant: Grant, seconds: float | None) -> Grant:
    """Show the link and wait until a person has decided. Raises TimeLimitError after `seconds`."""
    code = f" Claim code: {grant.claim_code}." if grant.claim_code else ""
    # On stderr, so that stdout has only the answer.
    show_link(f"Open {grant.approval_url} to decide.{code} Waiting …", grant.approval_url)
    return await limited(client.wait_for_decision(grant), seconds, "decide about the grant")


def show_link(line: str, address: str | None) -> None:
    """One line on stderr, and a QR code of the address if stderr is a terminal."""
    tell(line)
    if address:
        show_code(address)


async def limited(awaited: Awaitable[T], seconds: float | None, what: str) -> T:
    """The result of `awaited`. Raises TimeLimitError after `seconds`; None is no limit."""
    try:
        with spinner(f"Waiting for the person to {what} …"):
            async with asyncio.timeout(seconds):
                return await awaited
    except TimeoutError:
        raise TimeLimitError(
            f"The person did not decide within {seconds:g} s. The request stays open: wait again."
        ) from None
