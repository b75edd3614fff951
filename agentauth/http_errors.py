"""The one mapping from domain errors to HTTP answers, for API and pages. Records refusals."""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from django.core.exceptions import (
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
    ValidationError,
)
from django.db import InterfaceError, InternalError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase
from django.template.loader import render_to_string
from django.utils import timezone
from psycopg.errors import ReadOnlySqlTransaction
from rest_framework import exceptions as drf
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.client_address import address_of
from agentauth.observability import metrics
from agentauth.protocol.errors import (
    AgentAuthError,
    CsrfFailedError,
    InvalidClientError,
    InvalidProofError,
    InvalidRequestError,
    NotFoundError,
    NotYetLoggedError,
    PermissionDeniedError,
    ProofNonceRequiredError,
    RateLimitedError,
    TemporarilyUnavailableError,
)
from audit import kinds
from audit.log.refusal_counts import Batches
from audit.services import Actor, record_refusal
from registry import caller_limits
from registry.authentication import actor_of
from registry.refusal_recording import method_and_route, record_refused_request
from registry.refusal_translation import refusal_text
from verifier.services import replay_cache_lease

logger = logging.getLogger(__name__)

STATUSES = {
    "invalid_request": 400,
    "invalid_signature": 400,
    "invalid_manifest": 400,
    "invalid_receipt": 400,
    "invalid_log_proof": 400,
    "invalid_note": 400,
    "untrusted_note": 400,
    "invalid_grant": 400,
    "invalid_scope": 400,
    "invalid_enrolment_code": 400,
    "invalid_assertion": 400,
    "grant_too_large": 400,
    "invalid_token": 401,
    "invalid_dpop_proof": 401,
    "use_dpop_nonce": 401,
    "invalid_client": 401,
    "sign_in_required": 401,
    "verification_required": 401,
    "permission_denied": 403,
    "agent_inactive": 403,
    "csrf_failed": 403,
    "confirmation_required": 403,
    "not_found": 404,
    "not_yet_logged": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "invalid_state": 409,
    "manifest_conflict": 409,
    "key_in_use": 409,
    "idempotency_in_progress": 409,
    "idempotency_mismatch": 409,
    "idempotency_expired": 409,
    "grant_changed": 409,
    "expired": 410,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "too_many_pending_grants": 429,
    "cooldown_active": 429,
    "slow_down": 429,
    "rate_limited": 429,
    "server_error": 500,
    "log_contradicted": 500,
    "temporarily_unavailable": 503,
}
DPOP_CHALLENGE = 'DPoP error="{code}", algs="EdDSA Ed25519 ES256"'
DEFAULT_RETRY_SECONDS = 1
# META key: this caller is already counted as a stranger.
COUNTED = "agentauth.counted_stranger"
MAX_BODY_BYTES = 1024
_MAX_SENTENCE_BYTES = 600
# Refusals by rate limits write one event a second per route, caller and process, not one each.
_batches = Batches(seconds=1)


class RequestTooLargeError(AgentAuthError):
    code = "request_too_large"


class MethodNotAllowedError(AgentAuthError):
    code = "method_not_allowed"


class NotAcceptableError(AgentAuthError):
    code = "not_acceptable"


class UnsupportedMediaTypeError(AgentAuthError):
    code = "unsupported_media_type"


class ServerError(AgentAuthError):
    code = "server_error"


def domain_error(error: Exception) -> AgentAuthError:
    """Any exception as one of ours. An unknown one is `server_error`; only the log has details."""
    if isinstance(error, AgentAuthError):
        return error
    if isinstance(error, OperationalError | InterfaceError) or _takes_nothing(error):
        # A lost connection, a lock or a statement timeout: the dependency is down, no caller was
        # refused. Events are in the same database, so none is recorded: operators see only this.
        logger.error("the database did not answer", exc_info=error)
        return TemporarilyUnavailableError()
    for library, ours in _LIBRARY_ERRORS:
        if isinstance(error, library):
            return ours()
    return ServerError("Something went wrong on our side. Quote the request id when you report it.")


def _takes_nothing(error: Exception) -> bool:
    """Whether the database is read-only: a replica before failover, or shut by a full disk."""
    return isinstance(error, InternalError) and isinstance(error.__cause__, ReadOnlySqlTransaction)


