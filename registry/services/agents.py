"""An agent's life after registration: suspended, resumed, revoked. Claims: agent_claims.py."""

from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Coalesce

from agentauth.protocol.errors import GrantChangedError, InvalidStateError
from audit import kinds
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import Agent, Human
from registry.services.agent_owners import own_agents
from registry.services.grants import end_pending_grants, not_yours_to_resume

# Agents that one transaction of `suspend_all_agents` locks. Claims, manifest renewals, requests and
# approvals of these agents wait for its commit; verification does not.
AGENTS_PER_TRANSACTION: Final = 200


def suspend_agent(*, agent: Agent, actor: Actor, now: datetime, by_admin: bool = False) -> None:
    """Refuse the agent's tokens until each party that suspended it has resumed it.

    The agent may still read, withdraw, revoke and delete itself. The owner and the admins are two
    parties. An expired agent can be suspended too, since it could renew its manifest at any time.
    Raises InvalidStateError if this party already suspends it, or its state does not allow it.
    """
    with transaction.atomic():
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        by_other_only = held.status == Agent.Status.SUSPENDED and not _is_suspended_by(
            held, admin=by_admin
        )
        may_act = (
            held.status in {Agent.Status.ACTIVE, Agent.Status.EXPIRED} and held.human_id is not None
        )
        if not (may_act or by_other_only):
            raise InvalidStateError(
                "This agent cannot be suspended: it must be claimed, and active, expired or "
                "suspended by the other party only."
            )
        Agent.objects.filter(pk=agent.pk).update(
            status=Agent.Status.SUSPENDED,
            suspended_by_admin=by_admin or held.admin_holds,
            suspended_by_owner=held.owner_holds or not by_admin,
            suspensions=(held.suspensions or 0) + 1,
        )
        agent.refresh_from_db()
        _publish_and_record(kinds.AGENT_SUSPENDED, agent, actor, now, by_admin=by_admin)


def suspend_all_agents(*, human: Human, actor: Actor, now: datetime) -> int:
    """Suspend every agent that its owner could suspend; returns how many.

    Each transaction suspends at most AGENTS_PER_TRANSACTION agents and records one event for each.
    If one fails, the earlier ones stay suspended; call again to continue.
    """
    suspended = 0
    while done := _suspend_next(human, actor, now):
        suspended += done
    return suspended


def suspendable_agents(human: Human) -> QuerySet[Agent]:
    """The human's agents that `suspend_agent` would suspend for them: the same rule as a query."""
    by_admin_only = Q(status=Agent.Status.SUSPENDED, suspended_by_admin=True) & ~Q(
        suspended_by_owner=True
    )
    able = Q(status__in=[Agent.Status.ACTIVE, Agent.Status.EXPIRED]) | by_admin_only
    return own_agents(human).filter(able)


def _suspend_next(human: Human, actor: Actor, now: datetime) -> int:
    with transaction.atomic():
        # In id order, as everywhere that locks several agents, to avoid deadlocks.
        rows = suspendable_agents(human).order_by("id").select_for_update(no_key=True)
        chosen = list(rows[:AGENTS_PER_TRANSACTION])
        counted = Coalesce(F("suspensions"), Value(0)) + 1
        # An agent that an administrator suspended keeps `suspended_by_admin`.
        Agent.objects.filter(pk__in=[agent.pk for agent in chosen]).update(
            status=Agent.Status.SUSPENDED, suspended_by_owner=True, suspensions=counted
        )
        for agent in chosen:
            _publish_and_record(kinds.AGENT_SUSPENDED, agent, actor, now, by_admin=False)
    return len(chosen)


def resume_agent(*, agent: Agent, actor: Actor, now: datetime, by_admin: bool = False) -> None:
    """Lift this party's suspension.

    The agent stays suspended if the other party suspends it too. Else it is active, or expired if
    its manifest has ended. The caller (approvals) has verified a signature over this suspension,
    and `agent` is the row that was signed for. Raises InvalidStateError if this party did not
    suspend it, GrantChangedError if it was suspended or resumed since the caller read it.
    """
    with transaction.atomic():
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        if not _is_suspended_by(held, admin=by_admin):
            raise InvalidStateError(not_yours_to_resume(held))
        stays = _is_suspended_by(held, admin=not by_admin)
        if held.suspensions != agent.suspensions or stays != _is_suspended_by(
            agent, admin=not by_admin
        ):
            raise GrantChangedError(
                "This was suspended or resumed in the meantime. Reload the page."
            )
        status = Agent.Status.SUSPENDED if stays else Agent.Status.ACTIVE
        Agent.objects.filter(pk=agent.pk).update(
            status=status,
            suspended_by_admin=stays and not by_admin,
            suspended_by_owner=stays and by_admin,
        )
        agent.refresh_from_db()
        _publish_and_record(
            kinds.AGENT_RESUMED, agent, actor, now, by_admin=by_admin, status=agent.status_at(now)
        )


def _is_suspended_by(agent: Agent, *, admin: bool) -> bool:
    return agent.admin_holds if admin else agent.owner_holds


def revoke_agent(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """End the agent permanently: its key and tokens are refused everywhere, its requests withdrawn.

    Its approved grants keep their state: at each use, a token is refused because the agent is
    revoked. Revoking it again changes nothing.
    """
    with transaction.atomic():
        living = Agent.objects.filter(pk=agent.pk).exclude(status=Agent.Status.REVOKED)
        revoked = living.update(status=Agent.Status.REVOKED)
        agent.refresh_from_db()
        if revoked:
            _publish_and_record(kinds.AGENT_REVOKED, agent, actor, now)
            end_pending_grants(agent=agent, actor=actor, now=now)


def _publish_and_record(
    kind: str, agent: Agent, actor: Actor, now: datetime, **data: object
) -> None:
    publish_change(Subject.AGENT, agent.pk, now=now)
    record(kind=kind, actor=actor, at=now, agent_id=agent.id, human_id=agent.human_id, data=data)
