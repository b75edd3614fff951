"""Confirming or denying one transaction above its threshold, signed."""

from datetime import datetime
from typing import Any

from agentauth.protocol.capability import parse_action
from agentauth.protocol.errors import (
    ExpiredError,
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
)
from approvals import consent_texts
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony
from approvals.services.lookalike_warnings import name_warnings
from approvals.services.page_token import Page
from approvals.services.recent_recovery import recovery_marks
from approvals.services.signed_acts import accept_signature, ask_signature
from approvals.services.statement_builders import confirmation as confirmation_statement
from audit.services import Actor
from registry.models import Human
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import confirm, deny, obstacle

DECISIONS = ("confirm", "deny")


def confirmation_page(row: Confirmation, human: Human, *, now: datetime) -> Page:
    """What the confirmation page shows of the act, and the texts of its two buttons."""
    agent, provider = row.grant.agent, row.grant.service_provider
    warnings, marks = name_warnings(agent, human), recovery_marks(human, now=now)
    shown = {
        "agent_name": agent.name,
        "agent_key": agent.jkt,
        "manifest": agent.manifest_sha256,
        "service_name": provider.name,
        "audience": provider.audience,
        "likenesses": warnings,
        "action": row.action,
        "text": {
            decision: consent_texts.confirmation_text(
                agent=agent.name,
                service_provider=provider.name,
                audience=provider.audience,
                action=parse_action(row.action),
                confirmed=decision == "confirm",
                warnings=[*warnings, *marks],
            )
            for decision in DECISIONS
        },
    }
    return Page(Challenge.Purpose.CONFIRMATION, str(row.pk), shown)


def begin_confirmation(
    *, row: Confirmation, human: Human, decision: str, drawn: str, session_key: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of a `confirm` or `deny` and ask for its signature.

    Raises ExpiredError; InvalidStateError if it was decided; GrantChangedError if a yes would have
    no effect; InvalidRequestError for another decision; and what `check_drawn` raises.
    """
    if decision not in DECISIONS:
        raise InvalidRequestError("The decision must be confirm or deny.")
    status = row.status_at(now)
    if status == Confirmation.Status.EXPIRED:
        raise ExpiredError("This request has expired. The agent may ask again.")
    if status != Confirmation.Status.PENDING:
        raise InvalidStateError("This request was already decided.")
    if decision == "confirm" and (why := obstacle(row, now)):
        raise GrantChangedError(why)
    page = confirmation_page(row, human, now=now)
    text = page.shown["text"][decision]
    statement = confirmation_statement(
        row=row,
        human=human,
        decision="confirm" if decision == "confirm" else "deny",
        consent_text=text,
        now=now,
    )
    return ask_signature(
        _ceremony(row, human, session_key),
        human=human,
        statement=statement,
        consent_text=text,
        page=page,
        drawn=drawn,
        now=now,
    )


def finish_confirmation(
    *,
    row: Confirmation,
    human: Human,
    session_key: str,
    credential: object,
    actor: Actor,
    now: datetime,
) -> Receipt:
    """Carry out the signed yes or no.

    Raises InvalidAssertionError, GrantChangedError and what the verifier's services raise.
    """

    def act(challenge: Challenge) -> None:
        decided = confirm if challenge.statement["decision"] == "confirm" else deny
        decided(confirmation=row, human=human, actor=actor, now=now)

    return accept_signature(
        _ceremony(row, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda _challenge: confirmation_page(row, human, now=now),
        act=act,
    )


def _ceremony(row: Confirmation, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.CONFIRMATION, session_key, human, str(row.pk))
