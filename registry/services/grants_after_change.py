"""What a change of key, manifest, audience or allow-list does to the grants that depend on it."""

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
from registry.services.grant_requests import withdraw_grant
from registry.services.grants import raise_version, suspend_grant

_CAUSES = Grant.SuspensionCause


def follow_new_key(*, agent: Agent, actor: Actor, now: datetime) -> int:
    """After a key rotation: suspend grants that move money or delete; the rest need new tokens.

    Runs in the caller's transaction, like the three below. Each returns how many it suspended.
    """
    held = Grant.objects.filter(agent=agent)
    return _carry_over(held, _is_grave, _CAUSES.KEY_ROTATED, actor, now)


def follow_new_manifest(*, agent: Agent, actor: Actor, now: datetime) -> int:
    """After a manifest change: suspend what it no longer covers, and withdraw such requests."""
    covered = parse_capabilities(agent.capabilities)
    for grant in Grant.objects.waiting(now).filter(agent=agent).select_related("agent"):
        if not narrows(parse_capabilities(grant.requested_capabilities), covered):
            # Decided or withdrawn meanwhile: an approval checks the manifest itself.
            with suppress(InvalidStateError):
                withdraw_grant(grant=grant, actor=actor, now=now, reason=_CAUSES.MANIFEST_CHANGED)
    held = Grant.objects.filter(agent=agent)
    return _carry_over(held, _beyond(covered), _CAUSES.MANIFEST_CHANGED, actor, now)


def follow_new_audience(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> int:
    """After a service provider moved: suspend every grant there until it is signed again."""
    held = Grant.objects.filter(service_provider=service_provider)
    return _carry_over(held, lambda _: True, _CAUSES.AUDIENCE_CHANGED, actor, now)


def follow_new_allow_list(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> int:
    """After a change of the allow-list: suspend the grants beyond it; the rest stays untouched."""
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
    """Suspend those of `held` for which `ends` is true; with `others`, raise the others' version.

    Locks the rows in id order, so that two changes in parallel cannot deadlock. A grant that a
    person suspended is suspended again for `cause`: else a resume would pass over the change.
    """
    stands = [Grant.Status.APPROVED, Grant.Status.SUSPENDED]
    rows = held.filter(status__in=stands, valid_until__gt=now).prefetch_related(
        "agent", "service_provider"
    )
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
