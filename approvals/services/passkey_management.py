"""A human's passkeys: adding one, removing one, removing all."""

import hmac
import secrets
from datetime import datetime
from itertools import count
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.crypto import salted_hmac

from agentauth.protocol.errors import (
    InvalidAssertionError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from agentauth.protocol.untrusted_text import check_display_name
from approvals.models import Challenge, Notification, Passkey
from approvals.notifications.outbox import tell_security
from approvals.passkeys import VerifiedRegistration, creation_options, verify_registration
from approvals.services.challenges import Ceremony, answering, begin, latest
from approvals.services.human_row_locks import hold_human
from audit import kinds
from audit.services import Actor, record
from kms.row_seals import DEMAND
from registry.models import Human
from registry.services.humans import end_sessions
from registry.services.lookalikes import look_alike, mixes_alphabets

USER_HANDLE_BYTES = 32


def begin_passkey(*, human: Human, session_key: str, now: datetime) -> dict[str, Any]:
    """Creation options for a further passkey of a signed-in human."""
    row = begin(Ceremony(Challenge.Purpose.PASSKEY, session_key, human), now=now)
    row.data = {"asked": _request_mac(row)}
    row.save(update_fields=["data"])
    known = list(Passkey.objects.filter(human=human).order_by("created_at"))
    return creation_options(
        rp_id=settings.RP_ID,
        challenge=bytes(row.challenge),
        user_handle=user_handle_of(human),
        user_name=human.email,
        display_name=human.name,
        exclude=[bytes(passkey.credential_id) for passkey in known],
    )


def finish_passkey(
    *, human: Human, credential: object, session_key: str, actor: Actor, now: datetime
) -> Passkey:
    """Add the passkey.

    Raises InvalidAssertionError, also for an id that is registered to anyone; NotFoundError if the
    human was suspended or recovered since the request came in, so that the passkey cannot outlive a
    recovery.
    """
    row = latest(Ceremony(Challenge.Purpose.PASSKEY, session_key, human))
    with answering(row, now=now):
        asked = str(row.data.get("asked", "")).encode()
        if DEMAND.holds() and not hmac.compare_digest(asked, _request_mac(row).encode()):
            raise InvalidAssertionError("No passkey was requested here. Press the button again.")
        verified = verify_new(row, credential)
        passkey = add_passkey(human, verified, user_handle_of(human), actor=actor, now=now)
        hold_human(human)
        return passkey


def rename_passkey(
    *, human: Human, passkey_id: str, name: object, actor: Actor, now: datetime
) -> None:
    """Give one of the human's passkeys another name, by which they tell it from their others.

    It gives no permission. Raises NotFoundError if there is no such passkey, InvalidRequestError
    for a name that hides something, has a word of two alphabets, or looks like the name of another
    of their passkeys.
    """
    with transaction.atomic():
        mine = {str(row.pk): row for row in hold_passkeys(human)}
        row = mine.pop(passkey_id, None)
        if row is None:
            raise NotFoundError("You have no such passkey.")
        wanted = check_display_name(name)
        if any(map(mixes_alphabets, wanted.split())):
            raise InvalidRequestError(
                "The name must have no word that mixes alphabets. Choose another."
            )
        if any(each.name == wanted or look_alike(each.name, wanted) for each in mine.values()):
            raise InvalidRequestError(
                "Another of your passkeys has this name, or one that looks like it. Choose another."
            )
        if row.name == wanted:
            return
        row.name = wanted
        row.save(update_fields=["name"])
        record(
            kind=kinds.PASSKEY_RENAMED,
            actor=actor,
            at=now,
            human_id=human.id,
            data={"passkey_id": passkey_id},
            personal={"name": wanted},
        )


def remove_passkey(*, human: Human, passkey_id: str, actor: Actor, now: datetime) -> None:
    """Remove one of the human's passkeys, and end all their sessions and presence.

    All of them, because it is not recorded which passkey began a session. The caller may keep the
    session of this request (`keep_session`). Raises NotFoundError if there is no such passkey or
    that session ended since the request came in; InvalidStateError for the last passkey.
    """
    with transaction.atomic():
        # Lock all of them: two removals at once must not leave the human unable to sign in.
        mine = {str(row.pk): row for row in hold_passkeys(human)}
        if passkey_id not in mine:
            raise NotFoundError("You have no such passkey.")
        if len(mine) == 1:
            raise InvalidStateError("Your last passkey cannot be removed: add another one first.")
        _remove(mine[passkey_id], actor=actor, now=now)
        hold_human(human)
        end_sessions(human=human, actor=actor, now=now)


def remove_all_passkeys(*, human: Human, reason: str, actor: Actor, now: datetime) -> int:
    """Remove all passkeys in the caller's transaction. Returns how many.

    The caller ends the sessions.
    """
    rows = hold_passkeys(human)
    for row in rows:
        _remove(row, reason=reason, actor=actor, now=now)
    return len(rows)


def remove_passkey_for_good(*, passkey: Passkey, reason: str, actor: Actor, now: datetime) -> None:
    """Repeat the removal of a passkey that a restore undid, even of the last one.

    Its human then needs a recovery. Continuing after the restore ends every session, so none is
    ended here.
    """
    with transaction.atomic():
        _remove(passkey, reason=reason, actor=actor, now=now)


def hold_passkeys(human: Human) -> list[Passkey]:
    """Lock all of the human's passkeys until the commit, in id order to avoid deadlocks."""
    return list(Passkey.objects.select_for_update().filter(human=human).order_by("id"))


def user_handle_of(human: Human) -> bytes:
    """The user handle on all of this human's passkeys; a new random one if there is none yet."""
    known = Passkey.objects.filter(human=human).order_by("created_at").first()
    return bytes(known.user_handle) if known else secrets.token_bytes(USER_HANDLE_BYTES)


def verify_new(row: Challenge, credential: object) -> VerifiedRegistration:
    """The new passkey that answers this challenge. Raises InvalidAssertionError."""
    return verify_registration(
        credential=credential,
        expected_challenge=bytes(row.challenge),
        rp_id=settings.RP_ID,
        origin=settings.ORIGIN,
    )


def add_passkey(
    human: Human, verified: VerifiedRegistration, handle: bytes, *, actor: Actor, now: datetime
) -> Passkey:
    """Store a verified new passkey, in the caller's transaction.

    Raises InvalidAssertionError for an id that is registered to anyone (WebAuthn L3 section 7.1).
    """
    taken = set(Passkey.objects.filter(human=human).values_list("name", flat=True))
    # After a removal or a rename, the next number may be taken.
    names = (f"Passkey {number}" for number in count(len(taken) + 1))
    try:
        with transaction.atomic():
            passkey = Passkey(
                human=human,
                credential_id=verified.credential_id,
                public_key=verified.public_key,
                user_handle=handle,
                sign_count=verified.sign_count,
                name=next(name for name in names if name not in taken),
                aaguid=verified.aaguid,
                transports=list(verified.transports),
                backup_eligible=verified.backup_eligible,
                backed_up=verified.backed_up,
                created_at=now,
            )
            passkey.set_seal()
            passkey.save(force_insert=True)
    except IntegrityError:
        raise InvalidAssertionError("This passkey is registered already.") from None
    record(
        kind=kinds.PASSKEY_CREATED,
        actor=actor,
        at=now,
        human_id=human.id,
        data={"passkey_id": str(passkey.pk), "aaguid": verified.aaguid},
    )
    tell_security(human_id=human.id, what=Notification.What.PASSKEY_ADDED, now=now)
    return passkey


def _request_mac(row: Challenge) -> str:
    """A MAC proving that `begin_passkey`, which takes a passkey signature, made this challenge.

    Without it, writing a row to the database would be enough to add a passkey.
    """
    value = f"{bytes(row.challenge).hex()}/{bytes(row.session).hex()}/{row.human_id}"
    return salted_hmac("approvals.passkey.asked", value, algorithm="sha256").hexdigest()


def _remove(row: Passkey, *, actor: Actor, now: datetime, reason: str | None = None) -> None:
    name, human_id, passkey_id = row.name, row.human_id, str(row.pk)
    row.delete()
    record(
        kind=kinds.PASSKEY_REMOVED,
        actor=actor,
        at=now,
        reason=reason,
        human_id=human_id,
        data={"passkey_id": passkey_id},
        personal={"name": name},
    )
    tell_security(human_id=human_id, what=Notification.What.PASSKEY_REMOVED, now=now)
