"""The member `routing` of a statement: for whom the signer decides, and by which rule (section 6).

Without it, the signer is the agent's owner, or an administrator who denies.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Final

from . import statement_fields as fields
from .errors import InvalidRequestError
from .json_fields import members, text
from .untrusted_text import MAX_NAME

ROUTED: Final = ("approval", "confirmation")
STANDINGS: Final = ("member", "deputy", "administrator", "owner")
_MEMBERS: Final = ("rule", "group", "for", "as", "passed_on")


def check_routing(value: object, human_id: object) -> None:
    """Check the member; `human_id` is the signer. Raises InvalidRequestError naming the field."""
    where = "statement.routing"
    body = members(value, where, required=_MEMBERS)
    _check_named(body["rule"], f"{where}.rule")
    _check_named(body["for"], f"{where}.for")
    standing = body["as"]
    if standing not in STANDINGS:
        raise InvalidRequestError(f"{where}.as: must be one of {', '.join(STANDINGS)}.")
    in_group = standing in {"member", "deputy"}
    if in_group:
        _check_named(body["group"], f"{where}.group")
    elif body["group"] is not None:
        raise InvalidRequestError(f"{where}.group: must be null for {standing}.")
    if not isinstance(body["passed_on"], bool):
        raise InvalidRequestError(f"{where}.passed_on: must be true or false.")
    owner = body["for"]
    if isinstance(owner, dict) and (owner["id"] == human_id) != (standing == "owner"):
        raise InvalidRequestError(f"{where}.as: must be owner exactly if the owner signs.")


def routing_json(routing: Mapping[str, object] | None) -> dict[str, object]:
    """The member for a statement: empty without a routing."""
    return {} if routing is None else {"routing": deepcopy(dict(routing))}


def owner_id(statement: Mapping[str, object]) -> object:
    """The id of the person for whom this checked statement decides: by default its signer."""
    routing = statement.get("routing")
    owner = routing.get("for") if isinstance(routing, Mapping) else None
    return owner.get("id") if isinstance(owner, Mapping) else statement["human_id"]


def _check_named(value: object, where: str) -> None:
    body = members(value, where, required=("id", "name"))
    fields.matching(body["id"], fields.UUID, f"{where}.id")
    text(body["name"], f"{where}.name", maximum=MAX_NAME)
