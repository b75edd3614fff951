"""The audit log: events for callers who may read them, proofs without authentication."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.example_values import ID, STORY
from agentauth.openapi.operation_types import Operation, SuccessResponse, see_section
from agentauth.openapi.value_schemas import integer, one_of, string
from audit.events_api import DEFAULT_LIMIT, MAX_LIMIT

_LOG: Final[dict[str, Any]] = STORY["log"]
_EVENT: Final[dict[str, Any]] = _LOG["event"] | {"openings": {"name": STORY["opening"]}}
_TEXT, _BYTES = "text/plain", "application/octet-stream"
_EVENT_ID: Final = string("The event's id.", format="uuid", examples=[ID["event"]])
_TILE: Final = (
    "A tile exists, with any width from 1 to 256, if the newest checkpoint covers it; otherwise "
    "the answer is 404. The content of a tile of a given width never changes. Format: "
    "c2sp.org/tlog-tiles."
)
OPERATIONS: Final[Mapping[str, Operation]] = {
    "GET /v1/audit/events": Operation(
        "list_events",
        "Events that the caller may read",
        answers={
            200: SuccessResponse(
                "", "EventPage", {"results": [_EVENT], "next": str(_EVENT["leaf_index"])}
            )
        },
        description=(
            "An agent reads its own; a service provider with the auditor right reads all. "
            f"{see_section(9)}"
        ),
        query={
            "agent": string("Only events of this agent.", format="uuid"),
            "human": string("Only events of this human.", format="uuid"),
            "kind": string("Only events of this kind, such as kms.key.published."),
            "order": one_of(
                ["asc", "desc"],
                "Defaults to `asc`: events in the order of the log, then those without a number. "
                "`desc` begins with the newest event and has its own cursors.",
            ),
            "after": string("The `next` of the page before."),
            "limit": integer(f"Defaults to {DEFAULT_LIMIT}.", 1, MAX_LIMIT),
        },
        errors=["permission_denied"],
    ),
    "GET /v1/audit/checkpoint": Operation(
        "audit_checkpoint",
        "The newest signed checkpoint of the log",
        answers={
            200: SuccessResponse(
                "With the cosignatures of witnesses, if any.",
                "CheckpointNote",
                _LOG["checkpoint"],
                _TEXT,
            )
        },
        description=(
            "While new events arrive, there is a new one at least every 60 s. `Accept` is ignored."
        ),
        errors=["not_yet_logged"],
    ),
    "GET /v1/audit/proof/inclusion": Operation(
        "audit_inclusion_proof",
        "Proof that an event is in the log",
        answers={200: SuccessResponse("", "InclusionProof", _LOG["inclusion"])},
        description=(
            "RFC 9162 section 2.1.3, in the tree of the newest checkpoint unless `tree_size` "
            "names another."
        ),
        query={
            "event": _EVENT_ID,
            "tree_size": integer(
                "Greater than the event's number, at most the size of the log.", 1
            ),
        },
        required=["event"],
        errors=["not_found", "not_yet_logged"],
    ),
    "GET /v1/audit/proof/consistency": Operation(
        "audit_consistency_proof",
        "Proof that the log has only grown",
        answers={200: SuccessResponse("", "ConsistencyProof", _LOG["consistency"])},
        description="RFC 9162 section 2.1.4.",
        query={
            "first": integer("The older size, at most `second`.", 1),
            "second": integer("The newer size, at most that of the log.", 1),
        },
        required=["first", "second"],
    ),
    "GET /v1/audit/proof/bundle": Operation(
        "audit_proof_bundle",
        "Proof of an event, for offline use",
        answers={
            200: SuccessResponse("c2sp.org/tlog-proof@v1.", "LogProof", _LOG["bundle"], _TEXT)
        },
        description=(
            "With the newest checkpoint and its cosignatures. Together with the event, its salt "
            "and the log's key, it proves the event offline. `Accept` is ignored."
        ),
        query={"event": _EVENT_ID},
        required=["event"],
        errors=["not_found", "not_yet_logged"],
    ),
    "GET /v1/audit/tile/entries/{tile}": Operation(
        "audit_entries",
        "Entries of the log",
        answers={
            200: SuccessResponse(
                "Each entry follows its length, which is two bytes, big-endian.",
                "Bytes",
                media_type=_BYTES,
            )
        },
        description=_TILE,
        errors=["not_found"],
    ),
    "GET /v1/audit/tile/{level}/{tile}": Operation(
        "audit_tile",
        "Hashes of the tree",
        answers={
            200: SuccessResponse(
                "Hashes of 32 bytes each, concatenated.", "Bytes", media_type=_BYTES
            )
        },
        description=_TILE,
        errors=["not_found"],
    ),
}
