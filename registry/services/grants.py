"""A grant's life: decided, revoked, suspended, resumed. Requests: grant_requests.py."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q, QuerySet

from agentauth.protocol.behavioural_envelope import Envelope, narrows_envelope, parse_envelope
from agentauth.protocol.capability import Capability, parse_allow_entry, parse_capabilities
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import (
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from agentauth.protocol.identifiers import parse_id
from audit import kinds
from audit.fault_injection import fault_point
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import Agent, Grant, Human, Renewal, ServiceProvider
from registry.roles import Permission
from registry.services.agent_owners import owns
from registry.services.decision_routing import refuse_decider, route_now, routing_ids
from registry.services.token_size import check_token_fits

_STATEMENT_LIFE = timedelta(minutes=5)
# A used burst is back after 60 s, since none is above a minute's uses. A verifier may learn of the
# end 5 s late, and the clocks of two hosts differ by at most 10 s.
_RATE_LIFE = timedelta(seconds=90)
_CHANGED = "This request changed since it was shown. Look at it again."


def find_grant(reference: str, *, agent: Agent) -> Grant:
    """The agent's own grant with this id. Raises the same NotFoundError for unknown and others'."""
    grant = (
        own_grant(reference, agent=agent).select_related("agent__human", "service_provider").first()
    )
    if grant is None:
        raise NotFoundError
    return grant


def own_grant(reference: str, *, agent: Agent) -> QuerySet[Grant]:
    """The agent's own grant with this id, or none."""
    try:
        return Grant.objects.filter(pk=parse_id(reference), agent=agent)
    except ValueError:
        return Grant.objects.none()


def latest_end(grant: Grant, now: datetime) -> datetime:
    """The latest end an approval at `now` may give: as asked or granted, never past the manifest.

    A renewal gives the life that the agent asked for once more. Whole seconds, because the signed
    statement contains it.
    """
    end = grant.valid_until
    if end is None or grant.waits_for_renewal(now):
        end = now + timedelta(seconds=grant.requested_seconds)
    return min(end, grant.agent.expires_at).replace(microsecond=0)


def approve_grant(
    *,
    grant: Grant,
    human: Human,
    capabilities: Sequence[Capability],
    envelope: Envelope,
    valid_until: datetime,
    actor: Actor,
    now: datetime,
) -> None:
    """Approve a pending grant, or sign one again that waits for it, on these narrowed terms.

    Approvals calls this with a verified signature over exactly these terms. 1. Agent and service
    provider are locked and as the caller read them: key, manifest, audience and allow-list cannot
    change before the commit. 2. The human may decide: the agent's owner, or a person to whom a rule
    sent the request. Agent, owner and service provider are active. 3. The terms only narrow the
    request. 4. Manifest and allow-list still cover them. 5. Compare and swap on state and version:
    of two decisions, one wins. The version stays, because it was signed; a renewal raises it, so
    that a token issued before does not keep what was narrowed. Raises NotFoundError if it is
    another's to decide, InvalidRequestError if the terms widen, GrantChangedError if anything
    changed since the page was rendered.
    """
    renews, ended = grant.waits_for_renewal(now), grant.valid_until
    with transaction.atomic():
        _hold(grant)  # 1
        _check_decidable(grant, now)  # 2
        route = route_now(grant, now)
        refuse_decider(route, human)
        _check_narrows(grant, capabilities, envelope, valid_until, now)  # 3
        check_within_bounds(grant, capabilities)  # 4
        # Narrower terms can be longer: one resource split into many.
        check_token_fits(grant.service_provider, capabilities, envelope)
        changes: dict[str, Any] = {
            "status": Grant.Status.APPROVED,
            "human": human,
            "valid_until": valid_until,
            "decided_at": now,
            "capabilities": [capability.to_json() for capability in capabilities],
            "envelope": envelope.to_json(),
        }
        if renews:
            changes |= {"version": F("version") + 1}
        else:
            follows = now if _follows_another(grant, now) else None
            changes |= {"suspension_cause": "", "suspended_by_owner": False, "follows_at": follows}
        _swap(grant, **changes)  # 5
        Renewal.objects.filter(grant=grant).delete()
        data = _requested_fields(grant) | _granted_fields(grant) | routing_ids(route, human)
        data |= {"valid_until_before": timestamp(ended)} if renews and ended else {}
        personal = _texts(grant) | {"capabilities": grant.capabilities}
        kind = kinds.GRANT_RENEWED if renews else kinds.GRANT_APPROVED
        _record(kind, grant, actor, now, data=data, personal=personal)
        fault_point("approve.before_commit")
        # The commit that counts is that of the caller's transaction, which also holds the receipt.
        transaction.on_commit(lambda: fault_point("approve.after_commit"))


