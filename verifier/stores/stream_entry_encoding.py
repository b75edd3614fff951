"""A decision's event on its way through Redis: base JSON, and the letter that the script adds.

`verifier.services.outbox_drain` moves it to the log, the same event as
`verifier.stores.decision_audit_events` would write.
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

# The format of an entry whose action has arguments, in its field `f`. Release 4 reads only format
# 1, in which no action has any: it would write them into the log in plain text.
WITH_ARGUMENTS: Final = 2


def yes_frame(call: StoreCall, human_id: uuid.UUID | None, capability: Capability | None) -> bytes:
    """The JSON members that all yeses to one token and action share."""
    body = _common(call, call.claims.agent_id, human_id)
    body["kind"] = "rehearsed" if call.dry_run else "allowed"
    body["capability"] = None if capability is None else capability.label
    return orjson.dumps(body)[1:-1]


def yes_entry(call: StoreCall, frame: bytes) -> tuple[str, bytes]:
    """The event of a yes, and its id.

    If the script refuses, its letter alone turns it into a refusal.
    """
    return _entry(call, frame)


def no_entry(
    call: StoreCall | EarlyRefusal, refuse: Refuse, human_id: uuid.UUID | None
) -> tuple[str, bytes]:
    """The event of a refusal. Without `human_id` the drainer looks up the agent's owner."""
    agent_id = None if call.claims is None else call.claims.agent_id
    body = _common(call, agent_id, human_id)
    body |= {"kind": "denied", "error": refuse.error, "reason": refuse.reason or refuse.error}
    return _entry(call, orjson.dumps(body)[1:-1])


def format_fields(call: StoreCall | EarlyRefusal) -> tuple[bytes | int, ...]:
    """The field of the entry that names its format, if that is not 1."""
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


def _entry(call: StoreCall | EarlyRefusal, frame: bytes) -> tuple[str, bytes]:
    own = new_id_text()
    request_id = orjson.dumps(call.actor.request_id)
    return own, b'{"id":"%b","at":%d,"rid":%b,%b}' % (
        own.encode(),
        microseconds(call.now),
        request_id,
        frame,
    )