# One sentence for both kinds of endpoint: DRF does not say which of them refused.
_MEDIA_TYPE = "Send JSON as application/json in UTF-8, or a form to /v1/revoke and /v1/introspect."
_LIBRARY_ERRORS: list[tuple[type[Exception], Callable[[], AgentAuthError]]] = [
    (Http404, NotFoundError),
    (drf.NotFound, NotFoundError),
    (
        drf.MethodNotAllowed,
        lambda: MethodNotAllowedError("This address does not support that method."),
    ),
    (drf.UnsupportedMediaType, lambda: UnsupportedMediaTypeError(_MEDIA_TYPE)),
    (
        drf.NotAcceptable,
        lambda: NotAcceptableError(
            "This API answers in application/json, which the Accept header must allow."
        ),
    ),
    (drf.NotAuthenticated, lambda: InvalidClientError("Authenticate first.")),
    (drf.AuthenticationFailed, lambda: InvalidClientError("The credentials were not accepted.")),
    (drf.PermissionDenied, lambda: PermissionDeniedError("You are not allowed to do this.")),
    (PermissionDenied, lambda: PermissionDeniedError("You are not allowed to do this.")),
    (
        RequestDataTooBig,
        lambda: RequestTooLargeError("The body is larger than 64 kB (1 MB for a batch)."),
    ),
    (drf.APIException, lambda: InvalidRequestError("The request could not be read.")),
    # A malformed id in a form of the admin site.
    (ValidationError, lambda: InvalidRequestError("The request could not be read.")),
    (SuspiciousOperation, lambda: InvalidRequestError("The request could not be read.")),
]


def record_http_refusal(request: HttpRequest | Request, error: AgentAuthError) -> AgentAuthError:
    """Record the refusal in its own transaction, after the rollback. Returns the answer.

    That is TemporarilyUnavailableError (503) if it cannot be recorded, and RateLimitedError once an
    allowance is used up.
    """
    if isinstance(
        error, TemporarilyUnavailableError | ServerError | MethodNotAllowedError | NotYetLoggedError
    ):
        # No caller was refused, and an event for each poll of the log would make the log longer.
        return error
    error = _charge_refused_credentials(request, error)
    if error.recorded:
        return error
    stands_for = None
    if isinstance(error, RateLimitedError):
        actor = actor_of(request)
        stands_for = _batches.add(
            f"{method_and_route(request)} {actor.kind} {actor.id}", now=time.monotonic()
        )
        if not stands_for:
            return error
    if unavailable := _unrecordable():
        return unavailable
    try:
        record_refused_request(request, error, stands_for=stands_for)
    except TemporarilyUnavailableError as unavailable:
        return unavailable
    return error


def count_stranger(route: str) -> int:
    """Count a stranger's rate-limited call. Returns how many to record now; mostly 0."""
    return _batches.add(f"{route} anonymous ", now=time.monotonic())


def record_strangers(route: str, count: int) -> None:
    """Record `count` strangers' calls refused before Django. Raises TemporarilyUnavailableError."""
    if unavailable := _unrecordable():
        raise unavailable
    record_refusal(
        kind=kinds.REQUEST_REFUSED,
        actor=Actor("anonymous", ""),
        at=timezone.now(),
        error=RateLimitedError(""),
        route=route,
        stands_for=count,
    )


def _unrecordable() -> AgentAuthError | None:
    """Why nothing may be recorded: in a restored database an event would begin a second history."""
    try:
        halt = replay_cache_lease.LEASE.halt()
    except (TemporarilyUnavailableError, OperationalError, InterfaceError) as error:
        return domain_error(error)
    return TemporarilyUnavailableError(halt.told) if halt else None


def _charge_refused_credentials(
    request: HttpRequest | Request, error: AgentAuthError
) -> AgentAuthError:
    """Count refused credentials against their address and all strangers.

    Returns the error to answer: RateLimitedError once an allowance is used up.
    """
    if isinstance(error, RateLimitedError) or getattr(request, "counted", False):
        return error
    if actor_of(request).kind != "anonymous":
        return error
    try:
        if not request.META.get(COUNTED):
            caller_limits.take(caller_limits.STRANGERS, caller_limits.CREDENTIALS)
        caller_limits.take(caller_limits.ADDRESS, address_of(request))
    except RateLimitedError as limited:
        return limited
    return error


def body_of(error: AgentAuthError) -> dict[str, Any]:
    """The JSON body: code, sentence, and the fields named for this error."""
    body: dict[str, Any] = {"error": error.code, "error_description": _short(error.description)}
    if error.reason:
        body["reason"] = error.reason
    body |= error.fields
    # A list may be as long as the request; an error stays below 1 kB.
    for name, value in body.items():
        if isinstance(value, list):
            body[name] = shown = list(value)
            while shown and len(json.dumps(body).encode()) > MAX_BODY_BYTES:
                shown.pop()
    return body