def deny_grant(*, grant: Grant, human: Human, reason: str, actor: Actor, now: datetime) -> None:
    """Deny a pending grant. Approvals calls this with a signed denial.

    By its owner, an administrator, or a person who may decide. Raises NotFoundError,
    GrantChangedError as for approval.
    """
    route = route_now(grant, now)
    if not owns(human, grant.agent) and Permission.DECIDE not in human.permissions:
        refuse_decider(route, human)
    if grant.status_at(now) != Grant.Status.PENDING:
        raise GrantChangedError(_CHANGED)
    with transaction.atomic():
        _swap(
            grant,
            status=Grant.Status.DENIED,
            human=human,
            decided_at=now,
            ended_at=now,
            deny_reason=reason,
        )
        personal = _texts(grant) | ({"deny_reason": reason} if reason else {})
        data = _requested_fields(grant) | routing_ids(route, human)
        _record(kinds.GRANT_DENIED, grant, actor, now, data=data, personal=personal)


def revoke_grant(*, grant: Grant, actor: Actor, now: datetime) -> None:
    """End an approved or suspended grant permanently; if it has ended already, change nothing.

    Raises InvalidStateError if it was never approved.
    """
    if (
        grant.status in {Grant.Status.REVOKED, Grant.Status.EXPIRED}
        and grant.capabilities is not None
    ):
        return
    if grant.status not in {Grant.Status.APPROVED, Grant.Status.SUSPENDED}:
        raise InvalidStateError("Only an approved grant can be revoked.")
    end_grant(grant, Grant.Status.REVOKED, kinds.GRANT_REVOKED, actor, now)


def suspend_grant(
    *,
    grant: Grant,
    actor: Actor,
    now: datetime,
    cause: str = Grant.SuspensionCause.PERSON,
    by_admin: bool = False,
) -> None:
    """Refuse the grant's tokens. The version rises, so those issued so far stay refused.

    A suspended grant can be suspended further, never less: owner and admin suspend it separately,
    the admin whatever its cause, and a cause that needs a signature replaces a person's suspension.
    Raises InvalidStateError otherwise.
    """
    status, causes = grant.status_at(now), Grant.SuspensionCause
    by_owner = cause == causes.PERSON and not by_admin
    of_person = grant.suspension_cause == causes.PERSON
    held_further = (
        not grant.admin_holds if by_admin else of_person and not (by_owner and grant.owner_holds)
    )
    further = status == Grant.Status.SUSPENDED and held_further
    if status != Grant.Status.APPROVED and not further:
        raise InvalidStateError("Only an approved grant can be suspended.")
    needs_signature = further and cause == causes.PERSON
    with transaction.atomic():
        _swap(
            grant,
            status=Grant.Status.SUSPENDED,
            suspension_cause=grant.suspension_cause if needs_signature else cause,
            suspended_by_admin=by_admin or grant.admin_holds,
            suspended_by_owner=by_owner or grant.owner_holds,
            version=F("version") + 1,
        )
        data = {"version": grant.version, "by_admin": by_admin, "before": status}
        _record(kinds.GRANT_SUSPENDED, grant, actor, now, reason=cause, data=data)


def raise_version(*, grant: Grant, cause: str, actor: Actor, now: datetime) -> None:
    """Refuse tokens issued so far: what the grant rests on changed. New ones are given at once."""
    with transaction.atomic():
        _swap(grant, version=F("version") + 1)
        _record(
            kinds.GRANT_VERSION_RAISED,
            grant,
            actor,
            now,
            reason=cause,
            data={"version": grant.version},
        )


def resume_grant(*, grant: Grant, actor: Actor, now: datetime, by_admin: bool = False) -> None:
    """Lift this party's suspension, not the other party's, nor one that needs a signature.

    Approvals calls this with a verified signature over exactly this suspension. Raises
    InvalidStateError if this party did not suspend it, GrantChangedError if it was suspended or
    resumed since the caller read it.
    """
    with transaction.atomic():
        held = Grant.objects.select_for_update(no_key=True).get(pk=grant.pk)
        mine, others = held.owner_holds, held.admin_holds
        if by_admin:
            mine, others = others, held.suspension_cause != Grant.SuspensionCause.PERSON or mine
        if held.status_at(now) != Grant.Status.SUSPENDED or not mine:
            raise InvalidStateError(not_yours_to_resume(held))
        if (held.owner_holds, held.admin_holds) != (grant.owner_holds, grant.admin_holds):
            raise GrantChangedError(_CHANGED)
        changes: dict[str, Any] = {
            "suspended_by_admin" if by_admin else "suspended_by_owner": False
        }
        if not others:
            changes |= {"status": Grant.Status.APPROVED, "suspension_cause": ""}
        _swap(grant, **changes)
        data = {"version": grant.version, "status": grant.status, "by_admin": by_admin}
        _record(kinds.GRANT_RESUMED, grant, actor, now, data=data)


