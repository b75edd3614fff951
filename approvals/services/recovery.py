"""Recovery: a human gets a new passkey in place of all others (docs/protocol.md section 11).

It needs a wait, during which the human can cancel with an old passkey, or a second administrator's
decision. Every act locks the `Recovery` row first, then challenges, passkeys and humans.
"""

import secrets
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.utils.translation import gettext as _

from agentauth.protocol.encoding import b64u_encode, timestamp
from agentauth.protocol.errors import (
    AgentAuthError,
    ExpiredError,
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from approvals import sentences
from approvals.models import Challenge, Notification, Recovery, RecoveryQuerySet
from approvals.notifications.channel_management import remove_all_but_email
from approvals.notifications.outbox import tell_security
from approvals.passkeys import creation_options
from approvals.services.challenges import Ceremony, answering, begin, latest
from approvals.services.human_row_locks import hold_human
from approvals.services.passkey_management import (
    add_passkey,
    hold_passkeys,
    remove_all_passkeys,
    user_handle_of,
    verify_new,
)
from approvals.services.recent_recovery import RECENT, recent_recovery
from approvals.services.setup_and_sign_in import (
    SETUP_CODE_BYTES,
    SetupLink,
    recently_made_owner,
    setup_digest,
)
from audit import kinds
from audit.services import Actor, record
from registry.models import Human
from registry.roles import Permission
from registry.services.database_time import not_ahead, not_behind
from registry.services.humans import recover_human
from registry.services.roles import check_permission

# Counted from when it is ready, or starts to wait for the second administrator.
RECOVERY_LIFE = timedelta(days=7)
LINK_LIFE = timedelta(minutes=15)
# The status the account must have, by case.
_STATUS = {Recovery.Case.LOST: Human.Status.ACTIVE, Recovery.Case.STOLEN: Human.Status.SUSPENDED}


def start_recovery(
    *, human: Human, case: str, admin: Human | None, actor: Actor, now: datetime
) -> Recovery:
    """Start a recovery; nothing about the account changes yet. `admin` is None for an operator.

    Lost: ready after RECOVERY_WAIT_HOURS. Stolen: ready once a second administrator decides. Raises
    InvalidStateError if the account is not active (lost) or not suspended (stolen), if it has an
    open recovery, or if it is the administrator's own; NotFoundError or PermissionDeniedError if
    `admin` is no longer an owner; InvalidRequestError for another case.
    """
    if case not in Recovery.Case.values:
        raise InvalidRequestError("The case must be lost or stolen.")
    ready = not_behind(now) + timedelta(hours=settings.RECOVERY_WAIT_HOURS)
    with transaction.atomic():
        mine = Recovery.objects.filter(human=human, used_at=None, cancelled_at=None)
        mine.filter(expires_at__lte=now).update(cancelled_at=F("expires_at"), notice_due_at=None)
        try:
            # A savepoint, so that the refusal leaves the caller's transaction usable.
            with transaction.atomic():
                row = Recovery(
                    human=human,
                    case=case,
                    begun_by=admin,
                    begun_at=now,
                    ready_at=ready if case == Recovery.Case.LOST else None,
                    expires_at=(ready if case == Recovery.Case.LOST else now) + RECOVERY_LIFE,
                    notice_due_at=now,
                )
                row.set_seal()
                row.save(force_insert=True)
        except IntegrityError:
            raise InvalidStateError(
                "A recovery of this account is open: use it, or cancel it first."
            ) from None
        _hold_admin(row, admin)
        _check_account(row)
        _record(
            kinds.RECOVERY_BEGUN,
            row,
            actor,
            now,
            ready_at=timestamp(row.ready_at) if row.ready_at else None,
        )
        tell_security(human_id=human.pk, what=Notification.What.RECOVERY_BEGUN, now=now)
    return row


def confirm_recovery(*, recovery: Recovery, admin: Human, actor: Actor, now: datetime) -> None:
    """A second administrator decides: the recovery is ready at once.

    Raises InvalidStateError if they started it or it is their own account, if nothing is left to
    decide, or if within 14 days either administrator was recovered, or became one by another's
    invitation (otherwise one administrator could make an account and use it as their second); and
    what `start_recovery` raises.
    """
    with transaction.atomic():
        row = _hold_open(recovery, now)
        _hold_admin(row, admin)
        if row.begun_by_id == admin.pk:
            raise InvalidStateError("You began this recovery: a second administrator must decide.")
        if row.ready_at is not None and (row.confirmed_at is not None or row.ready_at <= now):
            raise InvalidStateError("This recovery is ready: no decision is left to make.")
        for each in (row.begun_by, admin):
            if each is not None and recent_recovery(each, now=now):
                raise InvalidStateError(
                    "The account of an administrator who takes part was recovered within "
                    f"{RECENT.days} days:"
                    " another one must decide."
                )
            if each is not None and recently_made_owner(each, now=now):
                raise InvalidStateError(
                    "An administrator who takes part was invited by another one within "
                    f"{RECENT.days} days: another one must decide."
                )
        _check_administrators(row)
        _check_account(row)
        row.confirmed_by, row.confirmed_at, row.ready_at = admin, now, now
        row.expires_at, row.notice_due_at, row.notice_failures = now + RECOVERY_LIFE, now, 0
        row.set_seal()
        row.save()
        _record(kinds.RECOVERY_CONFIRMED, row, actor, now)


def cancel_recovery(*, recovery: Recovery, actor: Actor, now: datetime) -> None:
    """End the recovery and its link. Raises InvalidStateError if it was used or cancelled."""
    with transaction.atomic():
        open_ones = Recovery.objects.filter(pk=recovery.pk, used_at=None, cancelled_at=None)
        if not open_ones.update(cancelled_at=now, notice_due_at=now, notice_failures=0, seal=None):
            raise InvalidStateError("This recovery was already used or cancelled.")
        _record(kinds.RECOVERY_CANCELLED, recovery, actor, now)


def taken_part_in(human: Human) -> RecoveryQuerySet:
    """Recoveries of this account and those this administrator started or decided, in lock order."""
    return Recovery.objects.filter(
        Q(human=human) | Q(begun_by=human) | Q(confirmed_by=human)
    ).order_by("pk")


def hold_taken_part_in(human: Human) -> set[Any]:
    """Lock them until the commit, before any other lock. Returns their ids."""
    return {row.pk for row in taken_part_in(human).select_for_update()}


def check_taken_part_in(human: Human, held: set[Any]) -> None:
    """Check, once the human is locked, that no recovery was added since `hold_taken_part_in`.

    Locking the new one now could deadlock: its holder may be waiting for a human whom the caller
    has locked. Raises GrantChangedError.
    """
    if held != set(taken_part_in(human).values_list("pk", flat=True)):
        raise GrantChangedError(
            "A recovery was begun or decided at the same moment. Nothing was done: reload the "
            "page and check again."
        )


def cancel_all(*, human: Human, actor: Actor, now: datetime) -> None:
    """Cancel the open recoveries this human takes part in, in the caller's transaction.

    At a suspension, resumption or deletion: what a suspended human started must not go on once they
    are resumed.
    """
    hold_taken_part_in(human)
    for row in taken_part_in(human).open(now):
        cancel_recovery(recovery=row, actor=actor, now=now)


def create_recovery_link(
    *, recovery: Recovery, admin: Human | None, actor: Actor, now: datetime
) -> SetupLink:
    """Make a link for a ready recovery, valid for 15 minutes; an earlier link ends.

    Only its digest is stored. Raises InvalidStateError if the recovery is not ready, or if an
    administrator who took part is no longer active.
    """
    code = secrets.token_bytes(SETUP_CODE_BYTES)
    with transaction.atomic():
        row = _hold_open(recovery, now)
        _hold_admin(row, admin)
        _check_ready(row, now)
        row.link_digest, row.link_expires_at = setup_digest(code), now + LINK_LIFE
        row.set_seal()
        row.save()
        data = {"kind": "recovery", "recovery_id": str(row.pk), "is_staff": row.human.is_staff}
        record(kind=kinds.SETUP_CODE_CREATED, actor=actor, at=now, human_id=row.human_id, data=data)
    return SetupLink(f"{settings.PUBLIC_URL}/recover/{b64u_encode(code)}/", now + LINK_LIFE)


def find_by_link(digest: bytes, *, now: datetime) -> Recovery:
    """The recovery with this live link; changes nothing. Raises NotFoundError, ExpiredError."""
    row = Recovery.objects.select_related("human").filter(link_digest=digest).first()
    if row is not None:
        _check_link(row, now)
    if row is None or not row.is_sealed():
        raise NotFoundError("This recovery link is not valid. Ask an administrator for a new one.")
    return row


def begin_recovery(*, recovery: Recovery, session_key: str, now: datetime) -> dict[str, Any]:
    """Creation options for the new passkey, even on a device with an old one. Changes nothing."""
    human = recovery.human
    _check_ready(recovery, now)
    handle = user_handle_of(human)
    row = begin(_ceremony(recovery, session_key), now=now, data={"user_handle": handle.hex()})
    return creation_options(
        rp_id=settings.RP_ID,
        challenge=bytes(row.challenge),
        user_handle=handle,
        user_name=human.email,
        display_name=human.name,
    )


def finish_recovery(
    *, recovery: Recovery, credential: object, session_key: str, actor: Actor, now: datetime
) -> Human:
    """Replace all passkeys with the new one and use up the recovery: all of it or nothing.

    Sessions and unspent enrolment codes end, webhooks and browsers are removed (a thief may have
    added one; mail goes to the account's address) and every grant waits for a new signature. A
    suspended account stays suspended until an administrator signs that they resume it. Raises
    InvalidAssertionError, ExpiredError, GrantChangedError as `recover_human`, and InvalidStateError
    as `create_recovery_link`.
    """
    challenge, held = latest(_ceremony(recovery, session_key)), list[Recovery]()
    with answering(
        challenge, now=now, first=lambda: held.append(_hold_open(recovery, now, ExpiredError))
    ):
        verified, row = verify_new(challenge, credential), held[0]
        if bytes(row.link_digest or b"") != bytes(recovery.link_digest or b""):
            raise ExpiredError("A newer link was created. Use that one.")
        _check_link(row, now)
        _check_ready(row, now)
        row.used_at = row.notice_due_at = now
        row.notice_failures, row.seal = 0, None
        row.save()
        human = row.human
        by_them = Actor("human", str(human.pk), actor.request_id)
        # A signature in progress has locked a passkey: it commits first and its grant is suspended
        # below, or it is refused.
        hold_passkeys(human)
        recover_human(human=human, actor=by_them, now=now)
        # After the sessions ended: a session that is adding a passkey commits first or is refused.
        removed = remove_all_passkeys(human=human, reason="recovery", actor=by_them, now=now)
        add_passkey(
            human, verified, bytes.fromhex(challenge.data["user_handle"]), actor=by_them, now=now
        )
        remove_all_but_email(human_id=human.pk, actor=by_them, now=now)
        data = {"passkeys_removed": removed, "recovery_id": str(row.pk)}
        record(kind=kinds.HUMAN_RECOVERED, actor=by_them, at=now, human_id=human.id, data=data)
    return human


def _hold_open(
    recovery: Recovery, now: datetime, error: type[AgentAuthError] = InvalidStateError
) -> Recovery:
    """The open row, locked until the commit. Raises `error` if there is none.

    Its seal is checked because callers seal it again after changing it.
    """
    row = Recovery.objects.select_for_update().open(now).filter(pk=recovery.pk).first()
    if row is None or not row.is_sealed():
        raise error("This recovery was used or cancelled, or has expired. Ask for a new one.")
    return row


def _hold_admin(row: Recovery, admin: Human | None) -> None:
    """Check that `admin` is still an administrator; lock them and the account until the commit."""
    if admin is None:
        Human.objects.select_for_update(no_key=True).get(pk=row.human_id)
        return
    if admin.pk == row.human_id:
        raise InvalidStateError("This is your own account: another administrator must recover it.")
    hold_human(admin, row.human)
    check_permission(Human.objects.get(pk=admin.pk), Permission.OWN)


def _check_administrators(row: Recovery) -> None:
    for each in (row.begun_by, row.confirmed_by):
        if each is not None and Permission.OWN not in each.permissions:
            raise InvalidStateError(
                "An administrator who took part in this recovery is no longer an active owner of "
                "the registry. Cancel it and begin again."
            )


def _check_account(row: Recovery) -> None:
    status = Human.objects.values_list("status", flat=True).get(pk=row.human_id)
    if status == _STATUS[Recovery.Case(row.case)]:
        return
    raise InvalidStateError(
        "Only an active account is recovered as lost. If it is suspended, resume it or "
        "recover it as stolen."
        if row.case == Recovery.Case.LOST
        else "Only a suspended account is recovered as stolen: suspend it first."
    )


def _check_ready(row: Recovery, now: datetime) -> None:
    # By the database's clock too: a host whose clock is ahead must not end the wait early.
    if row.ready_at is None or row.ready_at > not_ahead(now):
        raise InvalidStateError(
            _("This recovery is not ready until %(at)s. Try again then.")
            % {"at": sentences.moment(row.ready_at, "UTC")}
            if row.ready_at
            else "This recovery is not ready: a second administrator must approve it at "
            "/recoveries/."
        )
    _check_administrators(row)
    _check_account(row)


def _check_link(row: Recovery, now: datetime) -> None:
    ended = row.used_at or row.cancelled_at or row.expires_at <= now
    if ended or row.link_expires_at is None or row.link_expires_at <= now:
        raise ExpiredError(
            "This recovery link was used or cancelled, or has expired. Ask for a new one."
        )


def _record(kind: str, row: Recovery, actor: Actor, now: datetime, **more: Any) -> None:
    data = {"recovery_id": str(row.pk), "case": row.case} | more
    record(kind=kind, actor=actor, at=now, human_id=row.human_id, data=data)


def _ceremony(recovery: Recovery, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.SETUP, session_key, None, str(recovery.pk))
