"""Create, suspend, resume, recover and delete humans.

Their passkeys and sessions are in approvals.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Final

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import F, Q

from agentauth.protocol.agent_manifest import check_display_name
from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from agentauth.protocol.hours_and_periods import parse_zone
from audit import kinds
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import Agent, EnrolmentCode, Grant, Human
from registry.roles import Role
from registry.services.agents import revoke_agent
from registry.services.grants import revoke_grant, suspend_grant
from registry.services.lookalikes import check_is_no_word

MAX_EMAIL_CHARACTERS = 254
# Grants that end with their human, and need a new signature after a recovery.
_GRANTED: Final = (Grant.Status.APPROVED, Grant.Status.SUSPENDED)
# `is_staff` is true for owners alone (registry/roles.py).
_ACTIVE_OWNER = Q(is_staff=True, status=Human.Status.ACTIVE)


def create_human(
    *,
    email: str,
    name: str,
    role: Role | None = None,
    time_zone: str = "UTC",
    language: str | None = None,
    actor: Actor,
    now: datetime,
) -> Human:
    """A new active human, without a passkey yet. Zone and language are those of their browser.

    Raises InvalidRequestError for a bad name, or a bad or taken address.
    """
    check_email(email)
    check_display_name(name)
    check_is_no_word(name)
    with transaction.atomic():
        try:
            # A savepoint, so that the refusal leaves the caller's transaction usable.
            with transaction.atomic():
                human = Human(
                    email=email,
                    name=name,
                    time_zone=time_zone,
                    language=language,
                    created_at=now,
                )
                human.set_role(role)
                human.save(force_insert=True)
        except IntegrityError as error:
            raise InvalidRequestError("This e-mail address is already in use.") from error
        record(
            kind=kinds.HUMAN_CREATED,
            actor=actor,
            at=now,
            human_id=human.id,
            data={"is_staff": human.is_staff, "role": role and str(role)},
            personal={"email": email, "name": name},
        )
    return human


def check_email(email: str) -> None:
    """Check that it is an e-mail address and fits the column. Raises InvalidRequestError."""
    try:
        validate_email(email)
    except ValidationError as error:
        raise InvalidRequestError("This is not an e-mail address.") from error
    if len(email) > MAX_EMAIL_CHARACTERS:
        raise InvalidRequestError("This is not an e-mail address.")


def suspend_human(
    *, human: Human, actor: Actor, now: datetime, even_last_owner: bool = False
) -> None:
    """Suspend the human. Sessions and unspent enrolment codes end.

    From the published change on, verify refuses their agents' tokens. The caller ends whatever else
    they began. Raises InvalidStateError if the human is not active, or is the last owner who can
    sign in: then only an owner whom an operator invites (`manage.py setup_link`) could resume them.
    """
    with transaction.atomic():
        if not even_last_owner:
            lock_with_owners(human, "suspended")
        _move(human, Human.Status.ACTIVE, Human.Status.SUSPENDED, kinds.HUMAN_SUSPENDED, actor, now)
        _end_enrolment_codes(human, now)


def resume_human(*, human: Human, actor: Actor, now: datetime) -> None:
    """Lift the suspension that the caller read; a later one, with another `session_epoch`, stays.

    Sessions that were ended stay ended. Approvals calls this with a verified signature over exactly
    this suspension. Raises InvalidStateError.
    """
    _move(
        human,
        Human.Status.SUSPENDED,
        Human.Status.ACTIVE,
        kinds.HUMAN_RESUMED,
        actor,
        now,
        session_epoch=human.session_epoch,
    )


def end_sessions(*, human: Human, actor: Actor, now: datetime) -> None:
    """Sign the human out everywhere at once."""
    with transaction.atomic():
        Human.objects.filter(pk=human.pk).update(session_epoch=F("session_epoch") + 1)
        # The human's presence ends with the sessions.
        publish_change(Subject.HUMAN, human.pk, now=now)
        record(kind=kinds.HUMAN_SESSIONS_ENDED, actor=actor, at=now, human_id=human.id)
    human.refresh_from_db()


def recover_human(*, human: Human, actor: Actor, now: datetime) -> None:
    """End what depends on lost or stolen passkeys, in the caller's transaction that adds new ones.

    Sessions and unspent enrolment codes end. Every grant needs a new signature, even one that was
    suspended before: those of the human's agents, and those that the human, or a thief with their
    passkey, approved for others. Raises GrantChangedError if one of them changes at this moment.
    """
    # In id order, as in every change of many grants (dependent_grant_suspension.py), so that none
    # deadlock.
    grants = (
        Grant.objects.filter(Q(agent__human=human) | Q(human=human), status__in=_GRANTED)
        .select_related("agent")
        .order_by("id")
    )
    for grant in grants:
        # Past its end, or already waiting for a signature.
        with suppress(InvalidStateError):
            suspend_grant(grant=grant, cause=Grant.SuspensionCause.RECOVERY, actor=actor, now=now)
    # Lock order: humans after agents and grants.
    end_sessions(human=human, actor=actor, now=now)
    _end_enrolment_codes(human, now)


def delete_human(
    *, human: Human, actor: Actor, now: datetime, even_last_owner: bool = False
) -> None:
    """Delete the human permanently: end agents, grants, codes and sessions, blank name and address.

    The row and its id stay, because receipts and events refer to them. The caller deletes passkeys
    and the erasable texts of events (openings), in the same transaction. Raises InvalidStateError
    if the human is deleted already, is the last owner who can sign in, got another agent meanwhile,
    or if one of the grants changes at this moment.
    """
    with transaction.atomic():
        # Lock order: agent, grants, human, as in requests, approvals and rotations: no deadlock.
        for agent in (
            Agent.objects.select_for_update(no_key=True).filter(human=human).order_by("id")
        ):
            for grant in agent.grants.filter(status__in=_GRANTED).order_by("id"):
                revoke_grant(grant=grant, actor=actor, now=now)
            revoke_agent(agent=agent, actor=actor, now=now)
        if not even_last_owner:
            lock_with_owners(human, "deleted")
        gone = (
            Human.objects.filter(pk=human.pk)
            .exclude(status=Human.Status.DELETED)
            .update(
                status=Human.Status.DELETED,
                email=f"{human.pk}@deleted.invalid",
                name="Deleted human",
                is_staff=False,
                admin_role=None,
                seal=None,
                time_zone="UTC",
                language=None,
                session_epoch=F("session_epoch") + 1,
            )
        )
        if not gone:
            raise InvalidStateError("This human is deleted already.")
        EnrolmentCode.objects.filter(human=human).delete()
        # An agent enrolled or claimed after the agents were locked would keep its name. No other
        # can be added now: the codes are gone, and a claim waits for the human's row.
        if Agent.objects.filter(human=human).exclude(status=Agent.Status.REVOKED).exists():
            raise InvalidStateError(
                "An agent was added to this account meanwhile. Nothing was deleted: try again."
            )
        publish_change(Subject.HUMAN, human.pk, now=now)
        record(kind=kinds.HUMAN_DELETED, actor=actor, at=now, human_id=human.id)
    human.refresh_from_db()


def check_deletable(human: Human) -> None:
    """Raise the InvalidStateError that `delete_human` would raise now. Takes no lock."""
    if human.status == Human.Status.DELETED:
        raise InvalidStateError("This human is deleted already.")
    _refuse_last_owner(human, Human.objects.filter(_ACTIVE_OWNER), "deleted")


def change_time_zone(*, human: Human, zone: str, actor: Actor, now: datetime) -> None:
    """Show times in another IANA zone from now on. Raises InvalidRequestError."""
    parse_zone(zone, "time_zone")
    _change(human, actor, now, time_zone=zone)


def change_language(*, human: Human, language: str, actor: Actor, now: datetime) -> None:
    """Show pages, and write to the human, in this language from now on.

    Raises InvalidRequestError.
    """
    check_language(language)
    _change(human, actor, now, language=language)


def check_language(language: str) -> None:
    """Check that pages are offered in the language. Raises InvalidRequestError."""
    if language not in dict(settings.LANGUAGES):
        raise InvalidRequestError("Choose one of the languages that are offered.")


def _change(human: Human, actor: Actor, now: datetime, **values: str) -> None:
    with transaction.atomic():
        Human.objects.filter(pk=human.pk).update(**values)
        record(kind=kinds.HUMAN_CHANGED, actor=actor, at=now, human_id=human.id, data=values)
    human.refresh_from_db()


def _end_enrolment_codes(human: Human, now: datetime) -> None:
    """Needs the human's row locked: then a code that was just being made is visible."""
    EnrolmentCode.objects.filter(human=human, used_at=None, expires_at__gt=now).update(
        expires_at=now
    )


