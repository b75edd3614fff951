"""The audit log."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.operations import Answer, Operation
from agentauth.openapi.shapes import integer, string
from agentauth.openapi.story import ASKED_AT, ID, STORY
from audit.api import DEFAULT_LIMIT, MAX_LIMIT

_EVENT: Final[dict[str, Any]] = {
    "id": ID["event"],
    "kind": "registry.agent.registered",
    "at": ASKED_AT,
    "actor": {"kind": "anonymous", "id": ""},
    "outcome": "success",
    "request_id": ID["request"],
    "data": {"jkt": STORY["jkt"], "name": {"commitment": STORY["commitment"]}},
    "agent_id": ID["agent"],
    "salt": STORY["salt"],
    "leaf_index": 41,
    "openings": {"name": STORY["opening"]},
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "GET /v1/audit/events": Operation(
        "list_events",
        "Events one may read",
        {200: Answer("", "EventPage", {"results": [_EVENT], "next": "41"})},
        "An agent reads its own; a service provider with the auditor right reads all. Section 9.",
        query={
            "agent": string("Only of this agent.", format="uuid"),
            "kind": string("Only of this kind."),
            "after": string("The cursor of the page before."),
            "limit": integer(f"{DEFAULT_LIMIT} if absent.", 1, MAX_LIMIT),
        },
        errors=["permission_denied"],
    ),
}
