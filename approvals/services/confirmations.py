"""Confirming or denying one transaction above its threshold, signed."""

from datetime import datetime
from typing import Any

from agentauth.protocol.capability import parse_action
from agentauth.protocol.errors import ExpiredError, InvalidRequestError, InvalidStateError
from approvals import sentences
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony
from approvals.services.likeness import name_warnings
from approvals.services.signatures import accept_signature, ask_signature
from approvals.services.statements import confirmation as confirmation_statement
from audit.services import Actor
from registry.models import Human
from verifier.models import Confirmation
from verifier.services.confirmations import confirm, deny

DECISIONS = ("confirm", "deny")


def begin_confirmation(
    *, row: Confirmation, human: Human, decision: str, session_key: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of a `confirm` or `deny` and ask for its signature.

    Raises ExpiredError, InvalidStateError once decided, InvalidRequestError for another word.
    """
    if decision not in DECISIONS:
        raise InvalidRequestError("The decision must be confirm or deny.")
    status = row.status_at(now)
    if status == Confirmation.Status.EXPIRED:
        raise ExpiredError("This request has expired. The agent may ask again.")
    if status != Confirmation.Status.PENDING:
        raise InvalidStateError("This was already decided.")
    text = sentences.confirmation_text(
        agent=row.grant.agent.name,
        service_provider=row.grant.service_provider.name,
        action=parse_action(row.action),
        confirmed=decision == "confirm",
        warnings=name_warnings(row.grant.agent, human),
    )
    statement = confirmation_statement(
        row=row,
        human=human,
        decision="confirm" if decision == "confirm" else "deny",
        consent_text=text,
        now=now,
    )
    return ask_signature(
        _ceremony(row, human, session_key), human=human, statement=statement, consent_text=text, now=now
    )


def finish_confirmation(
    *, row: Confirmation, human: Human, session_key: str, credential: object, actor: Actor, now: datetime
) -> Receipt:
    """Carry out the signed yes or no. Raises InvalidAssertionError and what the verifier's services raise."""

    def act(challenge: Challenge) -> None:
        decided = confirm if challenge.statement["decision"] == "confirm" else deny
        decided(confirmation=row, human=human, actor=actor, now=now)

    return accept_signature(
        _ceremony(row, human, session_key), human=human, credential=credential, now=now, act=act
    )


def _ceremony(row: Confirmation, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.CONFIRMATION, session_key, human, str(row.pk))