def not_yours_to_resume(row: Agent | Grant) -> str:
    """Why a party that does not suspend this agent or grant cannot resume it."""
    if row.admin_holds:
        return "An administrator suspended this. Only an administrator can resume it."
    if row.owner_holds:
        return "Its owner suspended this. Only its owner can resume it."
    if row.status == Grant.Status.SUSPENDED:
        return "This cannot be resumed: its owner must sign it again on its approval page."
    return "This is not suspended, so it cannot be resumed."


def release_grant(*, grant: Grant, actor: Actor, now: datetime, data: Mapping[str, Any]) -> None:
    """Approve again, on its old terms, what a restore suspended. `data` names approvals' proof.

    Raises GrantChangedError if it waits for anything else, or if what it depends on is inactive or
    allows less now.
    """
    with transaction.atomic():
        _hold(grant)
        person = grant.agent.human
        active = (
            grant.agent.is_active_at(now)
            and grant.service_provider.is_active
            and person
            and person.is_active
        )
        restored = grant.suspension_cause == Grant.SuspensionCause.RESTORED
        if not (active and restored and grant.waits_for_signature(now)):
            raise GrantChangedError(_CHANGED)
        check_within_bounds(grant, parse_capabilities(grant.capabilities))
        _swap(grant, status=Grant.Status.APPROVED, suspension_cause="", suspended_by_owner=False)
        _record(kinds.GRANT_RELEASED, grant, actor, now, data={"version": grant.version, **data})


