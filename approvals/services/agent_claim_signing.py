"""Claiming an agent: its link, its short code, and a signature."""

from datetime import datetime
from typing import Any

from approvals import consent_texts
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony
from approvals.services.lookalike_warnings import name_warnings
from approvals.services.page_snapshot_token import Page
from approvals.services.passkey_signature_flow import accept_signature, ask_signature
from approvals.services.recent_recovery import recovery_marks
from approvals.services.statement_builders import claim
from audit.services import Actor
from registry.models import Agent, Human
from registry.services.agent_claims import check_claim_code, claim_agent


def claim_page(agent: Agent, human: Human, *, now: datetime) -> Page:
    """What the claim page shows of the agent, and the text that is signed there."""
    warnings = name_warnings(agent, human)
    shown = {
        "agent_name": agent.name,
        "agent_key": agent.jkt,
        # The manifest's hash covers description, origin and everything the agent may ask for.
        "manifest": agent.manifest_sha256,
        "likenesses": warnings,
        # A link renewed meanwhile is another claim: the code that was typed belongs to this one.
        "claim_number": agent.claim_number,
        "text": consent_texts.claim_text(
            agent=agent.name, jkt=agent.jkt, warnings=[*warnings, *recovery_marks(human, now=now)]
        ),
    }
    return Page(Challenge.Purpose.CLAIM, str(agent.pk), shown)


def begin_claim(
    *,
    agent: Agent,
    human: Human,
    code: str,
    drawn: str,
    session_key: str,
    actor: Actor,
    now: datetime,
) -> dict[str, Any]:
    """Check the code the agent shows, then ask for the signature of the claim.

    Raises InvalidRequestError(reason="claim_code") for a wrong code, ExpiredError once the link has
    ended, and what `check_drawn` raises.
    """
    check_claim_code(agent=agent, code=code, actor=actor, now=now)
    page = claim_page(agent, human, now=now)
    text = page.shown["text"]
    statement = claim(agent=agent, human=human, consent_text=text, now=now)
    return ask_signature(
        _ceremony(agent, human, session_key),
        human=human,
        statement=statement,
        consent_text=text,
        page=page,
        drawn=drawn,
        now=now,
    )


def finish_claim(
    *, agent: Agent, human: Human, session_key: str, credential: object, actor: Actor, now: datetime
) -> Receipt:
    """Make the human the owner, as signed.

    Raises InvalidAssertionError, GrantChangedError, InvalidStateError.
    """

    def act(_row: Challenge) -> None:
        claim_agent(agent=agent, human=human, actor=actor, now=now)

    return accept_signature(
        _ceremony(agent, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda _row: claim_page(agent, human, now=now),
        act=act,
    )


def _ceremony(agent: Agent, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.CLAIM, session_key, human, str(agent.pk))
