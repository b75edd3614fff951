"""Verify, and the confirmation of one transaction."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.example_values import ASKED_AT, DECIDED_AT, HOUR_LATER, ID, ISSUER, STORY
from agentauth.openapi.operations import Body, Operation, SuccessResponse
from agentauth.openapi.paths.grants import PAGE, WAIT

_CONFIRMATION: Final[dict[str, Any]] = {
    "confirmation_id": ID["confirmation"],
    "status": "confirmed",
    "grant_id": ID["grant"],
    "grant_version": 1,
    "action": STORY["question"]["action"],
    "idempotency_key": STORY["question"]["idempotency_key"],
    "approval_url": f"{ISSUER}/confirmations/{ID['confirmation']}/",
    "expires_at": HOUR_LATER,
    "decided_at": DECIDED_AT,
    "usable_until": ASKED_AT.replace("08:00:00.250000", "08:13:12.400000"),
}
_BAD: Final = {"error": "invalid_request", "error_description": "body.method: is missing."}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /v1/verify": Operation(
        "verify",
        "May this agent do this, now?",
        {200: SuccessResponse("Allowed, or refused with the reason.", "Decision", STORY["answer"])},
        "200 whether the call is allowed or refused, unless the request itself is invalid. A "
        "refusal names `error` and `reason`, and changes no counter. Section 8 has the order of "
        "the checks, all reasons, and what to answer the agent.",
        body=Body("VerifyRequest", STORY["question"]),
        keyed=True,
    ),
    "POST /v1/verify/batch": Operation(
        "verify_batch",
        "Many questions in one call",
        {
            200: SuccessResponse(
                "In the order of the requests.", "BatchAnswer", {"results": [STORY["answer"], _BAD]}
            )
        },
        "Up to 256 requests, at most 1 MiB. Each is decided on its own; an invalid one gets its "
        "error in its place. In the rate limit, each counts as a call.",
        body=Body("BatchRequest", {"requests": [STORY["question"], {"token": STORY["token"]}]}),
    ),
    "GET /v1/confirmations": Operation(
        "list_confirmations",
        "The agent's own confirmations, newest first",
        {200: SuccessResponse("", "ConfirmationPage", {"results": [_CONFIRMATION], "next": None})},
        query=PAGE,
    ),
    "GET /v1/confirmations/{confirmation_id}": Operation(
        "follow_confirmation",
        "A confirmation, at once or as soon as it is decided",
        {200: SuccessResponse("", "Confirmation", _CONFIRMATION)},
        query={"wait": WAIT},
        errors=["not_found"],
    ),
}
