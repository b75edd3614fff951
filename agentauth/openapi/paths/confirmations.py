"""The confirmation of one transaction, as its agent follows it."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.example_values import ASKED_AT, DECIDED_AT, HOUR_LATER, ID, ISSUER, STORY
from agentauth.openapi.operation_types import Operation, SuccessResponse
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
OPERATIONS: Final[Mapping[str, Operation]] = {
    "GET /v1/confirmations": Operation(
        "list_confirmations",
        "The agent's own confirmations, newest first",
        answers={
            200: SuccessResponse("", "ConfirmationPage", {"results": [_CONFIRMATION], "next": None})
        },
        query=PAGE,
    ),
    "GET /v1/confirmations/{confirmation_id}": Operation(
        "follow_confirmation",
        "A confirmation, at once or as soon as it is decided",
        answers={200: SuccessResponse("", "Confirmation", _CONFIRMATION)},
        query={"wait": WAIT},
        errors=["not_found"],
    ),
}
