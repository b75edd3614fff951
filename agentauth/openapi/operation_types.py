"""Types that describe an operation, and the refusals and headers many share. See also `paths/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.conf import settings

from agentauth.http_errors import STATUSES
from agentauth.openapi.value_schemas import LEVEL, TILE, Schema
from agentauth.protocol.errors import NotFoundError

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class SuccessResponse:
    """One successful answer. `schema` names a component; without one there is no body."""

    description: str
    schema: str = ""
    example: Any = None
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request. `schema` names a component."""

    schema: str
    example: Any
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Operation:
    """One method at one path. Path parameters and callers come from the URLconf and the view.

    `errors` are the codes beyond those that follow from caller and body. `keyed` operations take
    `Idempotency-Key`. `callers` is for the one view that authenticates by its body.
    """

    name: str
    summary: str
    answers: Mapping[int, SuccessResponse]
    description: str = ""
    query: Mapping[str, Schema] = field(default_factory=dict)
    # Names of the query parameters that must be there.
    required: Sequence[str] = ()
    body: Body | None = None
    errors: Sequence[str] = ()
    keyed: bool = False
    callers: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """When a code is given, and its example sentence; `more` are the members beside it."""

    when: str
    sentence: str
    more: Mapping[str, Any] = field(default_factory=dict)


REFUSALS: Final[Mapping[str, Refusal]] = {
    "invalid_request": Refusal(
        "unreadable body, unknown member or parameter, wrong type, limit exceeded, a query string "
        "on a mutation, an `Accept` without JSON",
        "The cursor is not one that this API returned.",
    ),
    "invalid_manifest": Refusal(
        "the manifest fails section 5", "aud: the manifest is for another registry."
    ),
    "invalid_enrolment_code": Refusal(
        "the code is wrong, used, ended or locked: one answer for all",
        "This enrolment code is wrong, was used or has expired. Ask for a new one.",
    ),
    "invalid_scope": Refusal(
        "the request goes beyond the manifest, or beyond what the service provider allows",
        "The agent's manifest does not cover 'write:calendar'.",
    ),
    "grant_too_large": Refusal(
        "a token of this grant would not fit",
        "The capabilities do not fit into an access token; ask for fewer.",
    ),
    "invalid_grant": Refusal(
        "the grant is unknown, another agent's or not active, or the agent, human or service "
        "provider is not active: one answer for all",
        "You have no active grant with this id.",
    ),
    "invalid_dpop_proof": Refusal(
        "no proof or a bad one",
        "This proof was used before. Make a new one for each call.",
        {"reason": "replayed"},
    ),
    "use_dpop_nonce": Refusal(
        "a nonce is required, or the one sent is not valid; `DPoP-Nonce` has the one to use",
        "The proof's nonce is not valid here, or no longer valid.",
    ),
    "invalid_client": Refusal(
        "a valid proof by a key that belongs to no agent or to a revoked one, or that is barred; "
        "a wrong client id or secret",
        "No agent is registered with this key.",
    ),
    "agent_inactive": Refusal(
        "the agent's state does not allow the act",
        "This agent is suspended and may not ask for grants.",
    ),
    "permission_denied": Refusal(
        "this kind of caller may not use the endpoint", "You are not allowed to do this."
    ),
    "not_found": Refusal(
        "the id is unknown or another owner's: one answer for both", NotFoundError().description
    ),
    "not_yet_logged": Refusal(
        "the event has no number yet, or no checkpoint covers it yet; `Retry-After` says when "
        "to ask again",
        "This event has no number yet.",
        {"retry_after": 1},
    ),
    "not_acceptable": Refusal(
        "`Accept` does not allow application/json",
        "This API answers in application/json, which the Accept header must allow.",
    ),
    "request_too_large": Refusal(
        "more than 65,536 bytes (1 MiB for a batch)",
        "The body is larger than 64 kB (1 MB for a batch).",
    ),
    "unsupported_media_type": Refusal(
        "another Content-Type, or a charset other than UTF-8",
        "Send JSON as application/json in UTF-8, or a form to /v1/revoke and /v1/introspect.",
    ),
    "invalid_state": Refusal(
        "the state does not allow the act", "Only a pending request can be withdrawn."
    ),
    "manifest_conflict": Refusal(
        "the key is registered with another manifest",
        "This key is registered with another manifest. Renew that one instead.",
    ),
    "key_in_use": Refusal(
        "the code belongs to another human than the agent does",
        "This key belongs to another agent. Make a new one.",
    ),
    "idempotency_mismatch": Refusal(
        "the key was used with another body, or for another action",
        "This Idempotency-Key was used with another request body.",
    ),
    "idempotency_in_progress": Refusal(
        "a call with this key is still running",
        "The first call with this Idempotency-Key is still running. Ask again in a moment.",
    ),
    "idempotency_expired": Refusal(
        "the token of the first call ended or was revoked",
        "The token of that call has ended. Ask with a new Idempotency-Key.",
    ),
    "too_many_pending_grants": Refusal(
        "at most 5 requests may wait per agent, 20 per human and 1 for an unclaimed agent",
        "Too many requests of this agent are waiting for a decision. Withdraw one or wait.",
        {"retry_after": 1800},
    ),
    "cooldown_active": Refusal(
        "a human denied a request of this agent here: wait 1 h, then 4 h, then 24 h",
        "A human denied a recent request here. Ask again in `retry_after` seconds.",
        {"retry_after": 3600},
    ),
    "slow_down": Refusal(
        "a waiting grant was polled sooner than `interval` after the last poll",
        "Ask at most every 7 seconds.",
        {"interval": 7, "retry_after": 7},
    ),
    "rate_limited": Refusal(
        "too many calls by this caller, or from this address",
        "Too many calls. Wait, then call less often.",
        {"retry_after": 3},
    ),
    "temporarily_unavailable": Refusal(
        "a dependency is down; the act may or may not have been done",
        "The service cannot answer right now. Try again shortly.",
    ),
}

