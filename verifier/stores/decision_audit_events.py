"""The one audit event of each decision: enough to recompute every counter, no secret to reuse."""

import uuid
from collections.abc import Mapping
from typing import Any, Final

import orjson

from agentauth.protocol.argument_constraint import Scalar
from agentauth.protocol.capability import MAX_TRANSACT, Action, Capability, is_resource
from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.encoding import b64u_encode, canonical_json, sha256
from audit import kinds
from audit.models import Event
from audit.services import Draft, draft
from registry.services.agent_owners import owners_of
from registry.services.token_state import TokenState
from verifier.stores import EarlyRefusal, StoreCall

ARGUMENTS: Final = "arguments"
# Members of an action that a caller chose.
TEXTS: Final = ("resource", "namespace", "name", ARGUMENTS, f"{ARGUMENTS}_sha256")
# Bytes of canonical JSON that an event's arguments may have. A whole transact has no more, so the
# arguments of a payment are always recorded whole.
MAX_ARGUMENT_BYTES: Final = MAX_TRANSACT
# Stored as a salted commitment: an unsalted digest would confirm a guess of the agent's key.
KEY: Final = "idempotency_key_sha256"


def decision(
    call: StoreCall,
    state: TokenState,
    *,
    capability: Capability | None = None,
    confirmation_id: uuid.UUID | None = None,
    repeats: object = None,
) -> Draft:
    """The event of a yes. Of the three kinds, only DECISION_ALLOWED stands for a debit."""
    kind = kinds.DECISION_ALLOWED
    if call.dry_run:
        kind = kinds.DECISION_REHEARSED
    elif repeats is not None:
        kind = kinds.DECISION_REPEATED
    data, personal = split(decision_data(call), None if capability is None else capability.label)
    if confirmation_id is not None:
        data["confirmation_id"] = str(confirmation_id)
    if repeats is not None:
        data["repeats"] = str(repeats)
    return draft(
        kind=kind,
        actor=call.actor,
        at=call.now,
        agent_id=state.agent.pk,
        human_id=state.agent.human_id,
        service_provider_id=call.service_provider_id,
        grant_id=state.grant.pk,
        token_jti=call.claims.jti,
        data=data,
        personal=personal,
    )


def refusal(call: StoreCall, refuse: Refuse, state: TokenState | None) -> Draft:
    """The event of a refusal after the binding check.

    `state` is None for a token without a record.
    """
    human_id = _human_of(call.claims.agent_id) if state is None else state.agent.human_id
    return _denial(call, refuse, call.claims.agent_id, human_id)


def withheld(call: StoreCall, decision_id: str, human_id: uuid.UUID | None = None) -> Draft:
    """The event that the yes `decision_id` is logged but was decided too late to be given."""
    refuse = Refuse("temporarily_unavailable", "withheld")
    human_id = human_id or _human_of(call.claims.agent_id)
    return _denial(call, refuse, call.claims.agent_id, human_id, withholds=decision_id)


def early_refusal(refused: EarlyRefusal) -> Draft | None:
    """The event of a refusal in steps 3 to 5; None if a later event counts it.

    A token that is not proved to belong to the caller is not read.
    """
    if not refused.stands_for:
        return None
    agent_id = None if refused.claims is None else refused.claims.agent_id
    human_id = None if agent_id is None else _human_of(agent_id)
    return _denial(refused, refused.refuse, agent_id, human_id)


def _denial(
    call: StoreCall | EarlyRefusal,
    refuse: Refuse,
    agent_id: str | None,
    human_id: uuid.UUID | None,
    **more: str,
) -> Draft:
    data, personal = split({**decision_data(call), "error": refuse.error, **more}, None)
    if agent_id is None:
        # Even an expired token may name a person; and an event that names no agent is never erased.
        personal = {}
    if refuse.confirmation_id is not None:
        data["confirmation_id"] = str(refuse.confirmation_id)
    return draft(
        kind=kinds.DECISION_DENIED,
        actor=call.actor,
        at=call.now,
        outcome=Event.Outcome.DENIED,
        reason=refuse.reason or refuse.error,
        agent_id=agent_id,
        human_id=human_id,
        service_provider_id=call.service_provider_id,
        grant_id=None if call.claims is None else call.claims.grant_id,
        token_jti=None if call.claims is None else call.claims.jti,
        data=data,
        personal=personal,
    )


def split(data: Mapping[str, Any], capability: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a decision's data into plain log data and `details`: texts that a caller chose."""
    plain, details = dict(data), {} if capability is None else {"capability": capability}
    if action := plain["action"]:
        details |= {name: action[name] for name in TEXTS if name in action}
        plain["action"] = {name: value for name, value in action.items() if name not in TEXTS}
    if (key := plain.pop(KEY, None)) is not None:
        details[KEY] = key
    return plain, {"details": details} if details else {}


def decision_data(call: StoreCall | EarlyRefusal) -> dict[str, Any]:
    """The decision's data on its way to the log. Call `split` before it is written there."""
    data: dict[str, Any] = {"action": None if call.action is None else _action(call.action)}
    if arguments := arguments_of(call):
        data["action"] |= recorded_arguments(arguments)
    if call.operation_key is not None:
        # A digest finds the operation again, but cannot be used as its key.
        data[KEY] = b64u_encode(sha256(call.operation_key.encode()))
    if call.dry_run:
        data["dry_run"] = True
    if isinstance(call, EarlyRefusal) and call.stands_for > 1:
        data["count"] = call.stands_for
    return data


def arguments_of(call: StoreCall | EarlyRefusal) -> Mapping[str, Scalar]:
    """The arguments that the event records; empty if it names no agent, as for all texts."""
    return {} if call.action is None or call.claims is None else call.action.arguments


def recorded_arguments(arguments: Mapping[str, Scalar]) -> dict[str, Any]:
    """The arguments as an event has them: all, or the shortest that fit, and a hash of all.

    Texts of arguments may be as long as a request. An event is copied to the outbox, the database
    and files, so it must stay small (docs/adr/0046-an-act-names-its-payee.md).
    """
    # As long as canonical JSON, at a tenth of its cost; only the order of the names differs.
    if len(orjson.dumps(arguments)) <= MAX_ARGUMENT_BYTES:
        return {ARGUMENTS: arguments}
    whole = canonical_json(arguments)
    pairs = ((len(orjson.dumps({name: arguments[name]})), name) for name in arguments)
    kept, length = {}, 1
    for more, name in sorted(pairs):
        # `{"a":1}` and a comma instead of the opening brace: one less.
        length += more - 1
        if length > MAX_ARGUMENT_BYTES:
            break
        kept[name] = arguments[name]
    return {ARGUMENTS: kept, f"{ARGUMENTS}_sha256": b64u_encode(sha256(whole))}


def _action(action: Action) -> dict[str, Any]:
    """The requested action without its arguments."""
    shown: dict[str, Any] = {
        "type": action.type,
        # A malformed resource is arbitrary text from outside. The call is refused, so do not log
        # it.
        "resource": action.resource if is_resource(action.resource) else None,
    }
    if action.type == "custom":
        shown |= {"namespace": action.namespace, "name": action.name}
    if action.amount is not None:
        shown["amount"] = action.amount.to_json()
    return shown


def _human_of(agent_id: str) -> uuid.UUID | None:
    """The owner of the agent, in whose event feed the refusal appears."""
    return owners_of([agent_id]).get(uuid.UUID(agent_id))
