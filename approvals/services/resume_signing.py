"""Resuming: the party that suspended something signs that it lifts exactly this suspension."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from django.db.models import Q, QuerySet

from agentauth.protocol.errors import InvalidAssertionError, InvalidStateError, NotFoundError
from agentauth.protocol.resume_statement import Subject, resume_statement
from approvals import resume_consent_texts as texts
from approvals.models import Challenge, Receipt, Recovery
from approvals.services.challenges import Ceremony, void
from approvals.services.human_row_locks import hold_human
from approvals.services.page_snapshot_token import Page
from approvals.services.passkey_signature_flow import accept_signature, ask_signature, receipt_of
from approvals.services.recent_recovery import recovery_marks
from approvals.services.recovery import cancel_all, check_taken_part_in, hold_taken_part_in
from approvals.services.setup_and_sign_in import end_invitations
from approvals.services.statement_builders import signing
from audit.services import Actor
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.roles import Permission
from registry.services.agent_owners import owns
from registry.services.agents import resume_agent
from registry.services.grants import not_yours_to_resume, resume_grant
from registry.services.humans import resume_human
from registry.services.roles import check_permission
from registry.services.service_providers import resume_service_provider
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import end_unused

KIND = "resume"
Row = Agent | Grant | Human | ServiceProvider
Party = Literal["owner", "administrator"]
# The kinds of rows that can be resumed.
ROWS: Final[Mapping[str, QuerySet[Any]]] = {
    "agent": Agent.objects.select_related("human"),
    "grant": Grant.objects.select_related("agent__human", "service_provider"),
    "human": Human.objects.all(),
    "service_provider": ServiceProvider.objects.all(),
}
# Ceremonies that may have begun before the suspension and must not finish after it.
_DECIDED_BY = (
    Challenge.Purpose.APPROVAL,
    Challenge.Purpose.SECOND_STEP,
    Challenge.Purpose.CONFIRMATION,
)


@dataclass(frozen=True, slots=True)
class Suspension:
    """A suspended row, and the party whose suspension the human who asks can lift.

    `number` rises with each suspension of the row. `text` is what they sign, one sentence a line.
    """

    subject: Subject
    row: Row
    party: Party
    number: int
    text: str

    @property
    def name(self) -> str:
        """Its name on the pages and, unless it is a human, in the statement."""
        return name_of(self.row)


def find_row(
    kind: str,
    row_id: uuid.UUID,
    *,
    human: Human,
    party: Party,
    permission: Permission | None = None,
) -> Row:
    """The row, for its owner or, as `party`, an administrator who may resume it.

    Or one with `permission`, if it is given. Raises NotFoundError otherwise, or
    PermissionDeniedError for another role.
    """
    if party == "administrator":
        check_permission(human, permission or permission_to_resume(kind))
    row: Row | None = ROWS[kind].filter(pk=row_id).first() if kind in ROWS else None
    if row is None or not (party == "administrator" or _is_owner(row, human)):
        raise NotFoundError
    return row


def permission_to_resume(kind: str) -> Permission:
    """What resuming a row of this kind asks of a role.

    A person gets back all that they may do, and a recovery that waits for them ends: only owners
    decide on recoveries.
    """
    return Permission.OWN if kind == "human" else Permission.OPERATE


def name_of(row: Row) -> str:
    """The row's name on pages; for a grant, its agent's."""
    return row.agent.name if isinstance(row, Grant) else row.name


def find_suspension(row: Row, *, party: Party, now: datetime) -> Suspension:
    """The suspension of the row that this party may lift. Raises InvalidStateError if none."""
    by_admin = party == "administrator"
    if isinstance(row, Agent):
        _check_held(row, by_admin=by_admin)
        marks = [] if by_admin else _marks(row, now)
        if row.expires_at <= now:
            marks.append(texts.has_expired())
        text = texts.agent_text(row, _waiting_for(row, now), by_admin=by_admin, marks=marks)
        return Suspension(
            Subject("agent", str(row.pk), row.name), row, party, row.suspensions or 0, text
        )
    if isinstance(row, Grant):
        if row.status_at(now) != Grant.Status.SUSPENDED:
            raise InvalidStateError("This is not suspended, so it cannot be resumed.")
        _check_held(row, by_admin=by_admin)
        text = texts.grant_text(
            row, by_admin=by_admin, marks=[] if by_admin else _marks(row.agent, now)
        )
        return Suspension(
            Subject("grant", str(row.pk), row.agent.name), row, party, row.version, text
        )
    if row.status != row.Status.SUSPENDED:
        raise InvalidStateError("This is not suspended, so it cannot be resumed.")
    in_force = Grant.objects.live(now).filter(
        agent__status=Agent.Status.ACTIVE, agent__expires_at__gt=now
    )
    if isinstance(row, Human):
        agents = row.agents.filter(status=Agent.Status.ACTIVE, expires_at__gt=now).count()
        # After a recovery the passkey may be another person's: the administrator has to know.
        marks = recovery_marks(row, now=now)
        if Recovery.objects.open(now).filter(human=row).exists():
            marks.append(texts.ends_recovery())
        text = texts.human_text(
            row, agents=agents, grants=in_force.filter(agent__human=row).count(), marks=marks
        )
        return Suspension(Subject("human", str(row.pk)), row, party, row.session_epoch, text)
    text = texts.service_provider_text(row, grants=in_force.filter(service_provider=row).count())
    subject = Subject("service_provider", str(row.pk), row.name)
    return Suspension(subject, row, party, row.suspensions or 0, text)


def resume_page(found: Suspension) -> Page:
    """What the page of a suspension shows: whose suspension ends, which one, the text to sign."""
    shown = {
        "party": found.party,
        "suspension": found.number,
        "name": found.name,
        "text": found.text,
    }
    return Page(Challenge.Purpose.RESUME, str(found.row.pk), shown)


def begin_resume(
    *, found: Suspension, human: Human, drawn: str, session_key: str, now: datetime
) -> dict[str, Any]:
    """Make the statement that lifts this suspension and ask for its signature.

    Raises what `check_drawn` raises.
    """
    statement = resume_statement(
        signing(None, human, found.text, now),
        subject=found.subject,
        party=found.party,
        suspension=found.number,
    )
    return ask_signature(
        _ceremony(found.row, human, session_key),
        human=human,
        statement=statement,
        consent_text=found.text,
        page=resume_page(found),
        drawn=drawn,
        now=now,
    )


def finish_resume(
    *,
    row: Row,
    party: Party,
    human: Human,
    session_key: str,
    credential: object,
    actor: Actor,
    now: datetime,
) -> Receipt:
    """Lift the signed suspension, and end unused decisions and ceremonies from before it.

    Posting the same assertion again returns the same receipt. Raises InvalidAssertionError, also
    for a repeat after this party suspended the row again; InvalidStateError if it is not suspended
    (by this party); GrantChangedError if the page is out of date.
    """
    recoveries = set[Any]()

    def first() -> None:
        if isinstance(row, Human):
            recoveries.update(hold_taken_part_in(row))
        # Before a decision's own locks: a decision in progress commits first or finds its
        # challenge void.
        _void_begun(row, now)

    def act(_challenge: Challenge) -> None:
        if isinstance(row, Human):
            hold_human(human, row)
            check_taken_part_in(row, recoveries)
        _lift(find_suspension(row, party=party, now=now), actor, now)
        end_unused(grants=_grants_of(row), actor=actor, now=now)

    receipt = accept_signature(
        _ceremony(row, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda _challenge: resume_page(find_suspension(row, party=party, now=now)),
        act=act,
        first=first,
    )
    _check_lifted(row, party, now)
    return receipt


def last_resume(row: Row) -> Receipt | None:
    """The receipt of the last time it was resumed; None if never."""
    return receipt_of(KIND, str(row.pk))


def _check_lifted(row: Row, party: Party, now: datetime) -> None:
    """Refuse a repeated assertion if the row is suspended again: "resumed" would not be true."""
    row.refresh_from_db()
    try:
        find_suspension(row, party=party, now=now)
    except InvalidStateError:
        return
    raise InvalidAssertionError(
        "This has been suspended again since it was resumed. Reload the page."
    )


def _grants_of(row: Row) -> QuerySet[Grant]:
    if isinstance(row, Agent):
        return Grant.objects.filter(agent=row)
    if isinstance(row, Grant):
        return Grant.objects.filter(pk=row.pk)
    if isinstance(row, Human):
        return Grant.objects.filter(agent__human=row)
    return Grant.objects.filter(service_provider=row)


def _void_begun(row: Row, now: datetime) -> None:
    """Void open challenges about decisions on the row's grants, in the caller's transaction."""
    asked = Challenge.objects.open(now).filter(purpose__in=_DECIDED_BY)
    subjects, grants = set(asked.values_list("subject", flat=True)), _grants_of(row)
    about = [
        *grants.filter(pk__in=subjects).values_list("pk", flat=True),
        *Confirmation.objects.filter(pk__in=subjects, grant__in=grants).values_list(
            "pk", flat=True
        ),
    ]
    void(asked.filter(subject__in=[str(pk) for pk in about]), now=now)


def _lift(found: Suspension, actor: Actor, now: datetime) -> None:
    row, by_admin = found.row, found.party == "administrator"
    if isinstance(row, Agent):
        resume_agent(agent=row, actor=actor, now=now, by_admin=by_admin)
    elif isinstance(row, Grant):
        resume_grant(grant=row, actor=actor, now=now, by_admin=by_admin)
    elif isinstance(row, Human):
        # These were started for a suspended account, or by an administrator whom an earlier release
        # suspended without ending them.
        cancel_all(human=row, actor=actor, now=now)
        end_invitations(by=row, now=now)
        resume_human(human=row, actor=actor, now=now)
    else:
        resume_service_provider(service_provider=row, actor=actor, now=now)


def _marks(agent: Agent, now: datetime) -> list[str]:
    """Sentences for the owner's text about a recovery of their account."""
    return recovery_marks(agent.human, now=now) if agent.human else []


def _check_held(row: Agent | Grant, *, by_admin: bool) -> None:
    if not (row.admin_holds if by_admin else row.owner_holds):
        raise InvalidStateError(not_yours_to_resume(row))


def _is_owner(row: Row, human: Human) -> bool:
    owned = row.agent if isinstance(row, Grant) else row
    return isinstance(owned, Agent) and owns(human, owned)


def _waiting_for(agent: Agent, now: datetime) -> list[Grant]:
    """The grants in force once the agent is active again."""
    active = Q(service_provider__status=ServiceProvider.Status.ACTIVE)
    live = (
        Grant.objects.live(now)
        .filter(active, agent=agent)
        .select_related("agent", "service_provider")
    )
    return list(live.order_by("id"))


def _ceremony(row: Row, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.RESUME, session_key, human, str(row.pk))
