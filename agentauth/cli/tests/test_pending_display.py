"""A command ends at its own time limit, and reports no other timeout as this one."""

import asyncio
from collections.abc import Awaitable

import pytest

from agentauth.cli.pending_display import await_with_limit
from agentauth.cli.result import TimeLimitError


def run(awaited: Awaitable[None], seconds: float | None) -> None:
    asyncio.run(await_with_limit(awaited, seconds, what="answer", next_step="Try again."))


async def _time_out() -> None:
    raise TimeoutError("the key service")


@pytest.mark.parametrize("seconds", [None, 60])
def test_timeout_inside_the_call_is_not_reported_as_our_limit(seconds: float | None) -> None:
    with pytest.raises(TimeoutError, match="the key service"):
        run(_time_out(), seconds)


def test_passed_limit_says_what_was_missing_and_what_to_do() -> None:
    with pytest.raises(TimeLimitError) as raised:
        run(asyncio.sleep(60), 0.01)
    assert raised.value.description == "No answer within 0.01 s. Try again."
