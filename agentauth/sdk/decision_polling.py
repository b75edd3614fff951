"""Wait for a person's decision. Nothing is stored: a restarted process continues with the id."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from .agent_lifecycle import AgentLife
from .grant_choice import waits_for_human
from .registry_answers import Confirmation, Grant
from .url_checks import path_segment

POLL_SECONDS: Final = 25
# The registry answers `wait` polls of a confirmation sooner if it holds too many: at least this.
CONFIRMATION_SECONDS: Final = 2

T = TypeVar("T")
Callback = Callable[[T], Awaitable[None] | None]


async def tell(callback: Callback[T] | None, value: T) -> None:
    """Call back, and wait for it if it is a coroutine. Raises what it raises."""
    if callback is not None:
        told = callback(value)
        if inspect.isawaitable(told):
            await told


async def wait_for_grant(
    life: AgentLife,
    grant_id: str,
    *,
    with_link: Callable[[Grant], Awaitable[Grant]],
    on_pending: Callback[Grant] | None,
) -> Grant:
    """Poll until the grant waits for no person; `on_pending` gets each new link or code.

    `with_link` adds the present link and claim code. Raises the registry's refusals.
    """
    path = f"/v1/grants/{path_segment(grant_id)}"
    link: str | None = None
    told: tuple[str | None, str | None] | None = None
    wait = POLL_SECONDS if on_pending is None else 0
    while True:
        asked_at = time.monotonic()
        current = Grant.of(await life.get(path, wait=wait))
        if not waits_for_human(current):
            return current
        if on_pending is not None and (told is None or current.approval_url != link):
            link = current.approval_url
            shown = await with_link(current)
            if (shown.approval_url, shown.claim_code) != told:
                told = (shown.approval_url, shown.claim_code)
                await tell(on_pending, shown)
        # Faster polls get slow_down; for a suspended grant the registry answers polls at once.
        pace = current.interval if current.status == "pending" else POLL_SECONDS
        await asyncio.sleep(max(0.0, pace - (time.monotonic() - asked_at)))
        wait = POLL_SECONDS


async def wait_for_confirmation(
    life: AgentLife, confirmation_id: str, *, on_pending: Callback[Confirmation] | None
) -> Confirmation:
    """Poll until the confirmation is decided or expired. Raises the registry's refusals."""
    path = f"/v1/confirmations/{path_segment(confirmation_id)}"
    told: str | None = ""
    while True:
        asked_at = time.monotonic()
        wait = POLL_SECONDS if told != "" or on_pending is None else 0
        current = Confirmation.of(await life.get(path, wait=wait))
        if current.status != "pending":
            return current
        if current.approval_url != told:
            told = current.approval_url
            await tell(on_pending, current)
        await asyncio.sleep(max(0.0, CONFIRMATION_SECONDS - (time.monotonic() - asked_at)))
