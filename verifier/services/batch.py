"""Many questions of one service provider in one call, each judged by itself and answered in its place."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit.services import Actor
from registry.models import ServiceProvider
from verifier.flow import Means, recorded, verify
from verifier.requests import parse_verify_request
from verifier.services.turns import Faults, Turn

MAX_REQUESTS: Final = 256
_ROUTE: Final = "POST v1/verify/batch"
_MAX_SENTENCE: Final = 600


async def answer_one(
    means: Means,
    *,
    service_provider: ServiceProvider,
    request: object,
    actor: Actor,
    now: datetime,
    turn: Turn,
    faults: Faults,
) -> Mapping[str, Any]:
    """What stands in one question's place (docs/protocol.md section 8). Each is one `verify`, with an event of its own.

    A bad one is answered with its error, one hit by a fault with `temporarily_unavailable`, and the others proceed. `now` is
    of this question: judged by the moment the call began, the last of many could pass with a proof whose spending is no
    longer remembered.
    """
    fault = False
    try:
        faults.check()
        asked = parse_verify_request(request)
        answer = await verify(
            means, service_provider=service_provider, request=asked, actor=actor, now=now, turn=turn
        )
    except TemporarilyUnavailableError as error:
        fault = True
        return error_body(error)
    except AgentAuthError as error:
        return error_body(await _recorded(means, error, service_provider, actor, now, turn))
    finally:
        faults.ended(fault=fault)
    return answer.body


async def _recorded(
    means: Means,
    error: AgentAuthError,
    service_provider: ServiceProvider,
    actor: Actor,
    now: datetime,
    turn: Turn,
) -> AgentAuthError:
    """In its turn; where that does not come, that is what the question is told, and the others theirs."""
    try:
        await turn.enter(to_database=True)
    except TemporarilyUnavailableError as unavailable:
        return unavailable
    try:
        return await recorded(means, error, service_provider, actor, now, _ROUTE)
    finally:
        turn.leave()


def error_body(error: AgentAuthError) -> Mapping[str, Any]:
    """What stands in a question's place where there is no answer."""
    body = {"error": error.code, "error_description": error.description[:_MAX_SENTENCE]}
    return body | ({"reason": error.reason} if error.reason else {})
