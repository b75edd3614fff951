"""What `ensure_grant` does: reuse a grant, wait for a request, or ask for what is missing. No I/O.

A grant *fits* if its envelope, as requested, allows all that the asked envelope allows, so that a
person has already decided about these limits. A capability is *held* if one usable grant that fits
covers it, as granted. Capabilities of different grants are never combined into one.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from agentauth.protocol.behavioural_envelope import Envelope, narrows_envelope
from agentauth.protocol.capability import Capability
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.encoding import parse_timestamp
from agentauth.protocol.errors import AgentAuthError, CooldownActiveError

from .errors import NoGrantError
from .grant_choice import (
    capabilities_of,
    ends_at,
    is_usable,
    requested_capabilities,
    requested_envelope,
    waits_for_human,
)
from .registry_answers import Grant

# Seconds, docs/protocol.md section 6: after the first denial at a service provider, after the
# second in a row, and after each further one.
COOLDOWN_SECONDS: Final = (3_600, 14_400, 86_400)
# 9999-12-31T23:59:59Z.
_LAST: Final = 253_402_300_799
_AGAIN: Final = "call ensure_grant with ask_again=True"


@dataclass(frozen=True, slots=True)
class Plan:
    """The grant to return, or the capabilities to ask a person for first."""

    grant: Grant | None
    missing: tuple[Capability, ...] = ()


def plan(
    grants: Sequence[Grant],
    capabilities: Sequence[Capability],
    envelope: Envelope | None,
    *,
    ask_again: bool,
) -> Plan:
    """What to do about `grants`, all of the agent's grants at one service provider.

    Raises NoGrantError where a person already said no to what is missing, unless `ask_again`, and
    where a person suspended the grant that covers it.
    """
    fitting = [grant for grant in grants if _fits(grant, envelope)]
    usable = [grant for grant in fitting if is_usable(grant)]
    waiting = [grant for grant in fitting if waits_for_human(grant)]
    missing = _uncovered(capabilities, usable)
    if not missing:
        return Plan(_best(usable, capabilities))
    unasked = _uncovered(missing, waiting)
    if not unasked:
        return Plan(_best(waiting, missing))
    _check_suspended(fitting, unasked)
    if not ask_again:
        _check_narrowed(usable, unasked)
        _check_denied(grants, unasked)
    return Plan(None, unasked)


def held(
    grants: Sequence[Grant], capabilities: Sequence[Capability], envelope: Envelope | None
) -> Grant | None:
    """A usable grant to return at once, if all of the capabilities are held."""
    usable = [grant for grant in grants if is_usable(grant) and _fits(grant, envelope)]
    return None if _uncovered(capabilities, usable) else _best(usable, capabilities)


def with_time(error: CooldownActiveError) -> CooldownActiveError:
    """The same refusal, with a sentence that says when to ask again."""
    seconds = error.fields.get("retry_after")
    if type(seconds) is not int or seconds < 0:
        return error
    when = _shown(time.time() + seconds)
    return CooldownActiveError(
        f"{error.description} Ask again from {when}: {_AGAIN}.", reason=error.reason, **error.fields
    )


def _fits(grant: Grant, envelope: Envelope | None) -> bool:
    if envelope is None:
        return True
    requested = requested_envelope(grant)
    return requested is not None and narrows_envelope(envelope, requested)


def _uncovered(
    capabilities: Sequence[Capability], grants: Sequence[Grant]
) -> tuple[Capability, ...]:
    terms = [capabilities_of(grant) for grant in grants]
    return tuple(each for each in capabilities if not any(narrows([each], own) for own in terms))


def _best(grants: Sequence[Grant], capabilities: Sequence[Capability]) -> Grant:
    """The grant that covers the most of them; of several, the one that ends last."""

    def worth(grant: Grant) -> tuple[int, float, str]:
        missing = len(_uncovered(capabilities, [grant]))
        return (-missing, ends_at(grant), grant.grant_id)

    return max(grants, key=worth)


def _check_suspended(grants: Sequence[Grant], unasked: Sequence[Capability]) -> None:
    for grant in grants:
        # A new request would bypass the decision of the person who suspended it.
        if grant.status == "suspended" and _uncovered(unasked, [grant]) != tuple(unasked):
            raise NoGrantError(
                f"The grant {grant.grant_id} covers this, but a person suspended it. Its owner or "
                "an administrator can resume it.",
                reason="suspended",
                grant_id=grant.grant_id,
            )


def _check_narrowed(usable: Sequence[Grant], unasked: Sequence[Capability]) -> None:
    for grant in usable:
        left_out = [each for each in unasked if narrows([each], requested_capabilities(grant))]
        if left_out:
            labels = ", ".join(each.label for each in left_out)
            raise NoGrantError(
                f"The person approved the grant {grant.grant_id} without {labels}. To ask for it "
                f"again, {_AGAIN}.",
                reason="narrowed",
                grant_id=grant.grant_id,
            )


def _check_denied(grants: Sequence[Grant], unasked: Sequence[Capability]) -> None:
    """Raises NoGrantError if the new request has everything that a person denied last."""
    by_time = sorted(grants, key=lambda grant: grant.grant_id)
    for index, denied in enumerate(by_time):
        terms = requested_capabilities(denied)
        if denied.status != "denied" or not terms or not narrows(terms, unasked):
            continue
        if any(_was_approved(later, terms) for later in by_time[index + 1 :]):
            continue
        why = f" The reason given: {denied.deny_reason}" if denied.deny_reason else ""
        labels = ", ".join(each.label for each in terms)
        when = _cools_down_at(by_time)
        from_when = f" from {_shown(when)}" if when > time.time() else ""
        raise NoGrantError(
            f"The person denied {labels}.{why} To ask again, {_AGAIN}{from_when}.",
            reason="denied",
            grant_id=denied.grant_id,
            retry_after=max(0, int(when - time.time())),
        )


def _was_approved(grant: Grant, terms: Sequence[Capability]) -> bool:
    return isinstance(grant.answer.get("granted"), dict) and narrows(
        terms, requested_capabilities(grant)
    )


def _cools_down_at(by_time: Sequence[Grant]) -> float:
    """Unix seconds from which on the registry takes a request here; 0 if it does now.

    As docs/protocol.md section 6 says; the registry decides, and CooldownActiveError says more.
    """
    decided = sorted(
        (when, grant.status == "denied")
        for grant in by_time
        if (when := _decided_at(grant)) is not None
    )
    in_a_row = 0
    for _, was_denied in decided:
        in_a_row = in_a_row + 1 if was_denied else 0
    if not in_a_row:
        return 0.0
    return decided[-1][0] + COOLDOWN_SECONDS[min(in_a_row, len(COOLDOWN_SECONDS)) - 1]


def _decided_at(grant: Grant) -> float | None:
    decided = grant.answer.get("decided_at")
    try:
        return parse_timestamp(decided).timestamp() if isinstance(decided, str) else None
    except AgentAuthError:
        return None


def _shown(when: float) -> str:
    """`when`, in unix seconds; a later time than datetime knows is shown as its last one."""
    return datetime.fromtimestamp(min(when, _LAST), UTC).strftime("%Y-%m-%d %H:%M UTC")
