"""How a human gets in: setup links, the first passkey, signing in and out."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest

from agentauth.protocol.agent_manifest import check_display_name
from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import (
    ExpiredError,
    InvalidAssertionError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from agentauth.protocol.hours_and_periods import is_zone
from approvals.models import Challenge, SetupCode
from approvals.passkeys import creation_options, request_options
from approvals.services.challenges import Ceremony, answering, begin, check_signature, latest
from approvals.services.passkey_management import USER_HANDLE_BYTES, add_passkey, verify_new
from approvals.services.presence_lease_signing import end_presence
from approvals.services.recent_recovery import RECENT
from approvals.sessions import stored_key
from audit import kinds
from audit.models import Event
from audit.services import Actor, record
from registry.models import Human
from registry.roles import Role, columns_of
from registry.services.humans import check_email, create_human
from registry.services.lookalikes import check_is_no_word

SETUP_CODE_BYTES = 16
FIRST_ADMIN_LIFE = timedelta(minutes=15)
INVITATION_LIFE = timedelta(hours=72)


@dataclass(frozen=True, slots=True)
class SetupLink:
    """A one-time link, shown once, and when it expires."""

    url: str
    expires_at: datetime


_GONE = "This setup link is not valid. Ask for a new one."
_USED = "This setup link was used or has expired. Ask for a new one."


def owner_exists() -> bool:
    """Whether any owner exists; until then a first-admin link may be made."""
    return Human.objects.filter(is_staff=True).exists()


def create_setup_link(
    *, email: str = "", role: Role | None = None, actor: Actor, now: datetime
) -> SetupLink:
    """Make a one-time link: an invitation to `email`, or without one a link for the first admin.

    The first admin is an owner; an invited human has no role unless `role` names one.
    The link itself is not stored. Raises InvalidStateError for a first-admin link once an admin
    exists, InvalidRequestError for a malformed or taken address (docs/protocol.md section 11).
    """
    if not email and owner_exists():
        raise InvalidStateError(
            "There is an admin already: name the e-mail address of the human to invite."
        )
    if email:
        _check_free(email)
    row = SetupCode(
        kind=SetupCode.Kind.INVITATION if email else SetupCode.Kind.FIRST_ADMIN,
        email=email,
        **columns_of(role if email else Role.OWNER)._asdict(),
        created_at=now,
        expires_at=now + (INVITATION_LIFE if email else FIRST_ADMIN_LIFE),
    )
    with transaction.atomic():
        return keep_link(row, actor=actor)


def keep_link(row: SetupCode, *, actor: Actor) -> SetupLink:
    """Store the row with a new code's digest and return the link, in the caller's transaction."""
    code = secrets.token_bytes(SETUP_CODE_BYTES)
    row.digest = setup_digest(code)
    row.set_seal()
    row.save(force_insert=True)
    record(
        kind=kinds.SETUP_CODE_CREATED,
        actor=actor,
        at=row.created_at,
        human_id=row.human_id,
        data={
            "kind": row.kind,
            "is_staff": row.is_staff,
            "role": row.named_role and str(row.named_role),
        },
        personal={"email": row.email} if row.email else None,
    )
    return SetupLink(f"{settings.PUBLIC_URL}/setup/{b64u_encode(code)}/", row.expires_at)


def invitations_of(human: Human, *, now: datetime) -> QuerySet[SetupCode]:
    """The usable invitations this administrator made; the log says who made which."""
    made = Event.objects.filter(
        kind=kinds.SETUP_CODE_CREATED, actor_kind="human", actor_id=str(human.pk)
    )
    recent = made.filter(human_id=None, at__gt=now - INVITATION_LIFE).values("at")
    codes = SetupCode.objects.filter(
        kind=SetupCode.Kind.INVITATION, used_at=None, expires_at__gt=now
    )
    return codes.filter(created_at__in=recent)


def recently_made_owner(human: Human, *, now: datetime) -> bool:
    """Whether another owner made this human one within 14 days; an operator does not count.

    By an invitation or a change of role. The log says who made the invitation; a code without its
    event counts as an owner's.
    """
    changes = Event.objects.filter(kind=kinds.HUMAN_ROLE_CHANGED, at__gt=now - RECENT)
    by_others = changes.filter(human_id=human.pk, actor_kind="human")
    if any(data.get("role") == Role.OWNER for data in by_others.values_list("data", flat=True)):
        return True
    codes = SetupCode.objects.filter(human=human, is_staff=True, used_at__gt=now - RECENT)
    invited = codes.filter(kind=SetupCode.Kind.INVITATION)
    for made in invited.values_list("created_at", flat=True):
        events = Event.objects.filter(kind=kinds.SETUP_CODE_CREATED, at=made, human_id=None)
        by = set(events.values_list("actor_kind", flat=True))
        if not by or "human" in by:
            return True
    return False


def end_invitations(*, by: Human, now: datetime) -> None:
    """Expire the unused invitations that `by` made, in the caller's transaction."""
    invitations_of(by, now=now).update(expires_at=now)


def setup_digest(code: bytes) -> bytes:
    """The digest of a setup code; the code itself is not stored."""
    return hashlib.sha256(code).digest()


