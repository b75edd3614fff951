"""Keys of agents that may never be used again."""

from collections.abc import Collection
from datetime import datetime
from typing import cast

from django.db import transaction
from django.db.models import Exists, OuterRef

from agentauth.protocol.keys import PublicKey
from audit import kinds
from audit.refusals import count_refusal
from audit.services import Actor, record
from audit.statements import Question, all_but
from registry.models import Agent, BarredKey
from registry.services.agents import revoke_agent

DISCLOSED = "private_key_submitted"

_HOLDER = Question(
    "SELECT {}, EXISTS (SELECT 1 FROM registry_barredkey barred WHERE barred.jkt = agent.jkt)"
    " FROM registry_agent agent WHERE agent.jkt = %s",
    # The long texts are read where they are shown.
    agent=all_but(Agent, "manifest", "public_jwk", "description", "created_at"),
)


def holder_of(jkt: str) -> Agent | None:
    """The agent that may call with this key: it holds it, and neither of them was ended for good. One query."""
    for agent, barred in _HOLDER.ask(jkt):
        if may_call(agent, barred=barred):
            return cast("Agent", agent)
    return None


def callers_with(jkts: Collection[str]) -> dict[str, bool]:
    """Of these keys those whose agent `holder_of` finds, and whether a person claimed that agent. One query."""
    barred = BarredKey.objects.filter(jkt=OuterRef("jkt"))
    agents = Agent.objects.filter(~Exists(barred), jkt__in=jkts).exclude(status=Agent.Status.REVOKED)
    return {jkt: human_id is not None for jkt, human_id in agents.values_list("jkt", "human_id")}


def may_call(agent: Agent, *, barred: bool) -> bool:
    """Whether an agent that is read with its key may call; `barred`: that key is barred."""
    return not barred and agent.status != Agent.Status.REVOKED


def is_barred(jkt: str) -> bool:
    """Whether this key was rotated out, or its private half was shown to us."""
    return BarredKey.objects.filter(jkt=jkt).exists()


def bar_disclosed_key(*, key: PublicKey, actor: Actor, now: datetime) -> None:
    """Bar for ever the key whose true private half was sent to us, and revoke the agent that holds it.

    The caller passes what the private member derives, never what the JWK claims: otherwise anybody could bar
    anybody's key with a made-up private member. The private value itself is kept nowhere (docs/protocol.md section 1).
    Callers can make keys without end: of those that no agent has, each caller has so many a minute barred, all that are
    not authenticated together, and the rest are counted.
    """
    with transaction.atomic():
        # Else one key, sent again and again, would use up what others are to be barred by.
        if is_barred(key.thumbprint):
            return
        held = Agent.objects.filter(jkt=key.thumbprint).exists()
        caller = f"private key {actor.kind} {actor.id}".rstrip()
        if held or count_refusal(route=caller, error=DISCLOSED, at=now):
            bar_key(jkt=key.thumbprint, reason=DISCLOSED, actor=actor, now=now)


def bar_key(*, jkt: str, reason: str, actor: Actor, now: datetime) -> bool:
    """Bar the key with this thumbprint for ever, and revoke the agent that holds it. False if it was barred before."""
    with transaction.atomic():
        _, created = BarredKey.objects.get_or_create(jkt=jkt, defaults={"reason": reason, "barred_at": now})
        if not created:
            return False
        agent = Agent.objects.filter(jkt=jkt).first()
        record(
            kind=kinds.AGENT_KEY_BARRED,
            actor=actor,
            at=now,
            reason=reason,
            agent_id=agent.id if agent else None,
            human_id=agent.human_id if agent else None,
            data={"jkt": jkt},
        )
        if agent is not None and agent.status != Agent.Status.REVOKED:
            revoke_agent(agent=agent, actor=actor, now=now)
    return True
