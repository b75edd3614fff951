"""Approving and denying: what the page was drawn from, the second step, the statement, the signed decision."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core import signing
from django.db import transaction

from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.encoding import canonical_json, parse_timestamp
from agentauth.protocol.envelope import parse_envelope
from agentauth.protocol.errors import (
    ConfirmationRequiredError,
    ExpiredError,
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
)
from approvals import sentences
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony, begin, take
from approvals.services.likeness import name_warnings
from approvals.services.moved import moved
from approvals.services.signatures import accept_signature, ask_signature
from approvals.services.statements import approval
from approvals.services.terms import Terms, asked_terms, changes, chosen_terms, offered_terms
from audit import kinds
from audit.services import Actor, record
from registry.models import Grant, Human
from registry.services.grants import approve_grant, deny_grant

_SALT = "approvals.drawn"
MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Review:
    """What the present choices would grant, in words."""

    sentences: list[str]
    changes: list[str]
    dangerous: list[str]


def snapshot(grant: Grant) -> dict[str, Any]:
    """Everything a decision rests on. If any of it moves after the page was drawn, the page is void."""
    agent, provider = grant.agent, grant.service_provider
    return {
        "grant": str(grant.pk),
        "version": grant.version,
        "status": grant.status,
        "capabilities": grant.capabilities or grant.requested_capabilities,
        "envelope": grant.requested_envelope if grant.envelope is None else grant.envelope,
        "agent_name": agent.name,
        "agent_key": agent.jkt,
        "manifest": agent.manifest_sha256,
        "agent_status": agent.status,
        "service_name": provider.name,
        "audience": provider.audience,
        "allowed": provider.allowed,
        "service_status": provider.status,
        "likenesses": name_warnings(agent, agent.human),
    }


def drawn_token(grant: Grant) -> str:
    """The snapshot a page is drawn from, signed, so that the page can hand it back unchanged."""
    return signing.dumps(snapshot(grant), salt=_SALT, compress=True)


def check_unchanged(grant: Grant, drawn: str, *, now: datetime) -> None:
    """The request is still the one on the page and still waits for a decision.

    Raises ExpiredError, InvalidStateError once decided, InvalidRequestError for a token we did not make,
    GrantChangedError with `changes`, sentences that say what moved.
    """
    status = grant.status_at(now)
    if status == Grant.Status.EXPIRED:
        raise ExpiredError("This request has expired. The agent may ask again.")
    if status in {Grant.Status.APPROVED, Grant.Status.DENIED, Grant.Status.REVOKED}:
        raise InvalidStateError("This request was already decided.")
    try:
        old = signing.loads(drawn, salt=_SALT)
    except signing.BadSignature:
        raise InvalidRequestError("The page could not be read. Reload it.") from None
    if old.get("grant") != str(grant.pk):
        raise InvalidRequestError("This page belongs to another request.")
    differs = [name for name, value in snapshot(grant).items() if old.get(name) != value]
    if differs:
        raise GrantChangedError(
            "This request changed since it was shown. Look at it again.",
            changes=[moved(name, old.get(name), snapshot(grant)[name]) for name in differs],
        )


def review_choices(
    *, grant: Grant, human: Human, choices: Mapping[str, str], drawn: str, now: datetime
) -> Review:
    """What these choices would grant and how that differs from what was asked. Changes nothing.

    Raises what `check_unchanged` and `chosen_terms` raise.
    """
    check_unchanged(grant, drawn, now=now)
    terms = chosen_terms(grant, choices, zone=human.time_zone, now=now)
    return Review(
        sentences=_text(grant, human, terms).splitlines(),
        changes=changes(offered_terms(grant, now), terms, at=grant.service_provider.name, now=now),
        dangerous=_dangerous(grant, terms),
    )


def asked_text(grant: Grant, human: Human, now: datetime) -> list[str]:
    """The consent text of what may be approved of the request, line by line; nothing where that is nothing."""
    terms = offered_terms(grant, now)
    return _text(grant, human, terms).splitlines() if terms.capabilities else []


def take_second_step(
    *,
    grant: Grant,
    human: Human,
    session_key: str,
    choices: Mapping[str, str],
    drawn: str,
    actor: Actor,
    now: datetime,
) -> None:
    """Record that the human looked at exactly these dangerous permissions and went on; good for five minutes.

    Raises what `review_choices` raises.
    """
    check_unchanged(grant, drawn, now=now)
    terms = chosen_terms(grant, choices, zone=human.time_zone, now=now)
    with transaction.atomic():
        begin(_second(grant, human, session_key), now=now, challenge=_danger_digest(grant, terms))
        record(
            kind=kinds.SECOND_STEP_TAKEN,
            actor=actor,
            at=now,
            agent_id=grant.agent_id,
            human_id=human.id,
            service_provider_id=grant.service_provider_id,
            grant_id=grant.id,
            data={"capabilities": [each.to_json() for each in terms.dangerous]},
        )


def begin_approval(
    *,
    grant: Grant,
    human: Human,
    session_key: str,
    choices: Mapping[str, str],
    drawn: str,
    now: datetime,
) -> dict[str, Any]:
    """Make the statement of an approval from the choices, and ask for its signature.

    Raises what `review_choices` raises; ConfirmationRequiredError (with `dangerous`, sentences) where the second
    step for these very permissions was not taken in this session.
    """
    check_unchanged(grant, drawn, now=now)
    terms = chosen_terms(grant, choices, zone=human.time_zone, now=now)
    if terms.dangerous:
        _use_second_step(grant, human, session_key, terms, now)
    text = _text(grant, human, terms)
    statement = approval(
        grant=grant,
        human=human,
        decision="approve",
        terms=terms,
        second_step=bool(terms.dangerous),
        consent_text=text,
        now=now,
    )
    return ask_signature(
        _ceremony(grant, human, session_key),
        human=human,
        statement=statement,
        consent_text=text,
        now=now,
        data={"drawn": drawn},
    )


def begin_denial(
    *, grant: Grant, human: Human, session_key: str, reason: str, drawn: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of a denial, and ask for its signature. Raises what `check_unchanged` raises."""
    check_unchanged(grant, drawn, now=now)
    if grant.status != Grant.Status.PENDING:
        raise InvalidStateError("Only a pending request can be denied. Revoke the grant instead.")
    reason = " ".join(reason.split())[:MAX_REASON]
    text = sentences.denial_text(
        agent=grant.agent.name, service_provider=grant.service_provider.name, reason=reason
    )
    statement = approval(
        grant=grant,
        human=human,
        decision="deny",
        terms=asked_terms(grant, now),
        second_step=False,
        consent_text=text,
        deny_reason=reason or None,
        now=now,
    )
    return ask_signature(
        _ceremony(grant, human, session_key),
        human=human,
        statement=statement,
        consent_text=text,
        now=now,
        data={"drawn": drawn},
    )