def find_setup_code(digest: bytes, *, now: datetime) -> SetupCode:
    """The live setup code with this digest; looking changes nothing.

    Raises NotFoundError, ExpiredError, or InvalidStateError if an admin exists by now.
    """
    row = SetupCode.objects.filter(digest=digest).first()
    if row is None:
        raise NotFoundError(_GONE)
    # RECOVERY links, made by releases before 3, would recover at once, without the wait.
    if row.used_at is not None or row.expires_at <= now or row.kind == SetupCode.Kind.RECOVERY:
        raise ExpiredError(_USED)
    if not row.is_sealed():
        # It may have been used since it was read, which ended its seal.
        used = SetupCode.objects.filter(pk=row.pk, used_at__isnull=False).exists()
        raise ExpiredError(_USED) if used else NotFoundError(_GONE)
    if row.kind == SetupCode.Kind.FIRST_ADMIN and owner_exists():
        raise InvalidStateError("This registry already has its first admin.")
    return row


def begin_setup(
    *,
    setup_code: SetupCode,
    name: str,
    email: str,
    time_zone: str = "",
    language: str | None = None,
    session_key: str,
    now: datetime,
) -> dict[str, Any]:
    """Creation options for the first passkey of a new human. No human is created yet.

    `time_zone` is what the browser names; a zone that we do not know becomes UTC.
    Raises InvalidRequestError for a bad name or address, or one that is taken.
    """
    email = setup_code.email or email.strip()
    _check_free(email)
    if not name.strip():
        raise InvalidRequestError("Enter your name.")
    # Check now: after a later refusal the device would keep a passkey that belongs to no account.
    check_display_name(name.strip())
    check_is_no_word(name.strip())
    handle = secrets.token_bytes(USER_HANDLE_BYTES)
    row = begin(
        Ceremony(Challenge.Purpose.SETUP, session_key, None, str(setup_code.pk)),
        now=now,
        data={
            "name": name.strip(),
            "email": email,
            "user_handle": handle.hex(),
            "time_zone": time_zone if is_zone(time_zone) else "UTC",
            "language": language,
        },
    )
    return creation_options(
        rp_id=settings.RP_ID,
        challenge=bytes(row.challenge),
        user_handle=handle,
        user_name=email,
        display_name=name.strip(),
    )


def finish_setup(
    *, setup_code: SetupCode, credential: object, session_key: str, actor: Actor, now: datetime
) -> Human:
    """Create the human and their passkey, and use up the code: all of it or nothing.

    Raises InvalidAssertionError; ExpiredError if the code was used meanwhile; InvalidStateError if
    an admin exists by now.
    """
    row = latest(Ceremony(Challenge.Purpose.SETUP, session_key, None, str(setup_code.pk)))
    with answering(row, now=now):
        verified = verify_new(row, credential)
        use_code(setup_code, now=now)
        human = create_human(
            email=row.data["email"],
            name=row.data["name"],
            role=setup_code.named_role,
            # A ceremony that the previous release began has neither.
            time_zone=row.data.get("time_zone", "UTC"),
            language=row.data.get("language"),
            actor=actor,
            now=now,
        )
        SetupCode.objects.filter(pk=setup_code.pk).update(human=human)
        by_them = Actor("human", str(human.pk), actor.request_id)
        add_passkey(human, verified, bytes.fromhex(row.data["user_handle"]), actor=by_them, now=now)
    return human


def begin_sign_in(*, session_key: str, now: datetime) -> dict[str, Any]:
    """Request options for a discoverable passkey: a visitor names no account before signing."""
    row = begin(Ceremony(Challenge.Purpose.SIGN_IN, session_key), now=now)
    return request_options(rp_id=settings.RP_ID, challenge=bytes(row.challenge))


def finish_sign_in(
    *, credential: object, session_key: str, request_id: str, now: datetime
) -> Human:
    """The active human whose passkey signed; the caller starts the session.

    Raises InvalidAssertionError.
    """
    row = latest(Ceremony(Challenge.Purpose.SIGN_IN, session_key))
    with answering(row, now=now):
        passkey, _ = check_signature(row, credential=credential, human=None, now=now)
        human = _active(passkey.human)
        actor = Actor("human", str(human.pk), request_id)
        record(kind=kinds.HUMAN_SIGNED_IN, actor=actor, at=now, human_id=human.id)
    return human


def sign_out(*, human: Human, actor: Actor, now: datetime) -> None:
    """End the human's presence and record the sign-out. The caller ends the session."""
    with transaction.atomic():
        end_presence(human=human, actor=actor, now=now)
        record(kind=kinds.HUMAN_SIGNED_OUT, actor=actor, at=now, human_id=human.id)


def session_key_of(request: HttpRequest) -> str:
    """The stored key of the request's session, which is created if there is none yet."""
    if not request.session.session_key:
        request.session.create()
    return stored_key(str(request.session.session_key))


def _active(human: Human) -> Human:
    if not human.is_active:
        raise InvalidAssertionError("This account is suspended. Ask an administrator.")
    return human


def _check_free(email: str) -> None:
    check_email(email)
    if Human.objects.filter(email__iexact=email).exists():
        raise InvalidRequestError("This e-mail address is already in use.")


def use_code(setup_code: SetupCode, *, now: datetime) -> None:
    """Use up the code, in the caller's transaction.

    Raises ExpiredError if it was used or has expired, InvalidStateError if an admin exists.
    """
    if setup_code.kind == SetupCode.Kind.FIRST_ADMIN:
        # Lock every first-admin code, so that two of them cannot make two first admins at once.
        list(SetupCode.objects.select_for_update().filter(kind=SetupCode.Kind.FIRST_ADMIN))
        if owner_exists():
            raise InvalidStateError("This registry already has its first admin.")
    live = SetupCode.objects.filter(pk=setup_code.pk, used_at=None, expires_at__gt=now)
    if not live.update(used_at=now, seal=None):
        raise ExpiredError("This setup link was used or has expired. Ask for a new one.")
