"""Choose which of an agent's grants matches a request or serves a call. No I/O."""

import time
from collections.abc import Iterable, Sequence
from typing import Final

from agentauth.protocol.behavioural_envelope import Envelope, parse_envelope
from agentauth.protocol.capability import Action, Capability, parse_capability
from agentauth.protocol.capability_comparison import Violation, choose, narrows
from agentauth.protocol.encoding import canonical_json, parse_timestamp
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError

from .errors import AmbiguousGrantError, NoGrantError
from .registry_answers import Grant, ServiceProvider

_FOR_EVER: Final = float("inf")


def is_usable(grant: Grant) -> bool:
    """Is it approved and not expired?"""
    return grant.status == "approved" and ends_at(grant) > time.time()


def waits_for_human(grant: Grant) -> bool:
    """Must a human still decide, or sign again after a change?"""
    return grant.status == "pending" or (
        grant.status == "suspended" and grant.approval_url is not None
    )


def find_same(
    grants: Iterable[Grant], capabilities: Sequence[Capability], envelope: Envelope
) -> Grant | None:
    """The grant requested with these terms: a usable one, else a waiting, else a suspended one.

    Terms are the capabilities in any order and the envelope, as requested: a human who granted less
    is not asked again.
    """
    asked = _terms([capability.to_json() for capability in capabilities], envelope.to_json())
    same = [grant for grant in grants if _asked(grant) == asked]
    for matches in (is_usable, waits_for_human, lambda grant: grant.status == "suspended"):
        if found := [grant for grant in same if matches(grant)]:
            return max(found, key=_longest)
    return None


def choose_grant(
    grants: Sequence[Grant], action: Action | None, provider: ServiceProvider, *, called: str
) -> Grant:
    """The grant to use for `action`: a usable one that covers it, else one that waits for a human.

    Of several, the one that ends last.

    Without an action, the only usable one, or the one that grants all that the others do.
    `called` is the caller's id or slug of the service provider, for the text of errors. Raises
    AmbiguousGrantError where there is none such, NoGrantError where nothing covers the action.
    """
    usable = [grant for grant in grants if is_usable(grant)]
    waiting = [grant for grant in grants if waits_for_human(grant)]
    for found in (usable, waiting):
        covering = [grant for grant in found if action is None or _covers(grant, action)]
        if action is None and found is usable:
            covering = _widest(usable, provider)
        if covering:
            return max(covering, key=_longest)
    raise _nothing(grants, action, provider, called)


def _widest(usable: Sequence[Grant], provider: ServiceProvider) -> list[Grant]:
    terms = [capabilities_of(grant) for grant in usable]
    widest = [
        grant
        for grant, own in zip(usable, terms, strict=True)
        if all(narrows(others, own) for others in terms)
    ]
    if usable and not widest:
        raise AmbiguousGrantError(
            f"{len(usable)} grants at {provider.name} differ in what they cover. Say what the "
            "call does:"
            ' pass action=Action("read", "calendar"), for example, or --action read:calendar on'
            " the command line.",
            grant_ids=[grant.grant_id for grant in usable],
        )
    return widest


def _nothing(
    grants: Sequence[Grant], action: Action | None, provider: ServiceProvider, called: str
) -> NoGrantError:
    """The error that says what is missing, and how to get it."""
    asked = "..." if action is None else _capability(action)
    again = f"Ask for it: request_grant({called!r}, [{asked}]), or `agentauth request`."
    if not grants:
        return NoGrantError(
            f"This agent has not asked for anything at {provider.name} yet. {again}"
        )
    if action is None:
        last = max(grants, key=lambda grant: grant.grant_id)
        return _ended(last, f"The last grant at {provider.name} is {last.status}.", again)
    what = f"{_label(action)} at {provider.name}"
    usable = [grant for grant in grants if is_usable(grant)]
    ended = [grant for grant in grants if grant not in usable and _covers(grant, action)]
    if ended:
        last = max(ended, key=lambda grant: grant.grant_id)
        return _ended(last, f"The last grant that covers {what} is {last.status}.", again)
    broken = [violation for grant in usable for violation in _violations(grant, action)]
    if broken:
        limits = ", ".join(
            f"{each.argument} {each.operator} {_shown(each.limit)}" for each in broken
        )
        return NoGrantError(
            f"A grant covers {what} only within limits that this call breaks: {limits}. {again}",
            reason="constraint",
            violations=[violation.to_json() for violation in broken],
        )
    return NoGrantError(f"No grant covers {what}. {again}", reason="no_capability")


