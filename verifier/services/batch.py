"""Batches of verify requests of one service provider: each is judged and answered by itself."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit.services import Actor
from registry.models import ServiceProvider
from verifier.requests import parse_verify_request
from verifier.services.batch_fairness import FaultCount, Turn
from verifier.verification import VerifierRuntime, record_error, verify

MAX_REQUESTS: Final = 256
_ROUTE: Final = "POST v1/verify/batch"
_MAX_SENTENCE: Final = 600


async def answer_one(
    runtime: VerifierRuntime,
    *,
    service_provider: ServiceProvider,
    request: object,
    actor: Actor,
    now: datetime,
    turn: Turn,
    faults: FaultCount,
) -> Mapping[str, Any]:
    """The result of one request of a batch (docs/protocol.md section 8): one `verify`, one event.

    An invalid request gets its error, one that meets a fault gets `temporarily_unavailable`, and
    the others proceed. `now` is the time of this request. If all were judged by the time the batch
    began, the last one could pass with a proof that the replay cache has already forgotten.
    """
    fault = False
    try:
        faults.check()
        asked = parse_verify_request(request)
        answer = await verify(
            runtime,
            service_provider=service_provider,
            request=asked,
            actor=actor,
            now=now,
            turn=turn,
        )
    except TemporarilyUnavailableError as error:
        fault = True
        return error_body(error)
    except AgentAuthError as error:
        return error_body(await _record_error(runtime, error, service_provider, actor, now, turn))
    finally:
        faults.count_answer(fault=fault)
    return answer.body


async def _record_error(
    runtime: VerifierRuntime,
    error: AgentAuthError,
    service_provider: ServiceProvider,
    actor: Actor,
    now: datetime,
    turn: Turn,
) -> AgentAuthError:
    """Record the error in turn; if the turn does not come, return that error instead."""
    try:
        await turn.enter(to_database=True)
    except TemporarilyUnavailableError as unavailable:
        return unavailable
    try:
        return await record_error(runtime, error, service_provider, actor, now, _ROUTE)
    finally:
        turn.leave()


def error_body(error: AgentAuthError) -> Mapping[str, Any]:
    """The result of a request that got no answer."""
    body = {"error": error.code, "error_description": error.description[:_MAX_SENTENCE]}
    return body | ({"reason": error.reason} if error.reason else {})
