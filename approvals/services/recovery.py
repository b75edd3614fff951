"""Recovery: an admin's one-time link gives a human who lost every passkey a new one, and trust begins anew."""

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Challenge, SetupCode
from approvals.passkeys import creation_options
from approvals.services.challenges import Ceremony, answering, begin, latest
from approvals.services.credentials import (
    add_passkey,
    hold_passkeys,
    remove_all_passkeys,
    user_handle_of,
    verify_new,
)
from approvals.services.people import SetupLink, keep_link, use_code
from audit import kinds
from audit.services import Actor, record
from registry.models import Human
from registry.services.people import recover_human

RECOVERY_LIFE = timedelta(minutes=15)
# How long the human is told about it on their pages.
NOTICE_LIFE = timedelta(days=14)


def create_recovery_link(*, human: Human, actor: Actor, now: datetime) -> SetupLink:
    """A link for 15 minutes with which the human makes a new passkey; an older one ends.

    Everything that stood on the old passkeys stops at once: sessions, unspent enrolment codes, every approved
    grant until it is signed anew, and the passkeys themselves while the link is open. There is no mail: the human
    finds it in their activity and, for 14 days, as a notice on their pages (docs/protocol.md section 11).
    Raises InvalidStateError for a human who is not active.
    """
    if not human.is_active:
        raise InvalidStateError("Only an active human can be recovered: resume them first.")
    with transaction.atomic():
        # Whoever signs at this moment holds one of these rows: done before, and stopped here, or refused after.
        hold_passkeys(human)
        SetupCode.objects.recovering(human, now).update(expires_at=now)
        row = SetupCode(
            kind=SetupCode.Kind.RECOVERY,
            email=human.email,
            is_staff=human.is_staff,
            human=human,
            created_at=now,
            expires_at=now + RECOVERY_LIFE,
        )
        link = keep_link(row, actor=actor)
        recover_human(human=human, actor=actor, now=now)
    return link


def begin_recovery(*, setup_code: SetupCode, session_key: str, now: datetime) -> dict[str, Any]:
    """Creation options for the new passkey, also on a device that holds an old one. Nothing changes yet."""
    human = _human_of(setup_code)
    handle = user_handle_of(human)
    row = begin(_ceremony(setup_code, session_key), now=now, data={"user_handle": handle.hex()})
    return creation_options(
        rp_id=settings.RP_ID,
        challenge=bytes(row.challenge),
        user_handle=handle,
        user_name=human.email,
        display_name=human.name,
    )


def finish_recovery(
    *, setup_code: SetupCode, credential: object, session_key: str, actor: Actor, now: datetime
) -> Human:
    """Put the new passkey in the place of all old ones and use up the link: all of it or nothing.

    The old ones are lost or in other hands, so none stays. Raises InvalidAssertionError, ExpiredError,
    InvalidStateError where the human is not active any more.
    """
    row = latest(_ceremony(setup_code, session_key))
    with answering(row, now=now):
        verified = verify_new(row, credential)
        use_code(setup_code, now=now)
        human = _human_of(setup_code)
        by_them = Actor("human", str(human.pk), actor.request_id)
        removed = remove_all_passkeys(human=human, reason="recovery", actor=by_them, now=now)
        add_passkey(human, verified, bytes.fromhex(row.data["user_handle"]), actor=by_them, now=now)
        record(
            kind=kinds.HUMAN_RECOVERED,
            actor=by_them,
            at=now,
            human_id=human.id,
            data={"passkeys_removed": removed},
        )
    return human


def recent_recovery(human: Human, *, now: datetime) -> SetupCode | None:
    """The latest recovery link of this human, used or not, while it is news to them."""
    links = SetupCode.objects.filter(human=human, kind=SetupCode.Kind.RECOVERY)
    return links.filter(created_at__gt=now - NOTICE_LIFE).order_by("-created_at").first()


def _human_of(setup_code: SetupCode) -> Human:
    human = setup_code.human
    if human is None or not human.is_active:
        raise InvalidStateError("This account is not active. Ask an administrator.")
    return human


def _ceremony(setup_code: SetupCode, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.SETUP, session_key, None, str(setup_code.pk))
