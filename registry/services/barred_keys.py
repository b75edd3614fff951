"""Keys that may never be used again: rotated out, or their private half was sent to us."""

from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import NamedTuple

from django.db import transaction

from agentauth.protocol.keys import PublicKey
from audit import kinds
from audit.log.refusal_counts import RECORDED_PER_MINUTE, Batches, count_refusal
from audit.services import Actor, record
from registry.models import Agent, BarredKey
from registry.services.agents import revoke_agent

DISCLOSED = "private_key_submitted"
# Callers that sent more private keys of no agent in a minute than are barred.
_FLOODS = Batches(seconds=60 / RECORDED_PER_MINUTE)


def is_barred(jkt: str) -> bool:
    """Whether this key was rotated out, or its private half was sent to us."""
    return BarredKey.objects.filter(jkt=jkt).exists()


class Disclosed(NamedTuple):
    """A key whose true private half was sent to us.

    `key` is derived from the private member, never taken from the JWK's public part: otherwise a
    made-up private member could bar any key.
    """

    key: PublicKey
    actor: Actor
    now: datetime


def bar_disclosed_key(*, key: PublicKey, actor: Actor, now: datetime) -> None:
    """`bar_disclosed_keys` of one."""
    bar_disclosed_keys([Disclosed(key, actor, now)])


def bar_disclosed_keys(disclosed: Sequence[Disclosed]) -> None:
    """Bar these keys for ever and revoke the agents that hold them (docs/protocol.md section 1).

    The private values are stored nowhere. Callers can make keys without end. So of keys that no
    agent has, 10 a minute (RECORDED_PER_MINUTE) are barred for each authenticated caller, and 10
    for all other callers together; the rest are only counted.
    """
    prints = [each.key.thumbprint for each in disclosed]
    barred = set(BarredKey.objects.filter(jkt__in=prints).values_list("jkt", flat=True))
    held = set(Agent.objects.filter(jkt__in=prints).values_list("jkt", flat=True))
    for key, actor, now in disclosed:
        # A key that is sent repeatedly must not use up the allowance for others.
        if key.thumbprint not in barred:
            with transaction.atomic():
                if key.thumbprint in held or _may_bar(actor, now):
                    bar_key(jkt=key.thumbprint, reason=DISCLOSED, actor=actor, now=now)
            barred.add(key.thumbprint)


def _may_bar(actor: Actor, now: datetime) -> bool:
    """Whether the caller may have one more key of no agent barred in this minute.

    Beyond that, the process counts in memory for a few seconds: callers that send thousands of keys
    would otherwise all wait for the one row that counts them.
    """
    caller = f"private key {actor.kind} {actor.id}".rstrip()
    if _FLOODS.hold(caller, now=monotonic()):
        return False
    if count_refusal(route=caller, error=DISCLOSED, at=now):
        return True
    waited = _FLOODS.add(caller, now=monotonic()) - 1
    if waited:
        count_refusal(route=caller, error=DISCLOSED, at=now, count=waited)
    return False


def bar_key(*, jkt: str, reason: str, actor: Actor, now: datetime) -> bool:
    """Bar this key for ever and revoke the agent that holds it. False if it was barred before."""
    with transaction.atomic():
        _, created = BarredKey.objects.get_or_create(
            jkt=jkt, defaults={"reason": reason, "barred_at": now}
        )
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
