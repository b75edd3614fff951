"""What the change of a key, a manifest, an audience or an allow-list does to the grants that rest on it."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from agentauth.protocol.capability import (
    GRAVE_TYPES,
    Capability,
    narrows,
    parse_allow_entry,
    parse_capabilities,
)
from agentauth.protocol.errors import InvalidStateError
from audit.services import Actor
from registry.models import Agent, Grant, ServiceProvider
from registry.models.grants import GrantQuerySet
from registry.services.grants import raise_version, suspend_grant, withdraw_grant

_CAUSES = Grant.SuspensionCause


def follow_new_key(*, agent: Agent, actor: Actor, now: datetime) -> int:
    """After a rotation: what moves money or deletes waits for a new signature, the rest for new tokens.

    Inside the caller's transaction, like the three below; each returns how many grants it suspended.
    """
    held = Grant.objects.filter(agent=agent)
    return _carry_over(held, _is_grave, _CAUSES.KEY_ROTATED, actor, now)


def follow_new_manifest(*, agent: Agent, actor: Actor, now: datetime) -> int:
    """After a change of the manifest: what it no longer covers is suspended, or withdrawn while it is only asked for."""
    covered = parse_capabilities(agent.capabilities)
    for grant in Grant.objects.waiting(now).filter(agent=agent).select_related("agent"):
        if not narrows(parse_capabilities(grant.requested_capabilities), covered):
            # Decided or withdrawn at this very moment: the approval is refused by its own check.
            with suppress(InvalidStateError):
                withdraw_grant(grant=grant, actor=actor, now=now, reason=_CAUSES.MANIFEST_CHANGED)
    held = Grant.objects.filter(agent=agent)
    return _carry_over(held, _beyond(covered), _CAUSES.MANIFEST_CHANGED, actor, now)


def follow_new_audience(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> int:
    """After a service provider moved: every grant there waits for a new signature."""
    held = Grant.objects.filter(service_provider=service_provider)
    return _carry_over(held, lambda _: True, _CAUSES.AUDIENCE_CHANGED, actor, now)


def follow_new_allow_list(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> int:
    """After a change of the allow-list: what lies beyond it waits for a new signature, the rest is untouched."""
    allowed = tuple(parse_allow_entry(entry) for entry in service_provider.allowed)
    held = Grant.objects.filter(service_provider=service_provider)
    return _carry_over(held, _beyond(allowed), _CAUSES.ALLOWED_CHANGED, actor, now, others=False)


def _carry_over(
    held: GrantQuerySet,
    ends: Callable[[Grant], bool],
    cause: str,
    actor: Actor,
    now: datetime,
    *,
    others: bool = True,
) -> int:
    """Suspend those of `held` that `ends` names; with `others`, raise the version of the rest.

    Locked in the order of their ids, so that two changes at once never wait for each other. One that a person had
    suspended is suspended anew for `cause`: resuming it would else pass over the change.
    """
    stands = [Grant.Status.APPROVED, Grant.Status.SUSPENDED]
    rows = held.filter(status__in=stands, valid_until__gt=now).prefetch_related("agent", "service_provider")
    suspended = 0
    for grant in rows.select_for_update(no_key=True).order_by("id"):
        if grant.suspension_cause in {"", _CAUSES.PERSON} and ends(grant):
            suspend_grant(grant=grant, actor=actor, now=now, cause=cause)
            suspended += 1
        elif others:
            raise_version(grant=grant, cause=cause, actor=actor, now=now)
    return suspended


def _is_grave(grant: Grant) -> bool:
    return any(each.type in GRAVE_TYPES for each in parse_capabilities(grant.capabilities))


def _beyond(wide: tuple[Capability, ...]) -> Callable[[Grant], bool]:
    return lambda grant: not narrows(parse_capabilities(grant.capabilities), wide)