def _short(sentence: str) -> str:
    """As much of it as fits into 600 bytes of JSON, where one letter may take six."""
    while len(json.dumps(sentence)) > _MAX_SENTENCE_BYTES:
        sentence = sentence[: len(sentence) * 9 // 10]
    return sentence


def headers_of(
    error: AgentAuthError, status: int, request: HttpRequest | Request
) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if status in {429, 503} or isinstance(error, NotYetLoggedError):
        headers["Retry-After"] = str(error.fields.get("retry_after", DEFAULT_RETRY_SECONDS))
    if status == STATUSES["invalid_client"]:
        headers["WWW-Authenticate"] = _challenge(error, request)
    return headers


def _challenge(error: AgentAuthError, request: HttpRequest | Request) -> str:
    """The scheme the caller uses: agents send a proof, providers a secret, people a passkey."""
    if isinstance(error, InvalidProofError | ProofNonceRequiredError):
        return DPOP_CHALLENGE.format(code=error.code)
    if isinstance(error, InvalidClientError):
        proved = "DPoP" in request.headers and "Authorization" not in request.headers
        return DPOP_CHALLENGE.format(code=error.code) if proved else 'Basic realm="agentauth"'
    # A page's script called: on `Basic` the browser would open its own password dialog.
    return 'Passkey realm="agentauth"'


def handle_exception(exc: Exception, context: dict[str, Any]) -> Response:
    """DRF's exception handler: turns any exception of an API view into our answer."""
    request, view = context["request"], context["view"]
    error = domain_error(exc)
    if isinstance(error, ServerError):
        logger.error("unhandled error in %s", type(view).__name__, exc_info=exc)
    error = record_http_refusal(request, error)
    metrics.count_error(error)
    status = STATUSES[error.code]
    if isinstance(error, InvalidProofError | ProofNonceRequiredError):
        # At /v1/tokens and POST /v1/agents a bad proof is a bad request (RFC 9449 section 5).
        status = getattr(view, "proof_error_status", status)
    return Response(body_of(error), status=status, headers=headers_of(error, status, request))


def error_response(request: HttpRequest, error: AgentAuthError) -> HttpResponse:
    """Record a refusal outside DRF and answer it: a page for people, JSON for scripts."""
    error = record_http_refusal(request, error)
    metrics.count_error(error)
    # A page's, or its script's: the API answers through `handle_exception`.
    error.description = refusal_text(error)
    status = STATUSES[error.code]
    if "text/html" in request.headers.get("Accept", ""):
        page = {"error": error, "status": status}
        content = render_to_string("error.html", page, request)
        return HttpResponse(content, status=status, headers=headers_of(error, status, request))
    return JsonResponse(body_of(error), status=status, headers=headers_of(error, status, request))


class PageErrorMiddleware:
    """Turns an exception of a page into its answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if isinstance(response, HttpResponseNotAllowed):
            allowed = response["Allow"]
            response = error_response(
                request, MethodNotAllowedError("This page does not support that method.")
            )
            response["Allow"] = allowed
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse:
        error = domain_error(exception)
        if isinstance(error, ServerError):
            match = request.resolver_match
            # The route, never the path: a claim or setup link in it is a secret.
            logger.error("unhandled error in %s", match.route if match else "?", exc_info=exception)
        return error_response(request, error)


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:
    return error_response(
        request, CsrfFailedError("The page is out of date. Reload it and try again.")
    )


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return error_response(request, NotFoundError())


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    # No session and no template context: the request itself (a foreign Host, say) is not trusted.
    error = record_http_refusal(request, InvalidRequestError("The request could not be read."))
    metrics.count_error(error)
    status = STATUSES[error.code]
    return JsonResponse(body_of(error), status=status, headers=headers_of(error, status, request))


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return error_response(request, PermissionDeniedError("You are not allowed to do this."))


def server_error(request: HttpRequest) -> HttpResponse:
    """The last resort for what a middleware raised. Uses no database and no template.

    Middleware reads the session and the signed-in human, so an unavailable database shows here
    first.
    """
    cause = sys.exc_info()[1]
    error = domain_error(cause if isinstance(cause, Exception) else RuntimeError())
    # No path, which may hold a secret; and the route is found only after all middleware.
    logger.error("unhandled error in a middleware", exc_info=cause)
    metrics.count_error(error)
    status = STATUSES[error.code]
    return JsonResponse(body_of(error), status=status, headers=headers_of(error, status, request))