def decide(
    *, grant: Grant, human: Human, session_key: str, credential: object, actor: Actor, now: datetime
) -> Receipt:
    """Carry out the signed decision. The same assertion again gets the same receipt.

    Raises InvalidAssertionError; GrantChangedError, ExpiredError, InvalidStateError where the request moved
    between the statement and the signature.
    """

    def act(row: Challenge) -> None:
        check_unchanged(grant, row.data["drawn"], now=now)
        body = row.statement
        if body["decision"] == "deny":
            reason = body["deny_reason"] or ""
            deny_grant(grant=grant, human=human, reason=reason, actor=actor, now=now)
            return
        approve_grant(
            grant=grant,
            human=human,
            capabilities=parse_capabilities(body["capabilities"]),
            envelope=parse_envelope(body["envelope"]),
            valid_until=parse_timestamp(body["valid_until"]),
            actor=actor,
            now=now,
        )

    return accept_signature(
        _ceremony(grant, human, session_key), human=human, credential=credential, now=now, act=act
    )


def _ceremony(grant: Grant, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.APPROVAL, session_key, human, str(grant.pk))


def _second(grant: Grant, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.SECOND_STEP, session_key, human, str(grant.pk))


def _use_second_step(grant: Grant, human: Human, session_key: str, terms: Terms, now: datetime) -> None:
    ceremony = _second(grant, human, session_key)
    row = (
        Challenge.objects.open(now)
        .filter(purpose=ceremony.purpose, session=ceremony.session, human=human, subject=ceremony.subject)
        .order_by("-created_at", "-id")
        .first()
    )
    if row is None or not hmac.compare_digest(bytes(row.challenge), _danger_digest(grant, terms)):
        raise ConfirmationRequiredError(
            "Look at the dangerous permissions once more and go on.", dangerous=_dangerous(grant, terms)
        )
    take(row, now=now)


def _danger_digest(grant: Grant, terms: Terms) -> bytes:
    """What the second step is about: other permissions or other amounts need another one."""
    body = {
        "grant": str(grant.pk),
        "version": grant.version,
        "dangerous": [each.to_json() for each in terms.dangerous],
    }
    return hashlib.sha256(canonical_json(body)).digest()


def _dangerous(grant: Grant, terms: Terms) -> list[str]:
    return sentences.permissions(
        grant.agent.name, grant.service_provider.name, terms.dangerous, terms.envelope
    )


def _text(grant: Grant, human: Human, terms: Terms) -> str:
    return sentences.approval_text(
        agent=grant.agent.name,
        service_provider=grant.service_provider.name,
        audience=grant.service_provider.audience,
        capabilities=terms.capabilities,
        envelope=terms.envelope,
        valid_until=terms.valid_until,
        zone=human.time_zone,
        warnings=name_warnings(grant.agent, human),
    )
