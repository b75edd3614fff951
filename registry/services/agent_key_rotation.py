"""Key rotation of an agent: the old key is dead in the same moment, and for ever."""

from datetime import datetime

from django.db import IntegrityError, transaction

from agentauth.protocol.errors import (
    AgentInactiveError,
    InvalidClientError,
    InvalidStateError,
    KeyInUseError,
)
from agentauth.protocol.key_change import VerifiedKeyChange
from audit import kinds
from audit.fault_injection import fault_point
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import Agent, BarredKey
from registry.services.barred_keys import is_barred
from registry.services.dependent_grant_suspension import follow_new_key

ROTATED = "rotated"


def rotate_agent_key(
    *, agent: Agent, change: VerifiedKeyChange, actor: Actor, now: datetime
) -> Agent:
    """Give the agent its new key; returns the agent (docs/protocol.md section 5).

    One transaction, so that a crash leaves exactly one of the two keys valid.
    1. Lock the row. Of two rotations in parallel, the second finds its old key gone.
    2. Only an active agent, whose key this registry wrote.
    3. The new key belongs to no agent and never did.
    4. Swap. Tokens bound to the old key are refused from here on: each use compares them with the
       agent's key.
    5. Bar the old key.
    6. The grants follow.

    Raises InvalidStateError (1), InvalidClientError, AgentInactiveError (2), KeyInUseError (3).
    """
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)  # 1
        _check_may_rotate(agent, change, now)  # 2
        if is_barred(change.jkt):  # 3
            raise _key_in_use_error()
        agent.jkt, agent.public_jwk = change.jkt, dict(change.key.jwk)
        agent.set_seal()
        try:
            with transaction.atomic():
                agent.save(update_fields=["jkt", "public_jwk", "seal"])  # 4
        except IntegrityError:
            raise _key_in_use_error() from None
        BarredKey.objects.create(jkt=change.old_jkt, reason=ROTATED, barred_at=now)  # 5
        publish_change(Subject.AGENT, agent.pk, now=now)
        suspended = follow_new_key(agent=agent, actor=actor, now=now)  # 6
        record(
            kind=kinds.AGENT_KEY_ROTATED,
            actor=actor,
            at=now,
            agent_id=agent.id,
            human_id=agent.human_id,
            data={"old_jkt": change.old_jkt, "jkt": agent.jkt, "grants_suspended": suspended},
        )
        fault_point("rotate.before_commit")
        transaction.on_commit(lambda: fault_point("rotate.after_commit"))
    return agent


def _check_may_rotate(agent: Agent, change: VerifiedKeyChange, now: datetime) -> None:
    # A rotation seals the row: an unsealed key, which an attacker may have written, would be valid.
    if agent.status == Agent.Status.REVOKED or is_barred(change.old_jkt) or not agent.is_sealed():
        raise InvalidClientError("No agent is registered with this key.")
    if agent.jkt != change.old_jkt:
        raise InvalidStateError("The agent's key just changed. Look at it again.")
    status = agent.status_at(now)
    if status != Agent.Status.ACTIVE:
        raise AgentInactiveError(f"This agent is {status} and may not change its key.")


def _key_in_use_error() -> KeyInUseError:
    # One answer for a key in use and one that was barred: either way the agent needs a new one.
    return KeyInUseError("This key is or was in use. Create a new one.")
