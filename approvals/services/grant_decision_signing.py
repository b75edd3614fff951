"""Approving and denying: the page's token, second step, statement and signed decision."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.encoding import canonical_json, parse_timestamp
from agentauth.protocol.errors import (
    ConfirmationRequiredError,
    ExpiredError,
    GrantChangedError,
    InvalidStateError,
)
from agentauth.protocol.passkey_statements import MAX_REASON
from approvals import consent_texts, sentences
from approvals.models import Challenge, Notification, Receipt
from approvals.notifications.outbox import forget_sent
from approvals.quotation_marks import quoted
from approvals.services import challenges
from approvals.services.challenges import Ceremony, use_second_step
from approvals.services.decidable_requests import Case
from approvals.services.page_snapshot_token import Drawn, Page, check_drawn, drawn_token, read_drawn
from approvals.services.passkey_signature_flow import accept_signature, ask_signature
from approvals.services.recent_recovery import recovery_marks
from approvals.services.routed_requests import tell_owner
from approvals.services.statement_builders import approval
from approvals.services.term_choices import Terms, asked_terms, changes, chosen_terms, offered_terms
from approvals.services.total_across_grants import Total, other_grants, total_reach
from audit import kinds
from audit.services import Actor, record
from registry.models import Grant, Human
from registry.services.decision_routing import Routing
from registry.services.grants import approve_grant, deny_grant


@dataclass(frozen=True, slots=True)
class Review:
    """What the current choices would grant, in words."""

    lines: list["Line"]
    changes: list[str]
    totals: list[Total]
    dangerous: list[str]
    drawn: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the text to sign.

    `place` is the index, among the offered permissions, of the one that this line grants; None for
    other lines.
    """

    text: str
    place: int | None = None


@dataclass(frozen=True, slots=True)
class DrawnApproval:
    """The approval page as first rendered: its token, and the lines to sign to approve it all."""

    drawn: str
    lines: list[Line]


@dataclass(frozen=True, slots=True)
class Denial:
    """The lines to sign for a denial with this reason, and the token of the page showing them."""

    drawn: str
    sentences: list[str]


def approval_page(case: Case, text: str | None = None) -> Page:
    """Everything on the approval page that a decision rests on; `text` is what would be signed.

    Without `text`, the token's digest of the text is not compared.
    """
    grant, agent, provider = case.grant, case.grant.agent, case.grant.service_provider
    shown = {
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
        # Warnings that the agent's name resembles another.
        "likenesses": case.warnings,
    }
    # Omit the member if there is no catalogue: a token made by the previous release, which may run
    # beside this one, has none and would count as changed.
    shown |= {"catalogue": case.published.ref.sha256} if case.published else {}
    # Only its digest, because the token travels with every request of the page.
    signed = {} if text is None else {"text": hashlib.sha256(text.encode()).hexdigest()}
    # Omit the routing if no rule applies, for the same reason.
    routed = page_routing(case.routing)
    return Page(Challenge.Purpose.APPROVAL, str(grant.pk), shown | signed | routed)


def page_routing(routing: Routing | None) -> dict[str, Any]:
    """The routing and the reader, as a page token contains them; empty without a rule."""
    if routing is None:
        return {}
    return {"routing": dict(routing.member), "reader": routing.human_id}


def check_unchanged(case: Case, drawn: str, *, now: datetime) -> Drawn:
    """Check that the request is still the one on the page and still waits for a decision.

    Raises ExpiredError, InvalidStateError if it was decided, and what `check_drawn` raises.
    """
    page = _undecided_page(case, now)
    check_drawn(page, drawn)
    return read_drawn(drawn, page.purpose, page.subject)


def draw_approval(case: Case, *, now: datetime) -> DrawnApproval:
    """What the approval page shows of the text to sign, and its token.

    The text is empty if manifest and allow-list no longer cover any of the request.
    """
    terms = offered_terms(case.grant, now)
    text = _text(case, terms, now) if terms.capabilities else ""
    return DrawnApproval(
        drawn=drawn_token(approval_page(case, text), now=now),
        lines=_lines(case, terms, text),
    )


def draw_denial(case: Case, reason: str, *, now: datetime) -> Denial:
    """The text that denies the request for this reason, as a page shows it."""
    text = _denial(case, _one_line(reason))
    return Denial(drawn_token(approval_page(case, text), now=now), text.splitlines())


def review_denial(case: Case, reason: str, *, drawn: str, now: datetime) -> Denial:
    """As `draw_denial`, for a reason typed on the page with the token `drawn`. Changes nothing.

    Raises what `check_unchanged` raises.
    """
    # `at` stays the time of the first rendering, as in `review_choices`.
    return draw_denial(case, reason, now=check_unchanged(case, drawn, now=now).at)