def lock_with_owners(human: Human, what: str, *, even_last_owner: bool = False) -> Human:
    """Lock the human and all owners in the caller's transaction; return the human's row as it is.

    `what` the human cannot be. Raises InvalidStateError if no other owner is left who can sign in,
    unless `even_last_owner`.
    """
    # All owners, because two who end each other in parallel would leave none. In one query, because
    # humans are locked in id order.
    chosen = Human.objects.filter(Q(pk=human.pk) | _ACTIVE_OWNER).order_by("id")
    locked = list(chosen.select_for_update(no_key=True))
    if not even_last_owner:
        owners = [each for each in locked if each.is_staff and each.is_active]
        _refuse_last_owner(human, owners, what)
    return next(each for each in locked if each.pk == human.pk)


def _refuse_last_owner(human: Human, owners: Iterable[Human], what: str) -> None:
    # Only sealed rows count: an attacker who writes a second owner must not make the first one
    # removable.
    if [each.pk for each in owners if each.role is Role.OWNER] == [human.pk]:
        raise InvalidStateError(
            f"The last owner of the registry cannot be {what}: invite another one first."
        )


def _move(
    human: Human, old: str, new: str, kind: str, actor: Actor, now: datetime, **as_read: int
) -> None:
    with transaction.atomic():
        moved = Human.objects.filter(pk=human.pk, status=old, **as_read).update(
            status=new, session_epoch=F("session_epoch") + 1
        )
        if not moved:
            raise InvalidStateError(f"Only a human who is {old} can become {new}.")
        publish_change(Subject.HUMAN, human.pk, now=now)
        record(kind=kind, actor=actor, at=now, human_id=human.id)
    human.refresh_from_db()
