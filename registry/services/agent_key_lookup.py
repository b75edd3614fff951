"""Agents' keys: which agent may call with one. Barred keys: barred_keys.py."""

from collections.abc import Collection
from typing import cast

from django.db.models import Exists, OuterRef

from audit.db.prebuilt_sql import SelectQuery, all_but
from kms.row_seals import ENDED
from registry.models import Agent, BarredKey

_HOLDER = SelectQuery(
    "SELECT {}, EXISTS (SELECT 1 FROM registry_barredkey barred WHERE barred.jkt = agent.jkt),"  # noqa: S608 — our own text
    f" {ENDED.format('agent.seal')} FROM registry_agent agent WHERE agent.jkt = %s",
    # Deferred: the long texts are read only where they are shown.
    agent=all_but(Agent, "manifest", "public_jwk", "description", "created_at"),
)


def holder_of(jkt: str) -> Agent | None:
    """The agent that may call with this key, in one query."""
    for agent, barred, seal_ended in _HOLDER.ask(jkt):
        if may_call(agent, barred=barred, seal_ended=seal_ended):
            return cast("Agent", agent)
    return None


def callers_with(jkts: Collection[str]) -> dict[str, bool]:
    """The keys of agents that may call, and whether a human claimed them, seals unchecked.

    One query.
    """
    barred = BarredKey.objects.filter(jkt=OuterRef("jkt"))
    agents = Agent.objects.filter(~Exists(barred), jkt__in=jkts).exclude(
        status=Agent.Status.REVOKED
    )
    return {jkt: human_id is not None for jkt, human_id in agents.values_list("jkt", "human_id")}


def may_call(agent: Agent, *, barred: bool, seal_ended: bool) -> bool:
    """Whether an agent may call: not revoked, its key not barred, key and owner sealed.

    `barred` and `seal_ended` are read with it. Whatever it asks for then is for its own owner.
    """
    is_living = not barred and agent.status != Agent.Status.REVOKED
    return is_living and agent.is_sealed(ended=seal_ended)