def review_choices(case: Case, choices: Mapping[str, str], *, drawn: str, now: datetime) -> Review:
    """What these choices would grant and how that differs from the request. Changes nothing.

    `drawn` in the result is the token of the page with these choices applied. Raises what
    `check_unchanged` and `chosen_terms` raise.
    """
    # Keep the time of the first rendering: the grant's end is counted from it.
    at = check_unchanged(case, drawn, now=now).at
    terms = _terms_of_choices(case, choices, at=at, now=now)
    text = _text(case, terms, now)
    grant = case.grant
    return Review(
        lines=_lines(case, terms, text),
        changes=changes(offered_terms(grant, at), terms, at=grant.service_provider.name, now=at),
        totals=total_reach(grant, terms, other_grants(grant, now)),
        dangerous=_dangerous(case, terms),
        drawn=drawn_token(approval_page(case, text), now=at),
    )


def take_second_step(
    case: Case,
    choices: Mapping[str, str],
    *,
    session_key: str,
    drawn: str,
    actor: Actor,
    now: datetime,
) -> None:
    """Record that the human saw exactly these dangerous permissions and continued.

    Valid for CHALLENGE_LIFE (five minutes), once, and only in this session. Raises what
    `review_choices` raises.
    """
    terms, _signed = _shown_terms(case, choices, drawn=drawn, now=now)
    grant = case.grant
    with transaction.atomic():
        challenges.begin(
            _second_step(case, session_key), now=now, challenge=_danger_digest(grant, terms)
        )
        record(
            kind=kinds.SECOND_STEP_TAKEN,
            actor=actor,
            at=now,
            agent_id=grant.agent_id,
            human_id=case.human.id,
            service_provider_id=grant.service_provider_id,
            grant_id=grant.id,
            personal={"capabilities": [each.to_json() for each in terms.dangerous]},
        )