def _ended(grant: Grant, sentence: str, again: str) -> NoGrantError:
    why = f" The reason given: {grant.deny_reason}" if grant.deny_reason else ""
    # Only its owner or an administrator can resume it; a new request would bypass their decision.
    how = "Its owner or an administrator can resume it." if grant.status == "suspended" else again
    return NoGrantError(f"{sentence}{why} {how}", reason=grant.status, grant_id=grant.grant_id)


def _label(action: Action) -> str:
    kind = f"custom:{action.namespace}.{action.name}" if action.type == "custom" else action.type
    return f"{kind}:{action.resource}"


def _capability(action: Action) -> str:
    """The Python of a capability that covers the action."""
    match action.type:
        case "transact" if action.amount is not None:
            ceiling = (action.amount.value, action.amount.currency)
            return f"Capability.transact({action.resource!r}, max_amount={ceiling!r})"
        case "custom":
            return f"Capability.custom({action.namespace!r}, {action.name!r}, {action.resource!r})"
    return f"Capability.{action.type}({action.resource!r})"


def _shown(limit: object) -> str:
    return canonical_json(limit).decode()


def capabilities_of(grant: Grant) -> tuple[Capability, ...]:
    """The granted capabilities, or the requested ones before approval; skips unknown types."""
    return _capabilities(grant.answer.get("granted") or grant.answer.get("requested"))


def requested_capabilities(grant: Grant) -> tuple[Capability, ...]:
    """The requested capabilities; skips unknown types."""
    return _capabilities(grant.answer.get("requested"))


def requested_envelope(grant: Grant) -> Envelope | None:
    """The requested envelope; None if this version cannot read it."""
    return _envelope(grant.answer.get("requested"))


def granted_envelope(grant: Grant) -> Envelope | None:
    """The granted envelope; None before approval, and if this version cannot read it."""
    return _envelope(grant.answer.get("granted"))


def _envelope(part: object) -> Envelope | None:
    try:
        return parse_envelope(part["envelope"]) if isinstance(part, dict) else None
    except (AgentAuthError, KeyError):
        return None


def _capabilities(part: object) -> tuple[Capability, ...]:
    listed = part.get("capabilities") if isinstance(part, dict) else None
    found = []
    for entry in listed if isinstance(listed, list) else []:
        try:
            found.append(parse_capability(entry))
        except InvalidRequestError:
            continue
    return tuple(found)


def _covers(grant: Grant, action: Action) -> bool:
    return choose(capabilities_of(grant), action).capability is not None


def _violations(grant: Grant, action: Action) -> tuple[Violation, ...]:
    return choose(capabilities_of(grant), action).violations


def _asked(grant: Grant) -> bytes | None:
    """The requested terms; None if this version cannot read them."""
    asked = grant.answer.get("requested")
    try:
        if not isinstance(asked, dict):
            return None
        return _terms(asked["capabilities"], parse_envelope(asked["envelope"]).to_json())
    except (AgentAuthError, KeyError, TypeError):
        return None


def _terms(capabilities: Iterable[object], envelope: object) -> bytes:
    return canonical_json(
        [sorted(canonical_json(each).decode() for each in capabilities), envelope]
    )


def ends_at(grant: Grant) -> float:
    """When the grant ends, in Unix seconds; infinity if it does not say."""
    return parse_timestamp(grant.valid_until).timestamp() if grant.valid_until else _FOR_EVER


def _longest(grant: Grant) -> tuple[float, str]:
    return (ends_at(grant), grant.grant_id)
