"""JSON Schemas of verify, introspection and confirmations: requests and responses."""

from collections.abc import Mapping, Sequence
from typing import Final

from agentauth.openapi.value_schemas import (
    SECONDS,
    URL,
    Schema,
    array,
    integer,
    newest_first,
    nullable,
    one_of,
    record,
    ref,
    string,
)
from agentauth.protocol.hours_and_periods import PERIODS
from verifier.models import Confirmation
from verifier.requests import MAX_KEY
from verifier.services.batch import MAX_REQUESTS

_VIOLATION: Final = record(
    "A limit that the action exceeds.",
    {"argument": string(), "operator": string()},
    {"limit": {"anyOf": [ref("Scalar"), array(ref("Scalar")), ref("Money")]}},
)
NONCE: Final = string(
    "The nonce that the agent's next proof must carry: pass it on as `DPoP-Nonce`."
)
_LEFT: Final = record("", {"currency": string(), "period": one_of(PERIODS), "remaining": string()})
# The errors of verify in the order of its checks, with their reasons; some have none.
REASONS: Final[Mapping[str, Sequence[str]]] = {
    "invalid_token": (
        "malformed", "unknown", "expired", "not_yet_valid", "revoked", "grant_inactive",
        "agent_inactive", "human_inactive", "binding",
    ),
    "invalid_dpop_proof": ("malformed", "signature", "method", "url", "iat", "ath", "replayed"),
    "use_dpop_nonce": (),
    "insufficient_scope": ("no_capability", "constraint"),
    "outside_time_window": (),
    "step_up_required": ("human_offline", "confirm_above", "confirmation_denied"),
    "envelope_exceeded": ("rate", "budget", "max_uses"),
}  # fmt: skip
# Errors that may stand in the place of a decision in a batch's answer.
IN_PLACE: Final = ("invalid_request", "idempotency_mismatch", "temporarily_unavailable")


def _reasoned() -> list[Schema]:
    """Schemas that tie each error to its reasons."""
    return [
        {
            "properties": {"error": {"const": error}, "reason": one_of(reasons)},
            "required": ["reason"],
        }
        if reasons
        else {"properties": {"error": {"const": error}, "reason": False}}
        for error, reasons in REASONS.items()
    ]


_ERROR_IN_PLACE: Final = {"allOf": [ref("Error"), {"properties": {"error": one_of(IN_PLACE)}}]}
VERIFY: Final[Mapping[str, Schema]] = {
    "VerifyRequest": record(
        "One call an agent made, as the service provider received it (section 8).",
        {
            "token": string("As the agent sent it.", maxLength=65_536),
            "method": string("The method of the request.", minLength=1, maxLength=32),
            "url": string(
                "The URL of the request, built with the service provider's own configured origin.",
                maxLength=65_536,
            ),
        },
        {
            "proof": nullable(string("", maxLength=65_536))
            | {"description": "As the agent sent it. Without it, the call is refused."},
            "action": ref("Action") | {"description": "Without it, nothing is counted."},
            "idempotency_key": string(
                "The agent's name for its operation; required for a `transact`.",
                minLength=1,
                maxLength=MAX_KEY,
            ),
            "dry_run": {
                "type": "boolean",
                "description": "If true, verify decides but consumes nothing.",
            },
        },
        closed=True,
    ),
    "Allowed": record(
        "Allowed. `capability` is present if the call named an action, `repeated` if the "
        "operation was allowed before.",
        {
            "valid": {"const": True},
            "decision_id": ref("Id"),
            "agent": record("", {"id": ref("Id"), "name": string(), "model_origin": string()}),
            "subject": string(
                "The human's identifier, which is different at each service provider."
            ),
            "grant_id": ref("Id"),
            "scope": string(),
            "limits": record(
                "What remains; null if there is no such limit.",
                {
                    "rate_remaining": nullable(integer("", 0)),
                    "budgets": array(_LEFT),
                    "uses_remaining": nullable(integer("", 0)),
                },
            ),
            "expires_in": SECONDS,
        },
        {"capability": ref("Capability"), "repeated": {"const": True}, "nonce": NONCE},
    ),
    "Refused": record(
        "Refused; less than 1 kB. The table of errors and reasons is in section 8.",
        {"valid": {"const": False}, "error": one_of(list(REASONS)), "error_description": string()},
        {
            "reason": string("A stable code that is more specific than `error`."),
            "retry_after": integer("Seconds to wait, if waiting helps.", 1),
            "violations": array(_VIOLATION),
            "approval_url": URL,
            "confirmation_id": ref("Id"),
            "nonce": NONCE,
        },
    )
    | {"allOf": [{"oneOf": _reasoned()}]},
    "Decision": {"description": "The answer of verify.", "oneOf": [ref("Allowed"), ref("Refused")]},
    "BatchRequest": record(
        "Each request is decided on its own, in order. An invalid one gets its error in its place.",
        {"requests": array({}, "Each a `VerifyRequest`.", minimum=1, maximum=MAX_REQUESTS)},
        closed=True,
    ),
    "BatchAnswer": record(
        "In the order of the requests: a decision or an error for each.",
        {"results": array({"anyOf": [ref("Allowed"), ref("Refused"), _ERROR_IN_PLACE]})},
    ),
    "ConfirmationPage": newest_first("Confirmation"),
    "Confirmation": record(
        "A human's decision on one transaction.",
        {
            "confirmation_id": ref("Id"),
            "status": one_of(Confirmation.Status.values),
            "grant_id": ref("Id"),
            "grant_version": integer("", 1),
            "action": ref("Action"),
            "idempotency_key": string(),
            "approval_url": URL,
            "expires_at": ref("Time"),
            "decided_at": nullable(ref("Time")),
            "usable_until": nullable(ref("Time")),
        },
    ),
}
