"""Which requests a person may see and decide: their own agents', and those routed to them."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from django.utils.translation import gettext as _

from agentauth.protocol.approval_receipt import MAX_RECEIPT_BYTES
from agentauth.protocol.catalogue import Catalogue
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import (
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from agentauth.protocol.jose import parse_compact
from approvals import sentences
from approvals.models import Challenge, Receipt
from approvals.quotation_marks import quoted
from approvals.services.lookalike_warnings import name_warnings
from approvals.services.page_snapshot_token import read_drawn
from registry.models import Grant, Human
from registry.services.catalogues import Published, published_catalogue, words_of
from registry.services.decision_routing import (
    Rosters,
    Routing,
    decider_of,
    read_rosters,
    route_grant,
    routing_of,
)
from registry.services.routing_rules import Cause, Decider, Route, Standing
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import find_for_human

_APPROVAL: Final = Challenge.Purpose.APPROVAL
_CONFIRMATION: Final = Challenge.Purpose.CONFIRMATION


@dataclass(frozen=True)
class Case:
    """A request as one person sees it, and who may decide on it.

    Catalogue and warnings are read once, so that a page, its text and its token agree. A copy made
    with `dataclasses.replace` reads them again.
    """

    grant: Grant
    human: Human
    route: Route
    rosters: Rosters | None

    @property
    def is_mine(self) -> bool:
        return self.grant.agent.human_id == self.human.pk

    @property
    def decider(self) -> Decider | None:
        """The role in which this person may decide; None if they may not."""
        return decider_of(self.route, self.human)

    @property
    def routing(self) -> Routing | None:
        """For whom and by which rule this person decides."""
        return routing_of(self.route, self.human, self.grant.agent.human)

    @cached_property
    def published(self) -> Published | None:
        """The approved catalogue of the service provider."""
        return published_catalogue(self.grant.service_provider)

    @property
    def words(self) -> Catalogue:
        """That catalogue, or an empty one."""
        return words_of(self.published)

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences about names that the agent's resembles; usually none."""
        return name_warnings(self.grant.agent, self.grant.agent.human)

    def require_decider(self) -> None:
        """Raises InvalidStateError with a sentence that says who may decide."""
        if self.decider is None:
            raise InvalidStateError(
                _("You cannot approve this yourself. %(who)s") % {"who": " ".join(self.who())}
            )

    def who(self) -> list[str]:
        """Sentences: who decides by which rule, and how the request was passed on."""
        route = self.route
        if self.grant.status == Grant.Status.SUSPENDED:
            # All groups may sign it again at once: nothing was passed on.
            route = replace(route, steps=route.steps[:1])
        return route_sentences(route, self.rosters, self.human.time_zone)


def find_case(grant_id: uuid.UUID, human: Human, now: datetime) -> Case:
    """The request if it is this human's, if they decided it, or if it is or was routed to them.

    Raises the same NotFoundError for an unknown id and for another person's request.
    """
    rows = Grant.objects.select_related("agent__human", "service_provider", "renewal")
    grant = rows.filter(pk=grant_id).first()
    if grant is None or not grant.agent.is_sealed():
        raise NotFoundError
    at = _open_at(grant, now)
    rosters = read_rosters(at)
    case = Case(grant, human, route_grant(grant, at, rosters), rosters)
    decided = grant.human_id == human.pk
    routed = case.decider is not None and not _was_signed_later(grant, now)
    if not (case.is_mine or decided or routed):
        raise NotFoundError
    return case


@dataclass(frozen=True, slots=True)
class ConfirmationCase:
    """One transaction as one person sees it, and who may decide on it."""

    row: Confirmation
    human: Human
    route: Route
    rosters: Rosters | None

    @property
    def is_mine(self) -> bool:
        return self.row.grant.agent.human_id == self.human.pk

    @property
    def decides(self) -> bool:
        return decider_of(self.route, self.human) is not None

    @property
    def routing(self) -> Routing | None:
        """As `Case.routing`."""
        return routing_of(self.route, self.human, self.row.grant.agent.human)

    def require_decider(self) -> None:
        """As `Case.require_decider`."""
        if not self.decides:
            raise InvalidStateError(
                _("You cannot confirm this yourself. %(who)s") % {"who": " ".join(self.who())}
            )

    def who(self) -> list[str]:
        """As `Case.who`."""
        return route_sentences(self.route, self.rosters, self.human.time_zone)


def find_confirmation(
    confirmation_id: uuid.UUID, human: Human, now: datetime, *, drawn: str | None = None
) -> ConfirmationCase:
    """The transaction, as `find_open_case` finds a request."""
    try:
        row, route, rosters = find_for_human(confirmation_id, human, now)
    except NotFoundError:
        shown = drawn is not None and _was_shown(drawn, human, confirmation_id, _CONFIRMATION)
        if shown or _had_begun(human, _CONFIRMATION, confirmation_id, now):
            raise gone() from None
        raise
    return ConfirmationCase(row, human, route, rosters)


