"""Grants: ask, list, follow, withdraw, revoke, and the receipt of the decision."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.example_values import (
    ASKED_AT,
    DECIDED_AT,
    GRANT_PAGE,
    HOUR_LATER,
    ID,
    PROVIDER,
    STORY,
    VALID_UNTIL,
)
from agentauth.openapi.operation_types import Body, Operation, SuccessResponse, see_section
from agentauth.openapi.value_schemas import integer, string
from registry.api.base_view import DEFAULT_PAGE, MAX_PAGE
from registry.api.long_poll import MAX_WAIT_SECONDS

WAIT: Final = integer(
    "How many seconds to wait for a decision; fewer if the server is busy.", 0, MAX_WAIT_SECONDS
)
PAGE: Final = {
    "after": string("The `next` of the page before."),
    "limit": integer(f"Defaults to {DEFAULT_PAGE}.", 1, MAX_PAGE),
}
_ACCEPTED: Final = {
    "approval_url": GRANT_PAGE,
    "expires_at": HOUR_LATER,
    "grant_id": ID["grant"],
    "interval": 2,
    "status": "pending",
}
_TERMS: Final = {"capabilities": STORY["capabilities"], "envelope": STORY["envelope"]}
GRANT: Final[dict[str, Any]] = {
    "grant_id": ID["grant"],
    "status": "approved",
    "grant_version": 1,
    "service_provider": PROVIDER,
    "requested": _TERMS | {"lifetime_seconds": 2592000},
    "granted": _TERMS,
    "narrowed": [],
    "reason": "To buy the papers you marked.",
    "created_at": ASKED_AT,
    "expires_at": HOUR_LATER,
    "decided_at": DECIDED_AT,
    "deny_reason": None,
    "valid_until": VALID_UNTIL,
}
_RECEIPT: Final = {
    "grant_id": ID["grant"],
    "decision": "approve",
    "decided_at": DECIDED_AT,
    "receipt": STORY["receipt"],
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /v1/grants": Operation(
        "request_grant",
        "Request a grant",
        answers={
            201: SuccessResponse(
                "The request waits for a human, for at most one hour.", "GrantAccepted", _ACCEPTED
            ),
            200: SuccessResponse(
                "An identical request is waiting already: this is it.", "GrantAccepted", _ACCEPTED
            ),
        },
        description=(
            "The request must lie within the manifest and the service provider's allow-list, and "
            f"use one currency. {see_section(6)}"
        ),
        body=Body("GrantRequest", STORY["request"] | {"reason": GRANT["reason"]}),
        errors=[
            "invalid_scope",
            "grant_too_large",
            "agent_inactive",
            "not_found",
            "too_many_pending_grants",
            "cooldown_active",
        ],
        keyed=True,
    ),
    "GET /v1/grants": Operation(
        "list_grants",
        "The agent's own grants, newest first",
        answers={200: SuccessResponse("", "GrantPage", {"results": [GRANT], "next": None})},
        query=PAGE,
    ),
    "GET /v1/grants/{grant_id}": Operation(
        "follow_grant",
        "A grant, at once or as soon as it is decided",
        answers={200: SuccessResponse("", "Grant", GRANT)},
        description="Poll at most every `interval` seconds while it waits.",
        query={"wait": WAIT},
        errors=["not_found", "slow_down"],
    ),
    "POST /v1/grants/{grant_id}/withdraw": Operation(
        "withdraw_grant",
        "Withdraw a request that is waiting",
        answers={204: SuccessResponse("Withdrawn. A repeated call changes nothing.")},
        errors=["not_found", "invalid_state"],
        keyed=True,
    ),
    "POST /v1/grants/{grant_id}/revoke": Operation(
        "revoke_grant",
        "Give a grant back",
        answers={204: SuccessResponse("Revoked. A repeated call changes nothing.")},
        errors=["not_found", "invalid_state"],
        keyed=True,
    ),
    "GET /v1/grants/{grant_id}/receipt": Operation(
        "grant_receipt",
        "What the human signed",
        answers={200: SuccessResponse("", "Receipt", _RECEIPT)},
        description=(
            "For the agent, its human, and a service provider with the auditor right; all others "
            "get 404. `agentauth verify-receipt` checks it without any server."
        ),
        errors=["not_found"],
    ),
}
