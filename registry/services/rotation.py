"""How an agent takes another key: the old one is dead in the same moment, and for ever."""

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
from audit.faults import fault_point
from audit.services import Actor, record
from kms.state import Subject, publish_change
from registry.models import Agent, BarredKey
from registry.services.grant_changes import follow_new_key
from registry.services.keys import is_barred

ROTATED = "rotated"


def rotate_agent_key(*, agent: Agent, change: VerifiedKeyChange, actor: Actor, now: datetime) -> Agent:
    """Give the agent its next key, and return it as it then is (docs/protocol.md section 5).

    All in one transaction, so that a crash leaves the old key alone or the new one alone. 1. The row is locked; of
    two rotations at once one finds the key it was made for gone. 2. Only an active agent, whose key we wrote. 3. The next key is nobody's
    and never was. 4. The swap; tokens bound to the old key are refused from here on, since they are compared with the
    agent's key at use. 5. The old key is barred. 6. The grants follow.

    Raises InvalidStateError (1), InvalidClientError, AgentInactiveError (2), KeyInUseError (3).
    """
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)  # 1
        _check_may_rotate(agent, change, now)  # 2
        if is_barred(change.jkt):  # 3
            raise _taken()
        agent.jkt, agent.public_jwk = change.jkt, dict(change.key.jwk)
        agent.set_seal()
        try:
            with transaction.atomic():
                agent.save(update_fields=["jkt", "public_jwk", "seal"])  # 4
        except IntegrityError:
            raise _taken() from None
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
    # A key that was written into the row would get a seal by a rotation.
    if agent.status == Agent.Status.REVOKED or is_barred(change.old_jkt) or not agent.is_sealed():
        raise InvalidClientError("No agent is registered with this key.")
    if agent.jkt != change.old_jkt:
        raise InvalidStateError("The agent's key just changed. Look at it again.")
    status = agent.status_at(now)
    if status != Agent.Status.ACTIVE:
        raise AgentInactiveError(f"This agent is {status} and may not change its key.")


def _taken() -> KeyInUseError:
    # One answer for a key in use and for one that was barred: either way a fresh one is needed.
    return KeyInUseError("This key is or was somebody's. Make a new one.")