def end_pending_grants(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """Withdraw the ended agent's pending requests, in the caller's transaction.

    A request decided or withdrawn meanwhile is skipped: else an agent could stop its own revocation
    by withdrawing at the right moment.
    """
    for grant in agent.grants.filter(status=Grant.Status.PENDING).select_related("agent"):
        with suppress(InvalidStateError):
            end_grant(grant, Grant.Status.WITHDRAWN, kinds.GRANT_WITHDRAWN, actor, now)


def expire_grant(*, grant: Grant, actor: Actor, now: datetime) -> None:
    """Record that the grant is past its end. Raises InvalidStateError if not, or if changed."""
    if grant.status == Grant.Status.EXPIRED or grant.status_at(now) != Grant.Status.EXPIRED:
        raise InvalidStateError("This grant has not expired yet.")
    end_grant(grant, Grant.Status.EXPIRED, kinds.GRANT_EXPIRED, actor, now)


def narrowed_members(grant: Grant) -> list[str]:
    """What the human narrowed: `capabilities`, `envelope.<member>`, `valid_until`; or nothing."""
    if grant.capabilities is None or grant.envelope is None or grant.decided_at is None:
        return []
    asked, given = grant.requested_envelope, grant.envelope
    names = ["capabilities"] if grant.capabilities != grant.requested_capabilities else []
    names += [
        f"envelope.{name}"
        for name in sorted({*asked, *given})
        if asked.get(name) != given.get(name)
    ]
    full = grant.decided_at + timedelta(seconds=grant.requested_seconds)
    # The statement is made up to 5 minutes before the decision is recorded: that is no narrowing.
    if grant.valid_until and grant.valid_until + _STATEMENT_LIFE < min(
        full, grant.agent.expires_at
    ):
        names.append("valid_until")
    return names


def check_within_bounds(grant: Grant, capabilities: Sequence[Capability]) -> None:
    """Check that the present manifest and allow-list cover the terms. Raises GrantChangedError."""
    manifest = parse_capabilities(grant.agent.capabilities)
    allowed = [parse_allow_entry(entry) for entry in grant.service_provider.allowed]
    if not narrows(capabilities, manifest) or not narrows(capabilities, allowed):
        raise GrantChangedError(_CHANGED)


def _hold(grant: Grant) -> None:
    """Lock agent and service provider; both must be as read and sealed, the provider active.

    Else a key rotation between this check and the swap would give the grant to a key that no human
    signed for (AP-2). Raises GrantChangedError.
    """
    agent = Agent.objects.select_for_update(no_key=True).get(pk=grant.agent_id)
    provider = ServiceProvider.objects.select_for_update(no_key=True).get(
        pk=grant.service_provider_id
    )
    same = _rests_on(agent, provider) == _rests_on(grant.agent, grant.service_provider)
    if not (same and provider.is_active and agent.is_sealed() and provider.is_sealed()):
        raise GrantChangedError(_CHANGED)


def _follows_another(grant: Grant, now: datetime) -> bool:
    """Whether a grant of this agent here ended so recently that its rate may still be in use."""
    since = now - _RATE_LIFE
    ended = Q(ended_at__gt=since) | Q(valid_until__gt=since, valid_until__lte=now)
    others = Grant.objects.filter(agent=grant.agent_id, service_provider=grant.service_provider_id)
    return others.filter(ended, capabilities__isnull=False).exclude(pk=grant.pk).exists()


def _rests_on(agent: Agent, provider: ServiceProvider) -> tuple[object, ...]:
    whose = (agent.jkt, agent.manifest_sha256, agent.name, agent.status, agent.human_id)
    return (*whose, provider.audience, provider.allowed, provider.name, provider.status)


def _check_narrows(
    grant: Grant,
    capabilities: Sequence[Capability],
    envelope: Envelope,
    valid_until: datetime,
    now: datetime,
) -> None:
    base = parse_capabilities(grant.capabilities or grant.requested_capabilities)
    limits = parse_envelope(grant.requested_envelope if grant.envelope is None else grant.envelope)
    if not capabilities or not narrows(capabilities, base):
        raise InvalidRequestError("You can only narrow what the agent asked for.")
    if not narrows_envelope(envelope, limits):
        raise InvalidRequestError("You can only tighten the limits that the agent asked for.")
    if not now < valid_until <= latest_end(grant, now):
        raise InvalidRequestError("You can only bring the end forward.")
    renews = grant.waits_for_renewal(now)
    if renews and grant.valid_until is not None and valid_until <= grant.valid_until:
        raise InvalidRequestError("A renewal must end later than the grant does.")


def _check_decidable(grant: Grant, now: datetime) -> None:
    agent, service_provider = grant.agent, grant.service_provider
    if agent.human is None or not agent.human.is_active:
        raise NotFoundError
    status = grant.status_at(now)
    again = grant.waits_for_signature(now) or grant.waits_for_renewal(now)
    open_ = status == Grant.Status.PENDING or again
    if not open_ or not agent.is_active_at(now) or not service_provider.is_active:
        raise GrantChangedError(_CHANGED)


def _swap(grant: Grant, **changes: Any) -> None:
    """Change the row only if state and version are as read. Raises GrantChangedError otherwise."""
    unchanged = Grant.objects.filter(pk=grant.pk, status=grant.status, version=grant.version)
    if not unchanged.update(**changes):
        raise GrantChangedError(_CHANGED)
    # Reload only these fields: the loaded agent and service provider stay.
    grant.refresh_from_db(fields=[*changes])


def end_grant(
    grant: Grant, status: str, kind: str, actor: Actor, now: datetime, *, reason: str | None = None
) -> None:
    """Give the grant its last status and record it. Raises InvalidStateError if it changed."""
    with transaction.atomic():
        try:
            _swap(grant, status=status, ended_at=now)
        except GrantChangedError as error:
            raise InvalidStateError("This grant just changed. Look at it again.") from error
        _record(kind, grant, actor, now, reason=reason)
        if status == Grant.Status.REVOKED:
            fault_point("revoke.before_commit")
            transaction.on_commit(lambda: fault_point("revoke.after_commit"))


def _requested_fields(grant: Grant) -> dict[str, Any]:
    return {
        "version": grant.version,
        "requested_envelope": grant.requested_envelope,
        "requested_seconds": grant.requested_seconds,
    }


def _texts(grant: Grant) -> dict[str, Any]:
    return {"requested_capabilities": grant.requested_capabilities}


def _granted_fields(grant: Grant) -> dict[str, Any]:
    return {
        "envelope": grant.envelope,
        "valid_until": timestamp(grant.valid_until) if grant.valid_until else None,
    }


def _record(
    kind: str,
    grant: Grant,
    actor: Actor,
    now: datetime,
    *,
    reason: str | None = None,
    data: Mapping[str, Any] | None = None,
    personal: Mapping[str, Any] | None = None,
) -> None:
    # No verification depends on a grant that was never approved.
    if grant.capabilities is not None:
        publish_change(Subject.GRANT, grant.pk, now=now)
    record(
        kind=kind,
        actor=actor,
        at=now,
        reason=reason,
        agent_id=grant.agent_id,
        human_id=grant.agent.human_id,
        service_provider_id=grant.service_provider_id,
        grant_id=grant.id,
        data=data,
        personal=personal,
    )
