"""The life of an agent after it registered: claimed by a human, suspended, resumed, revoked."""

import hmac
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import (
    EncodingError,
    ExpiredError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from audit import kinds
from audit.services import Actor, record
from registry.models import Agent, Human
from registry.services.codes import CLAIM_SECRET_BYTES, claim_code, claim_secret, read_code
from registry.services.grants import end_pending_grants

CLAIM_LIFE = timedelta(hours=1)
MAX_CLAIM_FAILURES = 5
_ID_BYTES = 16


def claim_url(agent_id: uuid.UUID, claim_number: int) -> str:
    """The link of one claim: it names the agent, and its 128 secret bits are derived anew each time."""
    secret = agent_id.bytes + claim_secret(agent_id, claim_number)
    return f"{settings.PUBLIC_URL}/claim/{b64u_encode(secret)}/"


def claim_link(agent: Agent) -> tuple[str, str]:
    """The link and the short code of the agent's present claim (docs/protocol.md section 5)."""
    url = claim_url(agent.id, agent.claim_number)
    return url, claim_code(agent.id, agent.claim_number)


def claim_is_live(agent: Agent, now: datetime) -> bool:
    """Whether the present link still works: unclaimed, within its hour, fewer than five wrong codes."""
    return (
        agent.status_at(now) == Agent.Status.UNCLAIMED
        and agent.claim_expires_at is not None
        and agent.claim_expires_at > now
        and agent.claim_failures < MAX_CLAIM_FAILURES
    )


def find_claim(secret: str, *, now: datetime) -> Agent:
    """The unclaimed agent of a live claim link.

    Raises NotFoundError for a secret we did not make, of an earlier claim or of an agent claimed since;
    ExpiredError for the present link once it has ended.
    """
    unknown = NotFoundError("There is nothing here, or it is not yours.")
    try:
        raw = b64u_decode(secret)
    except EncodingError:
        raise unknown from None
    if len(raw) != _ID_BYTES + CLAIM_SECRET_BYTES:
        raise unknown
    agent = Agent.objects.filter(pk=uuid.UUID(bytes=raw[:_ID_BYTES])).first()
    number = agent.claim_number if agent else 0
    expected = claim_secret(uuid.UUID(bytes=raw[:_ID_BYTES]), number)
    if not hmac.compare_digest(raw[_ID_BYTES:], expected) or agent is None:
        raise unknown
    if agent.status != Agent.Status.UNCLAIMED:
        raise unknown
    if not claim_is_live(agent, now):
        raise ExpiredError("This link has ended. The agent can show a new one.")
    return agent


def check_claim_code(*, agent: Agent, code: str, actor: Actor, now: datetime) -> None:
    """Compare what the human typed with the code the agent shows; the fifth failure ends the link.

    Call it outside any transaction that its refusal would roll back, or the count would be lost.
    Raises InvalidRequestError(reason="claim_code"), ExpiredError once the link has ended.
    """
    with transaction.atomic():
        # Held while it is compared: guesses that arrive together are judged one after the other, else more than
        # five would be.
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        # Counted against the link that was tried; a newer claim starts from zero.
        if held.claim_number != agent.claim_number or not claim_is_live(held, now):
            raise ExpiredError("This link has ended. The agent can show a new one.")
        expected = claim_code(held.id, held.claim_number)
        if hmac.compare_digest(read_code(code).encode(), expected.encode()):
            return
        held.claim_failures += 1
        held.save(update_fields=["claim_failures"])
        record(
            kind=kinds.AGENT_CLAIM_FAILED,
            actor=actor,
            at=now,
            outcome="denied",
            reason="locked" if held.claim_failures >= MAX_CLAIM_FAILURES else "wrong_code",
            agent_id=held.id,
            data={"failures": held.claim_failures},
        )
    raise InvalidRequestError("This is not the code the agent shows.", reason="claim_code")


def claim_agent(*, agent: Agent, human: Human, actor: Actor, now: datetime) -> None:
    """Make the human the agent's owner. Called by approvals once the claim statement's signature was proved.

    Raises InvalidStateError where the agent was claimed meanwhile, its link ended, or the human is not active.
    """
    if not human.is_active:
        raise InvalidStateError("Only an active human can claim an agent.")
    with transaction.atomic():
        claimed = Agent.objects.filter(
            pk=agent.pk,
            status=Agent.Status.UNCLAIMED,
            claim_number=agent.claim_number,
            claim_failures__lt=MAX_CLAIM_FAILURES,
            claim_expires_at__gt=now,
            expires_at__gt=now,
        ).update(status=Agent.Status.ACTIVE, human=human, claim_expires_at=None)
        if not claimed:
            raise InvalidStateError("This agent can no longer be claimed with this link.")
        record(kind=kinds.AGENT_CLAIMED, actor=actor, at=now, agent_id=agent.id, human_id=human.id)
    agent.refresh_from_db()


def suspend_agent(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """Refuse every token of the agent, and every act, until resumed. Raises InvalidStateError."""
    _move(agent, [Agent.Status.ACTIVE], Agent.Status.SUSPENDED, kinds.AGENT_SUSPENDED, actor, now)


def resume_agent(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """Undo a suspension. Raises InvalidStateError."""
    _move(agent, [Agent.Status.SUSPENDED], Agent.Status.ACTIVE, kinds.AGENT_RESUMED, actor, now)


def revoke_agent(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """End the agent for good: its key is refused everywhere, its tokens at every verifier, its requests end.

    Its approved grants keep their state: a token is refused because its agent is revoked, read at use.
    Revoking it again changes nothing.
    """
    old = [status for status in Agent.Status if status != Agent.Status.REVOKED]
    with transaction.atomic():
        try:
            _move(agent, old, Agent.Status.REVOKED, kinds.AGENT_REVOKED, actor, now)
        except InvalidStateError:
            return
        end_pending_grants(agent=agent, actor=actor, now=now)


def _move(agent: Agent, old: Sequence[str], new: str, kind: str, actor: Actor, now: datetime) -> None:
    with transaction.atomic():
        if not Agent.objects.filter(pk=agent.pk, status__in=old).update(status=new):
            raise InvalidStateError(f"The agent cannot become {new} from where it is.")
        record(kind=kind, actor=actor, at=now, agent_id=agent.id, human_id=agent.human_id)
    agent.refresh_from_db()
