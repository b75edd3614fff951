"""Arguments of the command line as values of the protocol: capabilities, actions, JSON."""

import json

from agentauth.protocol.capability import Action, Capability, parse_action, parse_capability
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import InvalidRequestError


def read_capability(text: str) -> Capability:
    """`read:calendar`, `transact:payments:100.00:EUR`, `custom:acme.crm.merge:contacts`, or the
    JSON of protocol section 3.

    Raises InvalidRequestError.
    """
    if text.lstrip().startswith("{"):
        return parse_capability(read_object(text))
    match text.split(":"):
        case ["transact", resource, value, currency]:
            return Capability.transact(resource, max_amount=(value, currency))
        case ["custom", name, resource]:
            namespace, _, short = name.rpartition(".")
            return Capability.custom(namespace, short, resource)
        case [("read" | "write" | "delete") as kind, resource]:
            return parse_capability({"type": kind, "resource": resource})
    raise InvalidRequestError(
        f"{text!r} is not a capability such as read:calendar or transact:payments:100.00:EUR."
    )


def read_action(text: str | None) -> Action | None:
    """Read an action in the same form, such as `transact:payments:20.00:EUR`, or as JSON.

    Raises InvalidRequestError.
    """
    if text is None:
        return None
    if text.lstrip().startswith("{"):
        return parse_action(read_object(text))
    asked = read_capability(text)
    return Action(
        asked.type, asked.resource, asked.max_amount, namespace=asked.namespace, name=asked.name
    )


def read_data(text: str | None) -> object:
    """The body of a call: any JSON. Raises InvalidRequestError."""
    if text is None:
        return None
    try:
        value: object = json.loads(text)
    except ValueError:
        raise InvalidRequestError("--data must be JSON.") from None
    return value
