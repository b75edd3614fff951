"""Many questions of one service provider in one call, each judged by itself and answered in its place."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from django.db import connection

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit import kinds
from audit.services import Actor, record_refusal
from registry.models import ServiceProvider
from verifier.requests import parse_verify_request
from verifier.services.pipeline import verify

MAX_REQUESTS: Final = 256
ROUTE: Final = "POST v1/verify/batch"
# A database that is away answers each question only after its time limit: after so many in a row the rest is not tried.
FAULTS_IN_A_ROW: Final = 3
NOT_TRIED: Final = "This was not tried: the service does not answer right now."
_MAX_SENTENCE: Final = 600


def verify_batch(
    *,
    service_provider: ServiceProvider,
    requests: Sequence[object],
    actor: Actor,
    clock: Callable[[], datetime],
) -> list[Mapping[str, Any]]:
    """Judge every request in order; the answers stand in the same order (docs/protocol.md section 8).

    Each is one `verify`, with a transaction and an event of its own: a bad one is answered with its error, one hit by
    a fault with `temporarily_unavailable`, and the others proceed. `clock` is read for each: judged by the moment
    the call began, the last of many could pass with a proof whose spending is no longer remembered.
    """
    answers: list[Mapping[str, Any]] = []
    faults = 0
    for request in requests:
        if faults == FAULTS_IN_A_ROW:
            answers.append(error_body(TemporarilyUnavailableError(NOT_TRIED)))
            continue
        try:
            answers.append(_answer(service_provider, request, actor, clock()))
            faults = 0
        except TemporarilyUnavailableError as error:
            faults += 1
            # A connection that broke here is not kept for the next one.
            connection.close_if_unusable_or_obsolete()
            answers.append(error_body(error))
    return answers


def _answer(
    service_provider: ServiceProvider, request: object, actor: Actor, now: datetime
) -> Mapping[str, Any]:
    try:
        return verify(
            service_provider=service_provider, request=parse_verify_request(request), actor=actor, now=now
        ).body
    except TemporarilyUnavailableError:
        raise
    except AgentAuthError as error:
        record_unasked(error, service_provider, actor, now, ROUTE)
        return error_body(error)


def record_unasked(
    error: AgentAuthError, service_provider: ServiceProvider, actor: Actor, now: datetime, route: str
) -> None:
    """One event for a call or an item without a decision; `verify` has recorded its own. If that fails, so does the call."""
    if error.recorded:
        return
    record_refusal(
        kind=kinds.REQUEST_REFUSED,
        actor=actor,
        at=now,
        error=error,
        route=route,
        service_provider_id=service_provider.pk,
    )


def error_body(error: AgentAuthError) -> Mapping[str, Any]:
    """What stands in a question's place where there is no answer."""
    body = {"error": error.code, "error_description": error.description[:_MAX_SENTENCE]}
    return body | ({"reason": error.reason} if error.reason else {})
