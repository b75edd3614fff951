"""Mistakes in a caller's arguments, each explained in one sentence with the right call. No I/O."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from agentauth.protocol.behavioural_envelope import Envelope, parse_envelope
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money

# A capability as the command line writes it: `read:calendar`.
_LABEL: Final = re.compile(r"(read|write|delete):([A-Za-z0-9._~/-]{1,80})")
_SHOWN: Final = 60


def check_capabilities(capabilities: object) -> tuple[Capability, ...]:
    """The capabilities of a call. Raises InvalidRequestError that shows how to write them."""
    if isinstance(capabilities, Capability):
        raise InvalidRequestError(
            f"capabilities: must be a list. Write [{_call(capabilities)}], in brackets."
        )
    if isinstance(capabilities, str | bytes | Mapping) or not isinstance(capabilities, Iterable):
        raise InvalidRequestError(
            f"capabilities: must be a list of Capability objects, not {_said(capabilities)}. "
            f"Write [{_suggested(capabilities)}]."
        )
    listed = tuple(capabilities)
    for index, each in enumerate(listed):
        if not isinstance(each, Capability):
            raise InvalidRequestError(
                f"capabilities[{index}]: must be a Capability, not {_said(each)}. "
                f"Write {_suggested(each)}."
            )
    if not listed:
        raise InvalidRequestError(
            'capabilities: name at least one, such as Capability.read("calendar").'
        )
    return listed


def check_action(action: object) -> None:
    """Raises InvalidRequestError unless it is None or an Action whose amount is a Money."""
    if action is None:
        return
    if not isinstance(action, Action):
        found = _LABEL.fullmatch(action) if isinstance(action, str) else None
        kind, resource = (found[1], found[2]) if found else ("read", "calendar")
        raise InvalidRequestError(
            f'action: must be an Action, not {_said(action)}. Write Action("{kind}", "{resource}").'
        )
    if action.amount is not None and not isinstance(action.amount, Money):
        raise InvalidRequestError(
            f"action.amount: must be a Money, not {_said(action.amount)}. "
            'Write Money.of("100.00", "EUR").'
        )


def check_max_bytes(value: object) -> None:
    """Raises InvalidRequestError unless it is a positive integer."""
    if type(value) is not int or value < 1:
        raise InvalidRequestError("max_bytes: must be a positive integer, such as 1_000_000.")


def read_envelope(envelope: Envelope | Mapping[str, object] | None) -> Envelope:
    """The envelope of a request; None and `{}` limit nothing. Raises InvalidRequestError."""
    if isinstance(envelope, Envelope):
        return envelope
    if envelope is not None and not isinstance(envelope, Mapping):
        raise InvalidRequestError(
            f"envelope: must be an Envelope or a dict, not {_said(envelope)}. "
            'Write {"max_requests_per_minute": 60}, for example.'
        )
    return parse_envelope(dict(envelope or {}))


def _said(value: object) -> str:
    if isinstance(value, str):
        return f"the text {value[:_SHOWN]!r}"
    return f"of type {type(value).__name__}"


def _suggested(value: object) -> str:
    found = _LABEL.fullmatch(value) if isinstance(value, str) else None
    return f'Capability.{found[1]}("{found[2]}")' if found else 'Capability.read("calendar")'


def _call(capability: Capability) -> str:
    if capability.type in {"read", "write", "delete"}:
        return f'Capability.{capability.type}("{capability.resource}")'
    return f"Capability.{capability.type}(…)"
