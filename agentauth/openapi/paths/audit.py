"""The audit log: events for callers who may read them, proofs for everyone."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.operations import Answer, Operation
from agentauth.openapi.shapes import integer, one_of, string
from agentauth.openapi.story import ID, STORY
from audit.api import DEFAULT_LIMIT, MAX_LIMIT

_LOG: Final[dict[str, Any]] = STORY["log"]
_EVENT: Final[dict[str, Any]] = _LOG["event"] | {"openings": {"name": STORY["opening"]}}
_TEXT, _BYTES = "text/plain", "application/octet-stream"
_PROVED: Final = string("The event's id.", format="uuid", examples=[ID["event"]])
_TILE: Final = (
    "What lies within the newest checkpoint, of any width; an address in another form is no "
    "tile either. What a tile of "
    "some width holds never changes. c2sp.org/tlog-tiles."
)
OPERATIONS: Final[Mapping[str, Operation]] = {
    "GET /v1/audit/events": Operation(
        "list_events",
        "Events one may read",
        {200: Answer("", "EventPage", {"results": [_EVENT], "next": str(_EVENT["leaf_index"])})},
        "An agent reads its own; a service provider with the auditor right reads all. Section 9.",
        query={
            "agent": string("Only of this agent.", format="uuid"),
            "human": string("Only of this human.", format="uuid"),
            "kind": string("Only of this kind."),
            "order": one_of(
                ["asc", "desc"],
                "The order of the log if absent; `desc` begins with the newest, and keeps its "
                "own cursors.",
            ),
            "after": string("The cursor of the page before."),
            "limit": integer(f"{DEFAULT_LIMIT} if absent.", 1, MAX_LIMIT),
        },
        errors=["permission_denied"],
    ),
    "GET /v1/audit/checkpoint": Operation(
        "audit_checkpoint",
        "The log's signed checkpoint",
        {
            200: Answer(
                "With the cosignatures of witnesses, if any.",
                "CheckpointNote",
                _LOG["checkpoint"],
                _TEXT,
            )
        },
        "While there is news, a new one at least every 60 s. `Accept` is not looked at.",
        errors=["not_yet_logged"],
    ),
    "GET /v1/audit/proof/inclusion": Operation(
        "audit_inclusion_proof",
        "That an event is in the log",
        {200: Answer("", "InclusionProof", _LOG["inclusion"])},
        "Of RFC 9162 section 2.1.3, in the tree of the newest checkpoint unless `tree_size` "
        "names another.",
        query={
            "event": _PROVED,
            "tree_size": integer("Above the event's number, at most the size of the log.", 1),
        },
        required=["event"],
        errors=["not_found", "not_yet_logged"],
    ),
    "GET /v1/audit/proof/consistency": Operation(
        "audit_consistency_proof",
        "That the log only grew",
        {200: Answer("", "ConsistencyProof", _LOG["consistency"])},
        "Of RFC 9162 section 2.1.4.",
        query={
            "first": integer("The older size.", 1),
            "second": integer("The newer size, at most that of the log.", 1),
        },
        required=["first", "second"],
    ),
    "GET /v1/audit/proof/bundle": Operation(
        "audit_proof_bundle",
        "An event's proof to be kept",
        {200: Answer("c2sp.org/tlog-proof@v1.", "LogProof", _LOG["bundle"], _TEXT)},
        "With the newest checkpoint and its cosignatures: what one needs to check the event "
        "offline, beside the event, "
        "its salt and the log's key. `Accept` is not looked at.",
        query={"event": _PROVED},
        required=["event"],
        errors=["not_found", "not_yet_logged"],
    ),
    "GET /v1/audit/tile/entries/{tile}": Operation(
        "audit_entries",
        "Entries of the log",
        {
            200: Answer(
                "Each after its length in two bytes, big-endian.", "Bytes", media_type=_BYTES
            )
        },
        _TILE,
        errors=["not_found"],
    ),
    "GET /v1/audit/tile/{level}/{tile}": Operation(
        "audit_tile",
        "Hashes of the tree",
        {200: Answer("Hashes of 32 bytes, one after the other.", "Bytes", media_type=_BYTES)},
        _TILE,
        errors=["not_found"],
    ),
}
