"""Claiming an agent: its link, its short code, and a signature."""

from datetime import datetime
from typing import Any

from approvals import sentences
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony
from approvals.services.likeness import name_warnings
from approvals.services.signatures import accept_signature, ask_signature
from approvals.services.statements import claim
from audit.services import Actor
from registry.models import Agent, Human
from registry.services.agents import check_claim_code, claim_agent


def begin_claim(
    *, agent: Agent, human: Human, code: str, session_key: str, actor: Actor, now: datetime
) -> dict[str, Any]:
    """Check the code the agent shows, then ask for the signature of the claim.

    Raises InvalidRequestError(reason="claim_code") for a wrong code, ExpiredError once the link has ended.
    """
    check_claim_code(agent=agent, code=code, actor=actor, now=now)
    text = sentences.claim_text(agent=agent.name, jkt=agent.jkt, warnings=name_warnings(agent, human))
    statement = claim(agent=agent, human=human, consent_text=text, now=now)
    return ask_signature(
        _ceremony(agent, human, session_key),
        human=human,
        statement=statement,
        consent_text=text,
        now=now,
        # A link renewed meanwhile is another claim: the code that was typed belonged to this one.
        data={"claim_number": agent.claim_number},
    )


def finish_claim(
    *, agent: Agent, human: Human, session_key: str, credential: object, actor: Actor, now: datetime
) -> Receipt:
    """Make the human the owner, as signed. Raises InvalidAssertionError, InvalidStateError."""

    def act(row: Challenge) -> None:
        agent.claim_number = row.data["claim_number"]
        # What was signed names one manifest: an agent that renamed itself meanwhile is not claimed by it.
        agent.manifest_sha256 = row.statement["agent"]["manifest_sha256"]
        claim_agent(agent=agent, human=human, actor=actor, now=now)

    return accept_signature(
        _ceremony(agent, human, session_key), human=human, credential=credential, now=now, act=act
    )


def _ceremony(agent: Agent, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.CLAIM, session_key, human, str(agent.pk))
