"""Verify: one question, or many in one call."""

from collections.abc import Mapping
from typing import Final

from agentauth.openapi.example_values import STORY
from agentauth.openapi.operation_types import Body, Operation, SuccessResponse

_BAD: Final = {"error": "invalid_request", "error_description": "body.method: is missing."}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /v1/verify": Operation(
        "verify",
        "May this agent do this, now?",
        answers={
            200: SuccessResponse(
                "Allowed, or refused with the reason.", "Decision", STORY["answer"]
            )
        },
        description=(
            "200 whether the call is allowed or refused, unless the request itself is invalid. A "
            "refusal names `error` and `reason`, and changes no counter. docs/protocol.md section "
            "8 has the order of the checks, all reasons, and what to answer the agent."
        ),
        body=Body("VerifyRequest", STORY["question"]),
        keyed=True,
    ),
    "POST /v1/verify/batch": Operation(
        "verify_batch",
        "Many questions in one call",
        answers={
            200: SuccessResponse(
                "In the order of the requests.", "BatchAnswer", {"results": [STORY["answer"], _BAD]}
            )
        },
        description=(
            "Up to 256 requests, at most 1 MiB. Each is decided on its own; an invalid one gets "
            "its error in its place. In the rate limit, each counts as a call."
        ),
        body=Body("BatchRequest", {"requests": [STORY["question"], {"token": STORY["token"]}]}),
    ),
}
