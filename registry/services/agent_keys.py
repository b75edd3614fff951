"""Agents' keys: which agent may call with one. Barred keys: barred_keys.py."""

from collections.abc import Collection
from typing import cast

from django.db.models import Exists, OuterRef

from audit.db.prebuilt_sql import SelectQuery, all_but
from registry.models import Agent, BarredKey

_HOLDER = SelectQuery(
    "SELECT {}, EXISTS (SELECT 1 FROM registry_barredkey barred WHERE barred.jkt = agent.jkt)"
    " FROM registry_agent agent WHERE agent.jkt = %s",
    # Deferred: the long texts are read only where they are shown.
    agent=all_but(Agent, "manifest", "public_jwk", "description", "created_at"),
)


def holder_of(jkt: str) -> Agent | None:
    """The agent that may call with this key: not revoked, and its key is not barred. One query."""
    for agent, barred in _HOLDER.ask(jkt):
        if may_call(agent, barred=barred):
            return cast("Agent", agent)
    return None


def callers_with(jkts: Collection[str]) -> dict[str, bool]:
    """The keys whose agent `holder_of` finds, and whether a human claimed it. One query."""
    barred = BarredKey.objects.filter(jkt=OuterRef("jkt"))
    agents = Agent.objects.filter(~Exists(barred), jkt__in=jkts).exclude(
        status=Agent.Status.REVOKED
    )
    return {jkt: human_id is not None for jkt, human_id in agents.values_list("jkt", "human_id")}


def may_call(agent: Agent, *, barred: bool) -> bool:
    """Whether an agent read together with its key may call; `barred`: that key is barred."""
    return not barred and agent.status != Agent.Status.REVOKED
