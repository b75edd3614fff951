"""Parses a verify request strictly: rejects unknown members, wrong types and bad amounts."""

import uuid
from functools import lru_cache

from agentauth.protocol.capability import Action, parse_action
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.json_fields import members, text
from registry.services.idempotency import check_key
from verifier.stores import ProviderKey

_MAX_TEXT = 65_536
_MAX_METHOD = 32
MAX_KEY = 128
# Actions with a longer resource are not cached, so that the cache stays small.
_MAX_KEPT_RESOURCE = 256


@per_call(frozen=True, slots=True)
class VerifyRequest:
    """One verify request. Token, proof and URL are as the agent sent them, not yet verified."""

    untrusted_token: str
    untrusted_proof: str | None
    method: str
    untrusted_url: str
    action: Action | None
    # The agent's idempotency key for its operation; see docs/protocol.md section 8.
    operation_key: str | None
    dry_run: bool


def parse_verify_request(obj: object) -> VerifyRequest:
    """Parse the body of `POST /v1/verify` (docs/protocol.md section 8).

    A missing or null proof is not the service provider's error: the agent sent none, and the answer
    is a refusal. Any other null is an error: a lost `action` would check less than the caller
    intends.

    Raises InvalidRequestError naming the member. A `transact` needs an `idempotency_key`, since
    without one a retry could not be told from a second payment.
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
        raise InvalidRequestError(
            "idempotency_key: is missing; a transact must have the agent's name for its operation."
        )
    return VerifyRequest(
        untrusted_token=text(body["token"], "token", minimum=0, maximum=_MAX_TEXT),
        untrusted_proof=None
        if proof is None
        else text(proof, "proof", minimum=0, maximum=_MAX_TEXT),
        method=text(body["method"], "method", maximum=_MAX_METHOD),
        untrusted_url=text(body["url"], "url", minimum=0, maximum=_MAX_TEXT),
        action=action,
        operation_key=key,
        dry_run=dry_run,
    )


def _action(obj: object) -> Action:
    """`parse_action`, cached for actions that consist of strings only, as most do.

    Sharing the cached object is safe, since an Action is immutable.
    """
    if type(obj) is dict:
        resource = obj.get("resource")
        if type(resource) is str and len(resource) <= _MAX_KEPT_RESOURCE:
            try:
                return _kept_action(tuple(obj.items()))
            except TypeError:
                # Unhashable: it has arguments, an amount or an invalid member.
                pass
    return parse_action(obj)


@lru_cache(maxsize=4_096)
def _kept_action(members: tuple[tuple[str, object], ...]) -> Action:
    """Errors are not cached. Equal keys mean equal actions, as all valid values are strings."""
    return parse_action(dict(members))


def parse_delivery(
    key: str | None, *, service_provider_id: uuid.UUID, body: bytes, operation_key: str | None
) -> ProviderKey | None:
    """Parse the header `Idempotency-Key` of `POST /v1/verify`: the provider's key for this call.

    Raises InvalidRequestError if it is malformed or equals the agent's key in the body: an agent
    that chose the key could get the answer to one of its requests for another.
    """
    if key is None:
        return None
    check_key(key)
    if key == operation_key:
        raise InvalidRequestError(
            "Idempotency-Key: must be your own name for this call, not the agent's idempotency_key."
        )
    # Two providers' keys never collide: an id contains no NUL.
    return ProviderKey(sha256(f"{service_provider_id}\0{key}".encode()), sha256(body))
