"""Encodes a decision's event for the Redis stream: its base JSON, the field `b` of the entry.

The script judge.lua adds a letter, the field `o`: `a` or `v` for what the base JSON says, `r` for a
replayed proof, `l` for a call above the rate limit. `verifier.services.decision_stream_drain`
writes it to the log, as the event that `verifier.stores.decision_audit_events` would write.
"""

import uuid
from typing import Any, Final

import orjson

from agentauth.protocol.capability import Capability
from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.usage_counters import microseconds
from audit.new_ids import id_text, new_id_text
from verifier.stores import EarlyRefusal, StoreCall
from verifier.stores.decision_audit_events import arguments_of, decision_data

# The format, in the field `f`, of an entry whose event records arguments. Release 4 reads only
# format 1, without arguments: it would write them into the log in plain text.
WITH_ARGUMENTS: Final = 2


def shared_members(
    call: StoreCall, human_id: uuid.UUID | None, capability: Capability | None
) -> bytes:
    """The JSON members shared by all allowed calls with one token, action and dry_run.

    Without the braces.
    """
    body = _common(call, call.claims.agent_id, human_id)
    body["kind"] = "rehearsed" if call.dry_run else "allowed"
    body["capability"] = None if capability is None else capability.label
    return orjson.dumps(body)[1:-1]


def no_entry(
    call: StoreCall | EarlyRefusal, refuse: Refuse, human_id: uuid.UUID | None
) -> tuple[str, bytes]:
    """The id and base JSON of a refusal.

    Without `human_id`, `decision_stream_drain` looks up the agent's owner.
    """
    agent_id = None if call.claims is None else call.claims.agent_id
    body = _common(call, agent_id, human_id)
    body |= {"kind": "denied", "error": refuse.error, "reason": refuse.reason or refuse.error}
    return encode_entry(call, orjson.dumps(body)[1:-1])


def format_fields(call: StoreCall | EarlyRefusal) -> tuple[bytes | int, ...]:
    """The name and value of the field `f`; none for format 1."""
    return (b"f", WITH_ARGUMENTS) if arguments_of(call) else ()


def _common(
    call: StoreCall | EarlyRefusal, agent_id: str | None, human_id: uuid.UUID | None
) -> dict[str, Any]:
    claims = call.claims
    return {
        "sp": id_text(call.service_provider_id),
        "agent": agent_id,
        "human": None if human_id is None else id_text(human_id),
        "grant": None if claims is None else claims.grant_id,
        "jti": None if claims is None else claims.jti,
        "kind": "",
        "error": None,
        "reason": None,
        "data": decision_data(call),
        "capability": None,
    }


def encode_entry(call: StoreCall | EarlyRefusal, members: bytes) -> tuple[str, bytes]:
    """The event's id, and its base JSON with these members.

    If the script refuses an allowed call, its letter alone makes the event a refusal.
    """
    event_id = new_id_text()
    request_id = orjson.dumps(call.actor.request_id)
    return event_id, b'{"id":"%b","at":%d,"rid":%b,%b}' % (
        event_id.encode(),
        microseconds(call.now),
        request_id,
        members,
    )
