"""Reads a stream entry back into the event that `verifier.stores.decision_audit_events` would
write.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any

import orjson

from agentauth.protocol.errors import EncodingError
from audit import kinds
from audit.models import Event
from audit.services import CommitmentTemplate, Data, NewEvent, OpeningValue, check_data
from verifier.stores.decision_audit_events import ARGUMENTS, split

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MEMBERS = (
    "id", "at", "rid", "sp", "agent", "human", "grant", "jti", "kind", "error", "reason", "data",
    "capability",
)  # fmt: skip
_read = itemgetter(*_MEMBERS)
_KINDS = {
    "allowed": kinds.DECISION_ALLOWED,
    "rehearsed": kinds.DECISION_REHEARSED,
    "denied": kinds.DECISION_DENIED,
}
# `a`, `v`: as the base says. Other letters: what the script found instead.
_AS_IN_BASE = (b"a", b"v")
_FOUND = {b"r": ("invalid_dpop_proof", "replayed"), b"l": ("envelope_exceeded", "rate")}


class UnreadableError(Exception):
    """The stream entry is not a decision of this registry."""


def event_of(base: bytes, outcome: bytes) -> NewEvent:
    """The event of one entry: `base` is the verifier's JSON, `outcome` the letter the script added.

    Raises UnreadableError for anything else, so that one bad entry does not stop the stream.
    """
    try:
        return _event(orjson.loads(base), outcome)
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


def _event(base: dict[str, Any], outcome: bytes) -> NewEvent:
    (
        own,
        at,
        request_id,
        provider,
        agent,
        human,
        grant,
        jti,
        kind,
        error,
        reason,
        data,
        capability,
    ) = _read(base)
    if len(base) != len(_MEMBERS):
        raise ValueError("not the members of a decision")
    if outcome in _AS_IN_BASE:
        kind = _KINDS[kind]
    else:
        kind, (error, reason) = kinds.DECISION_DENIED, _FOUND[outcome]
    denied = kind == kinds.DECISION_DENIED
    if denied:
        if not isinstance(error, str) or not isinstance(reason, str | None):
            raise TypeError("a refusal without its error and reason")
        data |= {"error": error}
        capability = None
    if not denied and grant is None:
        raise ValueError("an allowed decision without a grant")
    if not isinstance(capability, str | None):
        raise TypeError("the name of a capability must be a text")
    if not isinstance(at, int) or not isinstance(data, dict) or "action" not in data:
        raise TypeError("not the values of a decision")
    made, hidden = _seal_data(data, capability, kept=agent is not None)
    return NewEvent(
        id=own,
        kind=kind,
        at=_EPOCH + timedelta(microseconds=at),
        actor_kind="service_provider",
        actor_id=provider,
        request_id=request_id,
        outcome=Event.Outcome.DENIED if denied else Event.Outcome.SUCCESS,
        reason=(reason or error) if denied else None,
        agent_id=agent,
        human_id=human,
        service_provider_id=provider,
        grant_id=grant,
        token_jti=jti,
        data=made,
        hidden=hidden,
    )


def _seal_data(
    data: dict[str, Any], capability: str | None, *, kept: bool
) -> tuple[Data, OpeningValue | None]:
    # Arguments differ from call to call and may be long, so they would only fill the cache.
    read = _data.__wrapped__ if data["action"] and ARGUMENTS in data["action"] else _data
    made = read(orjson.dumps(data), capability, kept)
    return made.seal() if isinstance(made, CommitmentTemplate) else (made, None)


# Most decisions without arguments repeat what an earlier one said.
@lru_cache(maxsize=1024)
def _data(text: bytes, capability: str | None, kept: bool) -> Data | CommitmentTemplate:  # noqa: FBT001 — a key of the cache
    """Data from JSON that was parsed and serialised again, so it round-trips exactly.

    Caller's texts only if `kept`: an event that names no agent is never erased.
    """
    plain, personal = split(orjson.loads(text), capability)
    if kept:
        for member, value in personal.items():
            return CommitmentTemplate(plain, member, value)
    return check_data(plain)


def debits(event: NewEvent) -> bool:
    """Whether the event debits one use of its grant."""
    return event.kind == kinds.DECISION_ALLOWED and bool(event.data.value["action"])
