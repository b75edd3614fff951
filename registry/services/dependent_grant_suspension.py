"""What a change of key, manifest, audience or allow-list does to the grants that depend on it.

Each function runs in the transaction of its caller, which has locked the agent or the service
provider, and returns how many grants it suspended.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from agentauth.protocol.capability import (
    GRAVE_TYPES,
    Capability,
    parse_allow_entry,
    parse_capabilities,
)
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.errors import InvalidStateError
from audit.services import Actor
from registry.models import Agent, Grant, ServiceProvider
from registry.models.grants import GrantQuerySet
from registry.services.grant_requests import withdraw_grant
from registry.services.grants import raise_version, suspend_grant

_CAUSES = Grant.SuspensionCause


def follow_new_key(*, agent: Agent, actor: Actor, now: datetime) -> int:
    """After a key rotation: suspend grants that move money or delete; the rest need new tokens."""
    grants = Grant.objects.filter(agent=agent)
    return _suspend_or_raise_version(grants, _is_grave, _CAUSES.KEY_ROTATED, actor, now)


def follow_new_manifest(*, agent: Agent, actor: Actor, now: datetime) -> int:
    """After a manifest change: suspend what it no longer covers, and withdraw such requests."""
    covered = parse_capabilities(agent.capabilities)
    for grant in Grant.objects.waiting(now).filter(agent=agent).select_related("agent"):
        if not narrows(parse_capabilities(grant.requested_capabilities), covered):
            # Denied or withdrawn meanwhile. It cannot be approved meanwhile: an approval first
            # takes the agent's lock, which the caller holds.
            with suppress(InvalidStateError):
                withdraw_grant(grant=grant, actor=actor, now=now, reason=_CAUSES.MANIFEST_CHANGED)
    grants = Grant.objects.filter(agent=agent)
    return _suspend_or_raise_version(
        grants, _exceeds(covered), _CAUSES.MANIFEST_CHANGED, actor, now
    )


def follow_new_audience(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> int:
    """After a service provider moved: suspend every grant there until it is signed again."""
    grants = Grant.objects.filter(service_provider=service_provider)
    return _suspend_or_raise_version(grants, lambda _: True, _CAUSES.AUDIENCE_CHANGED, actor, now)


def follow_new_allow_list(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> int:
    """After a change of the allow-list: suspend the grants that exceed it. Others do not change."""
    allowed = tuple(parse_allow_entry(entry) for entry in service_provider.allowed)
    grants = Grant.objects.filter(service_provider=service_provider)
    return _suspend_or_raise_version(
        grants, _exceeds(allowed), _CAUSES.ALLOWED_CHANGED, actor, now, raise_others=False
    )


def _suspend_or_raise_version(
    grants: GrantQuerySet,
    must_suspend: Callable[[Grant], bool],
    cause: str,
    actor: Actor,
    now: datetime,
    *,
    raise_others: bool = True,
) -> int:
    """Suspend those of `grants` that must be; with `raise_others`, raise the others' version.

    Tokens of an older version are refused. A grant that a person suspended is suspended again for
    `cause`: else a resume would pass over the change. One that already waits for a signature keeps
    its cause, and its raised version keeps an administrator from releasing it
    (`approvals/services/grants_unused_since_backup.py`).
    """
    rows = (
        grants.filter(
            status__in=[Grant.Status.APPROVED, Grant.Status.SUSPENDED], valid_until__gt=now
        )
        # Not `select_related`: FOR UPDATE would also lock the joined agents and service providers.
        .prefetch_related("agent", "service_provider")
        # `no_key`, so that inserts that reference the grant do not wait. In id order, so that two
        # changes in parallel cannot deadlock.
        .select_for_update(no_key=True)
        .order_by("id")
    )
    suspended = 0
    for grant in rows:
        if grant.suspension_cause in {"", _CAUSES.PERSON} and must_suspend(grant):
            suspend_grant(grant=grant, actor=actor, now=now, cause=cause)
            suspended += 1
        elif raise_others:
            raise_version(grant=grant, cause=cause, actor=actor, now=now)
    return suspended


def _is_grave(grant: Grant) -> bool:
    return any(each.type in GRAVE_TYPES for each in parse_capabilities(grant.capabilities))


def _exceeds(wide: tuple[Capability, ...]) -> Callable[[Grant], bool]:
    return lambda grant: not narrows(parse_capabilities(grant.capabilities), wide)
