"""Confirming or denying one transaction above its threshold, signed."""

from datetime import datetime
from typing import Any

from agentauth.protocol.capability import parse_action
from agentauth.protocol.catalogue import CatalogueRef
from agentauth.protocol.errors import (
    ExpiredError,
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
)
from approvals import consent_texts
from approvals.models import Challenge, Notification, Receipt
from approvals.services.challenges import Ceremony
from approvals.services.grant_decision_signing import page_routing
from approvals.services.lookalike_warnings import name_warnings
from approvals.services.page_snapshot_token import Page
from approvals.services.passkey_signature_flow import accept_signature, ask_signature
from approvals.services.recent_recovery import recovery_marks
from approvals.services.routed_requests import tell_owner
from approvals.services.statement_builders import confirmation as confirmation_statement
from audit.services import Actor
from registry.models import Human
from registry.services.catalogues import published_catalogue, words_of
from registry.services.decision_routing import Routing
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import confirm, deny, obstacle

DECISIONS = ("confirm", "deny")


def confirmation_page(
    row: Confirmation, human: Human, *, now: datetime, routing: Routing | None = None
) -> Page:
    """What the confirmation page shows of the act, and the texts of its two buttons."""
    agent, provider = row.grant.agent, row.grant.service_provider
    warnings, marks = name_warnings(agent, agent.human), recovery_marks(human, now=now)
    published = published_catalogue(provider)
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
                routing=routing and routing.member,
                words=words_of(published),
            )
            for decision in DECISIONS
        },
    }
    # As on the approval page: no member without a catalogue.
    shown |= {"catalogue": published.ref.to_json()} if published else {}
    return Page(Challenge.Purpose.CONFIRMATION, str(row.pk), shown | page_routing(routing))


def begin_confirmation(
    *,
    row: Confirmation,
    human: Human,
    decision: str,
    drawn: str,
    session_key: str,
    now: datetime,
    routing: Routing | None = None,
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
    page = confirmation_page(row, human, now=now, routing=routing)
    text, catalogue = page.shown["text"][decision], page.shown.get("catalogue")
    statement = confirmation_statement(
        row=row,
        human=human,
        decision="confirm" if decision == "confirm" else "deny",
        consent_text=text,
        catalogue=CatalogueRef(**catalogue) if catalogue else None,
        now=now,
        routing=routing and routing.member,
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
    routing: Routing | None = None,
) -> Receipt:
    """Carry out the signed yes or no.

    Raises InvalidAssertionError, GrantChangedError and what the verifier's services raise.
    """

    def act(challenge: Challenge) -> None:
        decided = confirm if challenge.statement["decision"] == "confirm" else deny
        decided(confirmation=row, human=human, actor=actor, now=now)
        owner, what = row.grant.agent.human, Notification.What.DECIDED_PAYMENT
        if owner is not None and owner.pk != human.pk:
            tell_owner(owner=owner, what=what, subject=row.pk, now=now)

    return accept_signature(
        _ceremony(row, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda _challenge: confirmation_page(row, human, now=now, routing=routing),
        act=act,
        routing=routing and routing.member,
    )


def _ceremony(row: Confirmation, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.CONFIRMATION, session_key, human, str(row.pk))
