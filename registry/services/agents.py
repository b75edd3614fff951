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

# Agents that one transaction of `suspend_all_agents` locks: their decisions wait for its commit.
AT_ONCE: Final = 200


def suspend_agent(*, agent: Agent, actor: Actor, now: datetime, by_admin: bool = False) -> None:
    """Refuse the agent's tokens until each party that suspended it has resumed it.

    The agent may still read, withdraw, revoke and delete itself. The owner and the admins are two
    parties. An expired agent can be suspended too, since it could renew its manifest at any time.
    Raises InvalidStateError if this party already suspends it, or its state does not allow it.
    """
    with transaction.atomic():
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        further = held.status == Agent.Status.SUSPENDED and not _holds(held, by_admin=by_admin)
        may_act = (
            held.status in {Agent.Status.ACTIVE, Agent.Status.EXPIRED} and held.human_id is not None
        )
        if not (may_act or further):
            raise InvalidStateError(
                "Only a claimed agent that is active or expired can be suspended."
            )
        Agent.objects.filter(pk=agent.pk).update(
            status=Agent.Status.SUSPENDED,
            suspended_by_admin=by_admin or held.admin_holds,
            suspended_by_owner=held.owner_holds or not by_admin,
            suspensions=(held.suspensions or 0) + 1,
        )
        _record(kinds.AGENT_SUSPENDED, agent, actor, now, by_admin=by_admin)
    agent.refresh_from_db()


def suspend_all_agents(*, human: Human, actor: Actor, now: datetime) -> int:
    """Suspend every agent that its owner could suspend; returns how many.

    AT_ONCE in each transaction, with one event each. If one fails, those before it stay suspended,
    and the same call continues with the rest.
    """
    suspended = 0
    while done := _suspend_next(human, actor, now):
        suspended += done
    return suspended


def suspendable(human: Human) -> QuerySet[Agent]:
    """The human's agents that `suspend_agent` would suspend for them."""
    states = Agent.Status
    only_by_admin = Q(status=states.SUSPENDED, suspended_by_admin=True) & ~Q(
        suspended_by_owner=True
    )
    able = Q(status__in=[states.ACTIVE, states.EXPIRED]) | only_by_admin
    return own_agents(human).filter(able)


def _suspend_next(human: Human, actor: Actor, now: datetime) -> int:
    with transaction.atomic():
        # In id order, as in every change of many agents, so that none deadlock.
        rows = suspendable(human).order_by("id").select_for_update(no_key=True)
        chosen = list(rows[:AT_ONCE])
        counted = Coalesce(F("suspensions"), Value(0)) + 1
        # What an administrator suspended is already in this state: `suspended_by_admin` stays.
        Agent.objects.filter(pk__in=[agent.pk for agent in chosen]).update(
            status=Agent.Status.SUSPENDED, suspended_by_owner=True, suspensions=counted
        )
        for agent in chosen:
            _record(kinds.AGENT_SUSPENDED, agent, actor, now, by_admin=False)
    return len(chosen)


def resume_agent(*, agent: Agent, actor: Actor, now: datetime, by_admin: bool = False) -> None:
    """Lift this party's suspension.

    The agent stays suspended if the other party suspends it too. Else it is active, or expired if
    its manifest has ended. Approvals calls this with a verified signature over exactly this
    suspension. Raises InvalidStateError if this party did not suspend it, GrantChangedError if it
    was suspended or resumed since the caller read it.
    """
    with transaction.atomic():
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        if not _holds(held, by_admin=by_admin):
            raise InvalidStateError(not_yours_to_resume(held))
        stays = _holds(held, by_admin=not by_admin)
        if held.suspensions != agent.suspensions or stays != _holds(agent, by_admin=not by_admin):
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
        _record(
            kinds.AGENT_RESUMED, agent, actor, now, by_admin=by_admin, status=agent.status_at(now)
        )


def _holds(agent: Agent, *, by_admin: bool) -> bool:
    return agent.admin_holds if by_admin else agent.owner_holds


def revoke_agent(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """End the agent permanently: its key and tokens are refused everywhere, its requests withdrawn.

    Its approved grants keep their state: at each use, a token is refused because the agent is
    revoked. Revoking it again changes nothing.
    """
    with transaction.atomic():
        living = Agent.objects.filter(pk=agent.pk).exclude(status=Agent.Status.REVOKED)
        if living.update(status=Agent.Status.REVOKED):
            _record(kinds.AGENT_REVOKED, agent, actor, now)
            end_pending_grants(agent=agent, actor=actor, now=now)
    agent.refresh_from_db()


def _record(kind: str, agent: Agent, actor: Actor, now: datetime, **data: object) -> None:
    publish_change(Subject.AGENT, agent.pk, now=now)
    record(kind=kind, actor=actor, at=now, agent_id=agent.id, human_id=agent.human_id, data=data)