def begin_approval(
    case: Case, choices: Mapping[str, str], *, session_key: str, drawn: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of an approval from the choices, and ask for its signature.

    Raises what `review_choices` raises; ConfirmationRequiredError (with `dangerous`, sentences) if
    the second step for exactly these permissions was not taken in this session.
    """
    terms, text = _shown_terms(case, choices, drawn=drawn, now=now)
    if terms.dangerous:
        _use_second_step(case, session_key, terms, now)
    statement = approval(
        grant=case.grant,
        human=case.human,
        decision="approve",
        terms=terms,
        second_step=bool(terms.dangerous),
        consent_text=text,
        catalogue=case.published.ref if case.published else None,
        now=now,
        routing=_routing_member(case),
    )
    return ask_signature(
        _ceremony(case, session_key),
        human=case.human,
        statement=statement,
        consent_text=text,
        page=approval_page(case, text),
        drawn=drawn,
        now=now,
    )


def begin_denial(
    case: Case, reason: str, *, session_key: str, drawn: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of a denial, and ask for its signature.

    Raises what `check_unchanged` raises; GrantChangedError if the page showed another reason
    (`ask_signature` compares the text); InvalidStateError if the grant is not pending.
    """
    check_unchanged(case, drawn, now=now)
    if case.grant.status != Grant.Status.PENDING:
        raise InvalidStateError("Only a pending request can be denied. Revoke the grant instead.")
    reason = _one_line(reason)
    text = _denial(case, reason)
    statement = approval(
        grant=case.grant,
        human=case.human,
        decision="deny",
        terms=asked_terms(case.grant, now),
        second_step=False,
        consent_text=text,
        deny_reason=reason or None,
        now=now,
        routing=_routing_member(case),
    )
    return ask_signature(
        _ceremony(case, session_key),
        human=case.human,
        statement=statement,
        consent_text=text,
        page=approval_page(case, text),
        drawn=drawn,
        now=now,
    )


def decide(
    case: Case, *, session_key: str, credential: object, actor: Actor, now: datetime
) -> Receipt:
    """Carry out the signed decision. Posting the same assertion again returns the same receipt.

    Raises InvalidAssertionError; GrantChangedError, ExpiredError or InvalidStateError if the
    request changed between the statement and the signature; NotFoundError if the human was
    suspended or may no longer decide; InvalidRequestError if the token of the page cannot be read
    or the terms do not narrow the request; GrantTooLargeError if an access token would not hold the
    narrowed grant; TemporarilyUnavailableError if no receipt key can sign. The challenge is then
    used up: the human presses the button again.
    """
    grant, human = case.grant, case.human

    def carry_out(row: Challenge) -> None:
        body = row.statement
        if body["decision"] == "deny":
            reason = body["deny_reason"] or ""
            deny_grant(grant=grant, human=human, reason=reason, actor=actor, now=now)
            _tell_owner(grant, human, now)
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
        # A channel gets each reminder once. Delete the one that was sent, so that the new end of a
        # renewed grant gets its own.
        forget_sent(grant.pk, Notification.What.GRANT_ENDS)
        _tell_owner(grant, human, now)

    return accept_signature(
        _ceremony(case, session_key),
        human=human,
        credential=credential,
        now=now,
        # Called inside `accept_signature`'s transaction. `replace` copies the case without its
        # cached catalogue and warnings, so they are read again.
        page=lambda _row: _undecided_page(replace(case), now),
        act=carry_out,
        routing=_routing_member(case),
    )


def _tell_owner(grant: Grant, human: Human, now: datetime) -> None:
    """Notify the agent's owner if another person decided."""
    owner = grant.agent.human
    if owner is not None and owner.pk != human.pk:
        tell_owner(owner=owner, what=Notification.What.DECIDED, subject=grant.pk, now=now)


def _one_line(reason: str) -> str:
    """The reason as it is signed: on one line, and truncated to MAX_REASON characters."""
    return " ".join(reason.split())[:MAX_REASON]


def _undecided_page(case: Case, now: datetime) -> Page:
    grant = case.grant
    status = grant.status_at(now)
    if status == Grant.Status.EXPIRED:
        raise ExpiredError("This request has expired. The agent may ask again.")
    decided = status in {Grant.Status.APPROVED, Grant.Status.DENIED, Grant.Status.REVOKED}
    # An approved grant is open again while it waits for a renewal.
    if decided and not grant.waits_for_renewal(now):
        raise InvalidStateError(_already(case))
    return approval_page(case)


def _already(case: Case) -> str:
    """The message that the request is already decided.

    It names the decider only to a person to whom a rule routes the request.
    """
    decided_by = case.grant.human
    if case.routing is None or decided_by is None:
        return _("This request was already decided.")
    return _("%(name)s already decided this request.") % {"name": quoted(decided_by.name)}


def _routing_member(case: Case) -> Mapping[str, Any] | None:
    return case.routing and case.routing.member


def _ceremony(case: Case, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.APPROVAL, session_key, case.human, str(case.grant.pk))


def _second_step(case: Case, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.SECOND_STEP, session_key, case.human, str(case.grant.pk))


def _use_second_step(case: Case, session_key: str, terms: Terms, now: datetime) -> None:
    digest = _danger_digest(case.grant, terms)
    if not use_second_step(_second_step(case, session_key), digest, now=now):
        raise ConfirmationRequiredError(
            "Check the high-risk permissions once more, then continue.",
            dangerous=_dangerous(case, terms),
        )


def _danger_digest(grant: Grant, terms: Terms) -> bytes:
    """A digest of what the second step covers: other permissions or amounts need another one."""
    body = {
        "grant": str(grant.pk),
        "version": grant.version,
        "dangerous": [each.to_json() for each in terms.dangerous],
    }
    return hashlib.sha256(canonical_json(body)).digest()


def _dangerous(case: Case, terms: Terms) -> list[str]:
    service = case.grant.service_provider.name
    return sentences.permissions(service, terms.dangerous, terms.envelope, case.words)


def _terms_of_choices(
    case: Case, choices: Mapping[str, str], *, at: datetime, now: datetime
) -> Terms:
    """The terms of these choices.

    Their lifetime is counted from `at`, when the page was rendered, so that the signed end is the
    one shown.
    """
    terms = chosen_terms(case.grant, choices, zone=case.human.time_zone, now=at)
    if terms.valid_until <= now:
        raise GrantChangedError(
            "The end date on this page has passed. Reload the page.", changes=[]
        )
    return terms


def _shown_terms(
    case: Case, choices: Mapping[str, str], *, drawn: str, now: datetime
) -> tuple[Terms, str]:
    """The terms of these choices and their text, checked against the one the page shows."""
    at = check_unchanged(case, drawn, now=now).at
    terms = _terms_of_choices(case, choices, at=at, now=now)
    text = _text(case, terms, now)
    check_drawn(approval_page(case, text), drawn)
    return terms, text


def _lines(case: Case, terms: Terms, text: str) -> list[Line]:
    """The text by lines, each with the permission that it grants."""
    service = case.grant.service_provider.name
    permission_lines = sentences.permissions(
        service, terms.capabilities, terms.envelope, case.words
    )
    places = iter(terms.offered_indexes or range(len(permission_lines)))
    remaining = iter(permission_lines)
    next_line = next(remaining, None)
    lines = []
    # A line grants the next permission if it is that permission's sentence. Match in order: two
    # permissions narrowed to the same words are two lines.
    for each in text.splitlines():
        is_permission = each == next_line
        lines.append(Line(each, next(places) if is_permission else None))
        next_line = next(remaining, None) if is_permission else next_line
    return lines


def _denial(case: Case, reason: str) -> str:
    return consent_texts.denial_text(
        agent=case.grant.agent.name,
        service_provider=case.grant.service_provider.name,
        audience=case.grant.service_provider.audience,
        reason=reason,
        routing=_routing_member(case),
    )


def _text(case: Case, terms: Terms, now: datetime) -> str:
    grant = case.grant
    return consent_texts.approval_text(
        agent=grant.agent.name,
        service_provider=grant.service_provider.name,
        audience=grant.service_provider.audience,
        capabilities=terms.capabilities,
        envelope=terms.envelope,
        valid_until=terms.valid_until,
        valid_until_before=grant.valid_until if grant.waits_for_renewal(now) else None,
        zone=case.human.time_zone,
        warnings=[*case.warnings, *recovery_marks(case.human, now=now)],
        routing=_routing_member(case),
        words=case.words,
    )
