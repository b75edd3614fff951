"""Claiming an agent: its link, its code, and the human who becomes its owner."""

import uuid
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
from registry.services.agent_owners import owns
from registry.services.code_derivation import (
    CLAIM_SECRET_BYTES,
    claim_codes,
    claim_secrets,
    is_one_of,
    read_code,
)
from registry.services.grant_requests import check_claim_fits

CLAIM_LIFE = timedelta(hours=1)
MAX_CLAIM_FAILURES = 5
_ID_BYTES = 16


def claim_url(agent_id: uuid.UUID, claim_number: int) -> str:
    """The link of one claim: the agent's id and 128 secret bits, which are derived, not stored."""
    secret = agent_id.bytes + claim_secrets(agent_id, claim_number)[0]
    return f"{settings.PUBLIC_URL}/claim/{b64u_encode(secret)}/"


def claim_is_live(agent: Agent, now: datetime) -> bool:
    """Whether the present link works: unclaimed, within its hour, fewer than five wrong codes."""
    return (
        agent.status_at(now) == Agent.Status.UNCLAIMED
        and agent.claim_expires_at is not None
        and agent.claim_expires_at > now
        and agent.claim_failures < MAX_CLAIM_FAILURES
    )


def find_claim(secret: str, *, now: datetime, owner: Human | None = None) -> Agent:
    """The unclaimed agent of an open claim link; with `owner`, also one this human claimed by it.

    Raises NotFoundError if we did not make the secret, if it is of an earlier claim, if the agent
    was claimed since, or if its row has no valid seal; ExpiredError if it is the current link but
    no longer live.
    """
    unknown = NotFoundError()
    try:
        raw = b64u_decode(secret)
    except EncodingError:
        raise unknown from None
    if len(raw) != _ID_BYTES + CLAIM_SECRET_BYTES:
        raise unknown
    agent = Agent.objects.filter(pk=uuid.UUID(bytes=raw[:_ID_BYTES])).first()
    number = agent.claim_number if agent else 0
    expected = claim_secrets(uuid.UUID(bytes=raw[:_ID_BYTES]), number)
    if not is_one_of(raw[_ID_BYTES:], expected) or agent is None:
        raise unknown
    if owner is not None and owns(owner, agent):
        return agent
    if agent.status != Agent.Status.UNCLAIMED or not agent.is_sealed():
        raise unknown
    if not claim_is_live(agent, now):
        raise ExpiredError("This link has expired. The agent can show a new one.")
    return agent


def check_claim_code(*, agent: Agent, code: str, actor: Actor, now: datetime) -> None:
    """Compare the typed code with the one the agent shows; the fifth failure ends the link.

    Call it outside any transaction that its refusal would roll back: the count would be lost.
    Raises InvalidRequestError(reason="claim_code"), ExpiredError if the link is no longer live.
    """
    with transaction.atomic():
        # Locked for the comparison: parallel guesses are judged one after the other. Otherwise each
        # could see a count below the limit, and more than five would be judged.
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        # A failure counts against the link that was tried; a newer claim starts from zero.
        if held.claim_number != agent.claim_number or not claim_is_live(held, now):
            raise ExpiredError("This link has expired. The agent can show a new one.")
        expected = claim_codes(held.id, held.claim_number)
        if is_one_of(read_code(code).encode(), (each.encode() for each in expected)):
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
    error = InvalidRequestError("This is not the code that the agent shows.", reason="claim_code")
    error.recorded = True
    raise error


def claim_agent(*, agent: Agent, human: Human, actor: Actor, now: datetime) -> None:
    """Make the human the agent's owner. Approvals calls this with a verified claim statement.

    Raises InvalidStateError if the human is not active, or if since the agent was read it was
    claimed, its link ended or its manifest changed; TooManyPendingGrantsError.
    """
    if not human.is_active:
        raise InvalidStateError("Only an active human can claim an agent.")
    with transaction.atomic():
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        # The claim seals the row: without this check, also a key that an attacker wrote.
        is_ours = held.is_sealed()
        held.human = human
        held.set_seal()
        claimed = is_ours and Agent.objects.filter(
            pk=agent.pk,
            status=Agent.Status.UNCLAIMED,
            manifest_sha256=agent.manifest_sha256,
            claim_number=agent.claim_number,
            claim_failures__lt=MAX_CLAIM_FAILURES,
            claim_expires_at__gt=now,
            expires_at__gt=now,
        ).update(status=Agent.Status.ACTIVE, human=human, claim_expires_at=None, seal=held.seal)
        if not claimed:
            raise InvalidStateError(
                "This agent can no longer be claimed with this link. Ask the agent for a new one."
            )
        check_claim_fits(agent=agent, human=human, now=now)
        record(kind=kinds.AGENT_CLAIMED, actor=actor, at=now, agent_id=agent.id, human_id=human.id)
    agent.refresh_from_db()