# Codes that every endpoint for this kind of caller may give.
BY_CALLER: Final[Mapping[str, Sequence[str]]] = {
    "proof": ("invalid_dpop_proof", "use_dpop_nonce", "invalid_client"),
    "basic": ("invalid_client",),
    "session": (),
}
BY_BODY: Final = ("unsupported_media_type",)
# Only where `Accept` is read: answers in text or bytes have one form.
BY_ACCEPT: Final = ("not_acceptable",)
BY_KEY: Final = ("idempotency_mismatch", "idempotency_in_progress")
ALWAYS: Final = ("invalid_request", "request_too_large", "rate_limited", "temporarily_unavailable")

CALLERS: Final[Mapping[str, Schema]] = {
    "proof": {
        "type": "apiKey",
        "in": "header",
        "name": "DPoP",
        "description": (
            "A proof signed with the agent's key, new for each request: a JWS with `typ: "
            "dpop+jwt` over the method, the URL, the time and, if there is a body, its SHA-256 "
            "(`bh`). See docs/protocol.md section 2."
        ),
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "Client id and secret of a service provider.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": settings.SESSION_COOKIE_NAME,
        "description": "A human who signed in with a passkey; for reading only.",
    },
}

_SEGMENT: Final = "[A-Za-z0-9._~-]+"
_TILE: Final = (
    "The tile's number in groups of three digits, all but the last prefixed with `x`: 1234067 is "
    "`x001/x234/067`. A partial tile has `.p/` and its width appended. The slashes are not "
    "escaped."
)
# Description, example and pattern.
PATH_PARAMETERS: Final[Mapping[str, tuple[str, str, str]]] = {
    "grant_id": ("A grant's id.", "01a3185c-5000-76a7-9877-3671d8a6d7e4", _SEGMENT),
    "confirmation_id": ("A confirmation's id.", "01a3185c-5000-7a0e-a1f2-0f8e0a6f2b11", _SEGMENT),
    "reference": ("A service provider's id or slug.", "acme", _SEGMENT),
    "level": (
        "A level of tiles: 0 are the leaves, 1 the roots of full tiles of level 0, and so on.",
        "0",
        LEVEL,
    ),
    "tile": (_TILE, "000.p/44", TILE),
}

HEADERS: Final[Mapping[str, Schema]] = {
    "X-Request-Id": {
        "description": "The id of this request; every answer has one.",
        "schema": {"type": "string", "format": "uuid"},
    },
    "Cache-Control": {
        "description": "`no-store`, except for what is public.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait. A 404 has it only if the error is `not_yet_logged`.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "DPoP-Nonce": {
        "description": "The nonce the next proof should carry, if there is one (section 2).",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate, and what was wrong.",
        "schema": {"type": "string"},
    },
}


def see_section(number: int) -> str:
    """A sentence that refers to the contract."""
    return f"See docs/protocol.md section {number}."


def status_of(code: str, proof_error_status: int) -> int:
    """The HTTP status of a code; a bad proof's differs where no caller is registered yet."""
    if code in {"invalid_dpop_proof", "use_dpop_nonce"}:
        return proof_error_status
    return STATUSES[code]
