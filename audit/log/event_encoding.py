"""An event's JSON and canonical bytes, shared by the sequencer, verify_audit and the API."""

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentauth.protocol.encoding import b64u_encode, canonical_json, timestamp
from agentauth.protocol.errors import AgentAuthError, EncodingError
from agentauth.protocol.log_hashes import entry_hash, field_commitment

if TYPE_CHECKING:
    from audit.models import Event, Opening

# The columns of the event table, with their PostgreSQL types.
COLUMN_TYPES: Final = {
    "id": "uuid", "kind": "text", "at": "timestamptz", "actor_kind": "text", "actor_id": "text",
    "agent_id": "uuid",
    "human_id": "uuid", "service_provider_id": "uuid", "grant_id": "uuid", "token_jti": "text",
    "outcome": "text",
    "reason": "text", "request_id": "text", "data": "jsonb", "salt": "bytea",
}  # fmt: skip
COLUMNS = tuple(COLUMN_TYPES)

# The longest archive line, with its line feed. A typical event is a few kilobytes.
MAX_LINE_BYTES: Final = 1024 * 1024
# Leaves 4,096 bytes for the other columns, which have at most 64 characters each.
MAX_DATA_BYTES: Final = MAX_LINE_BYTES - 4_096


class EventFields(Protocol):
    """An event's columns without its salt: an Event, a row of COLUMNS, or an unwritten event."""

    @property
    def id(self) -> uuid.UUID | str: ...
    @property
    def kind(self) -> str: ...
    @property
    def at(self) -> datetime: ...
    @property
    def actor_kind(self) -> str: ...
    @property
    def actor_id(self) -> str: ...
    @property
    def agent_id(self) -> uuid.UUID | str | None: ...
    @property
    def human_id(self) -> uuid.UUID | str | None: ...
    @property
    def service_provider_id(self) -> uuid.UUID | str | None: ...
    @property
    def grant_id(self) -> uuid.UUID | str | None: ...
    @property
    def token_jti(self) -> str | None: ...
    @property
    def outcome(self) -> str: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def request_id(self) -> str: ...
    @property
    def data(self) -> Any: ...


class Columns(EventFields, Protocol):
    """With its salt: an `audit.models.Event`, or a row of COLUMNS, which costs a tenth of that."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def salt(self) -> Any: ...


def event_body(event: EventFields) -> dict[str, Any]:
    """The event's JSON (docs/protocol.md section 9); members without a value are left out."""
    body: dict[str, Any] = {
        "id": str(event.id),
        "kind": event.kind,
        "at": timestamp(event.at),
        "actor": {"kind": event.actor_kind, "id": event.actor_id},
        "outcome": event.outcome,
        "request_id": event.request_id,
        "data": event.data,
    }
    if event.agent_id is not None:
        body["agent_id"] = str(event.agent_id)
    if event.human_id is not None:
        body["human_id"] = str(event.human_id)
    if event.service_provider_id is not None:
        body["service_provider_id"] = str(event.service_provider_id)
    if event.grant_id is not None:
        body["grant_id"] = str(event.grant_id)
    if event.token_jti is not None:
        body["token_jti"] = event.token_jti
    if event.reason is not None:
        body["reason"] = event.reason
    return body


def data_text(data: Any) -> bytes:
    """The canonical JSON of an event's data.

    Raises EncodingError if it cannot be hashed, or if its archive line would be too long to read.
    """
    text = canonical_json(data)
    if len(text) > MAX_DATA_BYTES:
        raise EncodingError(
            f"The data of an event has {len(text)} bytes: at most {MAX_DATA_BYTES} can be archived."
        )
    return text


def event_with_openings(event: "Event", leaf_index: int | None) -> dict[str, Any]:
    """The event for the API and exports, with its salt, leaf index and remaining openings.

    An opening that does not match its commitment was changed, and is left out.
    """
    openings = {
        opening.member: {"salt": b64u_encode(bytes(opening.salt)), "value": opening.value}
        for opening in event.openings.all()
        if is_committed(event, opening)
    }
    return event_body(event) | {
        "salt": b64u_encode(bytes(event.salt)),
        "leaf_index": leaf_index,
        "openings": openings,
    }


def entry_of(event: Columns) -> bytes:
    """The 32-byte log entry: the salted hash of the event's canonical JSON."""
    return entry_hash(event_body(event), bytes(event.salt))


def is_committed(event: "Event", opening: "Opening") -> bool:
    """Whether the opening matches the event's commitment."""
    try:
        made = commitment(opening.value, bytes(opening.salt))
    except AgentAuthError:
        # The stored salt or value is invalid.
        return False
    return bool(event.data.get(opening.member) == made)


def commitment(value: Any, salt: bytes) -> dict[str, str]:
    """What an event's data holds instead of the personal `value`; `salt` is 32 random bytes."""
    return {"commitment": field_commitment(value, salt)}
