"""An event as its JSON and its bytes: the one form the sequencer, verify_audit and the API share."""

import uuid
from datetime import datetime
from typing import Any, Protocol

from agentauth.protocol.chain import entry_hash, field_commitment
from agentauth.protocol.encoding import timestamp

_OPTIONAL_IDS = ("agent_id", "human_id", "service_provider_id", "grant_id")
COLUMNS = (
    "id", "kind", "at", "actor_kind", "actor_id", *_OPTIONAL_IDS, "token_jti", "outcome", "reason", "request_id", "data", "salt",
)  # fmt: skip


class Columns(Protocol):
    """An event's columns: an `audit.models.Event`, or the row of a query for COLUMNS, which costs a tenth."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def kind(self) -> str: ...
    @property
    def at(self) -> datetime: ...
    @property
    def actor_kind(self) -> str: ...
    @property
    def actor_id(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def data(self) -> Any: ...
    @property
    def salt(self) -> Any: ...


def event_body(event: Columns) -> dict[str, Any]:
    """The event's JSON, exactly as docs/protocol.md section 9 names it: absent members are left out."""
    body: dict[str, Any] = {
        "id": str(event.id),
        "kind": event.kind,
        "at": timestamp(event.at),
        "actor": {"kind": event.actor_kind, "id": event.actor_id},
        "outcome": event.outcome,
        "request_id": event.request_id,
        "data": event.data,
    }
    for name in _OPTIONAL_IDS:
        if (value := getattr(event, name)) is not None:
            body[name] = str(value)
    for name in ("token_jti", "reason"):
        if (value := getattr(event, name)) is not None:
            body[name] = value
    return body


def entry_of(event: Columns) -> bytes:
    """The 32-byte entry of the log: the salted hash of the event's canonical JSON."""
    return entry_hash(event_body(event), bytes(event.salt))


def commitment(value: Any, salt: bytes) -> dict[str, str]:
    """What stands in an event's data in place of the personal `value`; `salt` is 32 random bytes."""
    return {"commitment": field_commitment(value, salt)}
