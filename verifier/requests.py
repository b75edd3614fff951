"""The body of a verify request, read strictly: unknown members, wrong types and bad amounts stop here."""

import uuid
from functools import lru_cache

from agentauth.protocol.capability import Action, parse_action
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.reading import members, text
from agentauth.protocol.values import per_call
from registry.services.idempotency import check_key
from verifier.stores import Delivery

_MAX_TEXT = 65_536
_MAX_METHOD = 32
MAX_KEY = 128
# Of an action that is kept: what is longer is read each time, so that what is kept stays small.
_MAX_KEPT_RESOURCE = 256


@per_call(frozen=True, slots=True)
class VerifyRequest:
    """One question of a service provider. Token, proof and URL are as the agent sent them: nothing of it is proved."""

    untrusted_token: str
    untrusted_proof: str | None
    method: str
    untrusted_url: str
    action: Action | None
    # The agent's name for its operation; see docs/protocol.md section 8.
    operation_key: str | None
    dry_run: bool


def parse_verify_request(obj: object) -> VerifyRequest:
    """Read the body of `POST /v1/verify` (docs/protocol.md section 8).

    A proof that is absent or null is not an error of the service provider: the agent sent none, and the answer
    says so. A null anywhere else is one: a lost `action` would ask for less than the caller means to.

    Raises InvalidRequestError naming the member; also for a `transact` without `idempotency_key`, since a payment
    whose retry cannot be told from a second payment must not begin.
    """
    body = members(
        obj,
        "body",
        required=("token", "method", "url"),
        optional=("proof", "action", "idempotency_key", "dry_run"),
    )
    proof = body.get("proof")
    dry_run = body.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise InvalidRequestError("dry_run: must be true or false.")
    action = _action(body["action"]) if "action" in body else None
    key = (
        text(body["idempotency_key"], "idempotency_key", maximum=MAX_KEY)
        if "idempotency_key" in body
        else None
    )
    if action is not None and action.type == "transact" and key is None:
        raise InvalidRequestError("idempotency_key: is missing; a transact must name the agent's operation.")
    return VerifyRequest(
        untrusted_token=text(body["token"], "token", minimum=0, maximum=_MAX_TEXT),
        untrusted_proof=None if proof is None else text(proof, "proof", minimum=0, maximum=_MAX_TEXT),
        method=text(body["method"], "method", maximum=_MAX_METHOD),
        untrusted_url=text(body["url"], "url", minimum=0, maximum=_MAX_TEXT),
        action=action,
        operation_key=key,
        dry_run=dry_run,
    )


def _action(obj: object) -> Action:
    """`parse_action`; of an action that is texts alone, as most are, the one that was made before. It holds nothing that changes."""
    if type(obj) is dict:
        resource = obj.get("resource")
        if type(resource) is str and len(resource) <= _MAX_KEPT_RESOURCE:
            try:
                return _kept_action(tuple(obj.items()))
            except TypeError:
                # Arguments, an amount, or what does not belong there.
                pass
    return parse_action(obj)


@lru_cache(maxsize=4_096)
def _kept_action(members: tuple[tuple[str, object], ...]) -> Action:
    """An error is not kept. Equal members are the same members: all that passes here are texts."""
    return parse_action(dict(members))


def parse_delivery(
    key: str | None, *, service_provider_id: uuid.UUID, body: bytes, operation_key: str | None
) -> Delivery | None:
    """Read the header `Idempotency-Key` of `POST /v1/verify`: the service provider's own name for this one call.

    Raises InvalidRequestError for one outside its form, and for the agent's own key of the body: an agent that named
    the call could have the answer to one of its requests given to another.
    """
    if key is None:
        return None
    check_key(key)
    if key == operation_key:
        raise InvalidRequestError(
            "Idempotency-Key: must be minted by you for this call, not be the agent's idempotency_key."
        )
    # One provider's keys never meet another's: an id holds no NUL.
    return Delivery(sha256(f"{service_provider_id}\0{key}".encode()), sha256(body))
