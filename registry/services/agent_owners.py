"""Whose an agent is. The owner in its row counts only under the row's seal (ADR 49).

Code that acts for an owner, or shows a person what is theirs, asks here. Acts that only end
something (deletion of a person, expiry, an administrator's revocation) take the row as it is.
"""

import uuid
from collections.abc import Collection

from django.db.models import QuerySet

from kms.row_seals import select_sealed
from registry.models import Agent, Human

_FIELDS = (*Agent.SEALED, "seal")


def own_agents(human: Human) -> QuerySet[Agent]:
    """The person's agents. One query here, which checks the seals, and one when it is read."""
    return Agent.objects.filter(pk__in=own_agent_ids(human))


def own_agent_ids(human: Human) -> list[uuid.UUID]:
    """The ids of the person's agents, in one query."""
    rows = Agent.objects.filter(human=human).only(*_FIELDS).order_by("pk")
    return [row.pk for row in select_sealed(rows)]


def owns(human: Human, agent: Agent) -> bool:
    """Whether the agent is this person's. One query if its row says so."""
    return agent.human_id == human.pk and agent.is_sealed()


def owners_of(agents: Collection[uuid.UUID | str]) -> dict[uuid.UUID, uuid.UUID]:
    """The owners of those of these agents that have one, by the agent's id, in one query."""
    rows = Agent.objects.filter(pk__in=agents, human__isnull=False).only(*_FIELDS)
    return {row.pk: row.human_id for row in select_sealed(rows) if row.human_id is not None}
