"""An agent's life after registration: claimed by a human, suspended, resumed, revoked."""

import uuid
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import (
    EncodingError,
    ExpiredError,
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from audit import kinds
from audit.services import Actor, record
from kms.change_notices import Subject, publish_change
from registry.models import Agent, Human
from registry.services.codes import (
    CLAIM_SECRET_BYTES,
    claim_codes,
    claim_secrets,
    is_one_of,
    read_code,
)
from registry.services.grant_requests import check_claim_fits
from registry.services.grants import end_pending_grants, not_yours_to_resume

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

    Raises NotFoundError if we did not make the secret, if it is of an earlier claim, or if the
    agent was claimed since; ExpiredError if it is the current link but no longer live.
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
    if owner is not None and agent.human_id == owner.pk:
        return agent
    if agent.status != Agent.Status.UNCLAIMED:
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
        claimed = Agent.objects.filter(
            pk=agent.pk,
            status=Agent.Status.UNCLAIMED,
            manifest_sha256=agent.manifest_sha256,
            claim_number=agent.claim_number,
            claim_failures__lt=MAX_CLAIM_FAILURES,
            claim_expires_at__gt=now,
            expires_at__gt=now,
        ).update(status=Agent.Status.ACTIVE, human=human, claim_expires_at=None)
        if not claimed:
            raise InvalidStateError(
                "This agent can no longer be claimed with this link. Ask the agent for a new one."
            )
        check_claim_fits(agent=agent, human=human, now=now)
        record(kind=kinds.AGENT_CLAIMED, actor=actor, at=now, agent_id=agent.id, human_id=human.id)
    agent.refresh_from_db()


def suspend_agent(*, agent: Agent, actor: Actor, now: datetime, by_admin: bool = False) -> None:
    """Refuse the agent's tokens until each party that suspended it has resumed it.

    The agent may still read, withdraw, revoke and delete itself. The owner and the admins are two
    parties. An expired agent can be suspended too, since it could renew its manifest at any time.
    Raises InvalidStateError if this party already suspends it, or its state does not allow it.
    """
    with transaction.atomic():
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        further = held.status == Agent.Status.SUSPENDED and not _holds(held, by_admin=by_admin)
        may_act = (
            held.status in {Agent.Status.ACTIVE, Agent.Status.EXPIRED} and held.human_id is not None
        )
        if not (may_act or further):
            raise InvalidStateError(
                "Only a claimed agent that is active or expired can be suspended."
            )
        Agent.objects.filter(pk=agent.pk).update(
            status=Agent.Status.SUSPENDED,
            suspended_by_admin=by_admin or held.admin_holds,
            suspended_by_owner=held.owner_holds or not by_admin,
            suspensions=(held.suspensions or 0) + 1,
        )
        _record(kinds.AGENT_SUSPENDED, agent, actor, now, by_admin=by_admin)
    agent.refresh_from_db()


def resume_agent(*, agent: Agent, actor: Actor, now: datetime, by_admin: bool = False) -> None:
    """Lift this party's suspension.

    The agent stays suspended if the other party suspends it too. Else it is active, or expired if
    its manifest has ended. Approvals calls this with a verified signature over exactly this
    suspension. Raises InvalidStateError if this party did not suspend it, GrantChangedError if it
    was suspended or resumed since the caller read it.
    """
    with transaction.atomic():
        held = Agent.objects.select_for_update(no_key=True).get(pk=agent.pk)
        if not _holds(held, by_admin=by_admin):
            raise InvalidStateError(not_yours_to_resume(held))
        stays = _holds(held, by_admin=not by_admin)
        if held.suspensions != agent.suspensions or stays != _holds(agent, by_admin=not by_admin):
            raise GrantChangedError(
                "This was suspended or resumed in the meantime. Reload the page."
            )
        status = Agent.Status.SUSPENDED if stays else Agent.Status.ACTIVE
        Agent.objects.filter(pk=agent.pk).update(
            status=status,
            suspended_by_admin=stays and not by_admin,
            suspended_by_owner=stays and by_admin,
        )
        agent.refresh_from_db()
        _record(
            kinds.AGENT_RESUMED, agent, actor, now, by_admin=by_admin, status=agent.status_at(now)
        )


def _holds(agent: Agent, *, by_admin: bool) -> bool:
    return agent.admin_holds if by_admin else agent.owner_holds


def revoke_agent(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """End the agent permanently: its key and tokens are refused everywhere, its requests withdrawn.

    Its approved grants keep their state: at each use, a token is refused because the agent is
    revoked. Revoking it again changes nothing.
    """
    with transaction.atomic():
        living = Agent.objects.filter(pk=agent.pk).exclude(status=Agent.Status.REVOKED)
        if living.update(status=Agent.Status.REVOKED):
            _record(kinds.AGENT_REVOKED, agent, actor, now)
            end_pending_grants(agent=agent, actor=actor, now=now)
    agent.refresh_from_db()


def _record(kind: str, agent: Agent, actor: Actor, now: datetime, **data: object) -> None:
    publish_change(Subject.AGENT, agent.pk, now=now)
    record(kind=kind, actor=actor, at=now, agent_id=agent.id, human_id=agent.human_id, data=data)