def find_open_case(
    grant_id: uuid.UUID, human: Human, now: datetime, *, drawn: str | None = None
) -> Case:
    """As `find_case`, for a script. `drawn` is the token of a page about it that was shown here.

    Raises GrantChangedError for a person who was shown the page and may no longer decide.
    """
    try:
        return find_case(grant_id, human, now)
    except NotFoundError:
        shown = drawn is not None and _was_shown(drawn, human, grant_id, _APPROVAL)
        if shown or _had_begun(human, _APPROVAL, grant_id, now):
            raise gone() from None
        raise


def gone() -> GrantChangedError:
    """The answer to a person who could decide when their page was drawn and no longer can."""
    return GrantChangedError(
        _("You can no longer decide on this. The request still waits for the others."),
        changes=[_("Your membership, an absence or a rule has changed.")],
    )


def _had_begun(human: Human, purpose: str, subject: uuid.UUID, now: datetime) -> bool:
    """Whether this person was asked to sign this for another within the last minutes.

    A former owner, who decided by no rule, gets the answer for an unknown id.
    """
    asked = Challenge.objects.open(now).filter(human=human, purpose=purpose, subject=str(subject))
    return asked.filter(statement__has_key="routing").exists()


def decided_by(receipt: Receipt | None, reader: Human) -> dict[str, Any] | None:
    """Who signed, for whom and by which rule, for the pages; None without a receipt.

    A person who has been deleted has no name, and an administrator who denied is not named.
    """
    if receipt is None:
        return None
    routing = signed_routing(receipt)
    return {
        "is_me": receipt.human_id == reader.pk,
        "name": receipt.human.name if routing else "",
        "routing": routing,
        "for_me": routing is not None and routing["for"]["id"] == str(reader.pk),
    }


def signed_routing(receipt: Receipt) -> dict[str, Any] | None:
    """The member `routing` of the statement in this receipt, if it has one and its text is kept."""
    if not receipt.compact:
        return None
    jws = parse_compact(receipt.compact, max_bytes=MAX_RECEIPT_BYTES)
    statement = read_object(jws.payload, max_bytes=MAX_RECEIPT_BYTES).get("statement")
    routing = statement.get("routing") if isinstance(statement, dict) else None
    return routing if isinstance(routing, dict) else None


def route_sentences(route: Route, rosters: Rosters | None, zone: str) -> list[str]:
    """Sentences: who may decide, by which rule, and each time the request was passed on."""
    if route.rule is None or rosters is None:
        return []
    names = rosters.names
    lines = []
    before = None
    for step in route.steps:
        parts = {
            "rule": quoted(route.rule.name),
            "to": quoted(step.group.name) if step.group else _("the administrators"),
            "before": quoted(before) if before else "",
            "at": sentences.moment(step.at, zone),
        }
        if before is None and step.cause == Cause.RULE:
            lines.append(_("The rule %(rule)s sends this to %(to)s.") % parts)
        elif step.cause == Cause.EMPTY:
            lines.append(
                _("No member of %(before)s could decide: passed on to %(to)s at %(at)s.") % parts
            )
        else:
            lines.append(
                _("No member of %(before)s decided in time: passed on to %(to)s at %(at)s.") % parts
            )
        before = step.group.name if step.group else before
    lines.append(_may_decide(route, names))
    if route.passes_on_at is not None:
        lines.append(
            _("If no one decides, it is passed on at %(at)s.")
            % {"at": sentences.moment(route.passes_on_at, zone)}
        )
    return lines


def _may_decide(route: Route, names: Mapping[str, str]) -> str:
    if any(each.standing == Standing.OWNER for each in route.deciders.values()):
        return _("No one else can decide now, so the owner of the agent may.")
    people = sorted(quoted(names.get(human, "")) for human in route.deciders)
    if not people:
        return _("No one can decide now.")
    return _("These people may decide: %(people)s.") % {"people": ", ".join(people)}


def _open_at(grant: Grant, now: datetime) -> datetime:
    """The last moment at which the request was pending; `now` if it still is."""
    if grant.status == Grant.Status.PENDING:
        return min(now, grant.expires_at)
    if grant.waits_for_signature(now) or grant.waits_for_renewal(now):
        return now
    return min(now, grant.decided_at or grant.ended_at or now)


def _was_signed_later(grant: Grant, now: datetime) -> bool:
    """Whether its last decision was a renewal, or a new signature after a suspension.

    When that was asked for is no longer known, so neither is whom it had reached: by the time of
    the first request, every group's time was over.
    """
    if grant.waits_for_signature(now) or grant.waits_for_renewal(now):
        return False
    return grant.decided_at is not None and grant.decided_at > grant.expires_at


def _was_shown(drawn: str, human: Human, subject: uuid.UUID, purpose: Challenge.Purpose) -> bool:
    """Whether this page token was made for this person, who could decide then."""
    try:
        return read_drawn(drawn, purpose, str(subject)).shown.get("reader") == str(human.pk)
    except InvalidRequestError:
        return False
