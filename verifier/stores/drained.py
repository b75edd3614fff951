"""A decision as the fast verifier leaves it in a stream, read back into the event that `verifier.stores.events` would write."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from agentauth.protocol.errors import EncodingError
from audit import kinds
from audit.models import Event
from audit.services import Entry

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MEMBERS = {
    "id", "at", "rid", "sp", "agent", "human", "grant", "jti", "kind", "error", "reason", "data", "capability",
}  # fmt: skip
_KINDS = {
    "allowed": kinds.DECISION_ALLOWED,
    "rehearsed": kinds.DECISION_REHEARSED,
    "denied": kinds.DECISION_DENIED,
}
# What the base says of itself (allowed, or the verdict reached before it was asked for), or what was found instead.
_AS_IN_BASE = (b"a", b"v")
_FOUND = {b"r": ("invalid_dpop_proof", "replayed"), b"l": ("envelope_exceeded", "rate")}


class UnreadableError(Exception):
    """What stands in the stream is no decision of ours."""


def event_of(base: bytes, outcome: bytes) -> Entry:
    """The event of one entry: `base` is its JSON as the verifier wrote it, `outcome` the letter the script added.

    Raises UnreadableError for anything else, so that what follows it in the stream is not held up.
    """
    try:
        return _event(json.loads(base), outcome)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
        EncodingError,
    ) as error:
        raise UnreadableError(str(error)) from error


def _event(base: dict[str, Any], outcome: bytes) -> Entry:
    if base.keys() != _MEMBERS:
        raise ValueError("not the members of a decision")
    if outcome in _AS_IN_BASE:
        kind, error, reason = _KINDS[base["kind"]], base["error"], base["reason"]
    else:
        kind, (error, reason) = kinds.DECISION_DENIED, _FOUND[outcome]
    data = base["data"]
    denied = kind == kinds.DECISION_DENIED
    if denied:
        if not isinstance(error, str) or not isinstance(reason, str | None):
            raise TypeError("a no without its words")
        data |= {"error": error}
    elif base["capability"] is not None:
        data |= {"capability": base["capability"]}
    if not denied and base["grant"] is None:
        raise ValueError("a yes without a grant")
    if not isinstance(base["at"], int) or not isinstance(data, dict) or "action" not in data:
        raise TypeError("not the values of a decision")
    return Entry(
        id=base["id"],
        kind=kind,
        at=_EPOCH + timedelta(microseconds=base["at"]),
        actor_kind="service_provider",
        actor_id=base["sp"],
        request_id=base["rid"],
        outcome=Event.Outcome.DENIED if denied else Event.Outcome.SUCCESS,
        reason=(reason or error) if denied else None,
        agent_id=base["agent"],
        human_id=base["human"],
        service_provider_id=base["sp"],
        grant_id=base["grant"],
        token_jti=base["jti"],
        data=data,
    )


def debits(event: Entry) -> bool:
    """Whether the event stands for one use of its grant."""
    return event.kind == kinds.DECISION_ALLOWED and bool(event.data["action"])
