"""What an integration answers: to a refusal, and in the headers of a protected answer.

No framework and no I/O. `agentauth.sdk.refusal_responses` decides status, headers and body of a
refusal.
"""

import logging
from typing import Final

from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.errors import AlreadyProcessedError
from agentauth.sdk.refusal_responses import HttpAnswer, answer_for
from agentauth.sdk.verifier import Allowed

logger = logging.getLogger(__name__)

PRIVATE: Final = "private, no-store"
_UNAVAILABLE: Final = 503


def refusal(error: AgentAuthError) -> HttpAnswer:
    """The answer to the agent.

    A fault on our side is logged with its cause, which the agent does not see.
    """
    answer = answer_for(error)
    if answer.status == _UNAVAILABLE:
        logger.error("a request could not be checked: %s", error)
    return answer


def once(allowed: Allowed, *, handles_repeats: bool) -> Allowed:
    """`allowed`, unless the operation was allowed before and the route does not handle that.

    Raises AlreadyProcessedError.
    """
    if allowed.repeated and not handles_repeats:
        raise AlreadyProcessedError("This operation was allowed before.")
    return allowed


def kept_private(cache_control: str) -> str:
    """The `Cache-Control` of a protected answer whose route stated `cache_control`, or nothing.

    A cache in front would skip the check, so the answer is kept out of shared ones unless the route
    itself says `public`.
    """
    stated = {each.partition("=")[0].strip().lower() for each in cache_control.split(",")}
    if stated == {""}:
        return PRIVATE
    if stated & {"public", "s-maxage", "private"}:
        return cache_control
    return f"{cache_control}, private"
