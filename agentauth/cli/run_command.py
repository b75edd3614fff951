"""Run the coroutine of one command, and print its outcome or error."""

import asyncio
from collections.abc import Coroutine

from agentauth.protocol.errors import AgentAuthError

from .output import show, show_error
from .result import Outcome, code_of


def run_command(command: Coroutine[None, None, Outcome], *, as_json: bool) -> int:
    """Run the command, print its outcome or error, and return the exit code."""
    try:
        outcome = asyncio.run(command)
    except AgentAuthError as error:
        show_error(error, as_json=as_json)
        return code_of(error)
    show(outcome, as_json=as_json)
    return outcome.code
