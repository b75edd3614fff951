"""The "I'm here" switch: on with a passkey, kept on by a visible page, off at will."""

from datetime import datetime
from typing import Any

from django.db import transaction

from approvals.models import Challenge
from approvals.services.challenges import (
    Ceremony,
    answering,
    begin,
    check_signature,
    latest,
    passkey_options,
    void,
)
from approvals.services.human_row_locks import hold_human
from audit.services import Actor
from registry.models import Human
from verifier.services import presence_leases


def ask_presence(*, human: Human, session_key: str, now: datetime) -> dict[str, Any]:
    """Request options for the passkey that begins the lease."""
    return passkey_options(begin(_ceremony(human, session_key), now=now), human)


def begin_presence(
    *, human: Human, session_key: str, credential: object, actor: Actor, now: datetime
) -> datetime:
    """Begin the lease; returns its end.

    Raises InvalidAssertionError; NotFoundError as `hold_human`.
    """
    row = latest(_ceremony(human, session_key))
    with answering(row, now=now):
        check_signature(row, credential=credential, human=human, now=now)
        lease = presence_leases.begin(human=human, session_key=session_key, actor=actor, now=now)
        hold_human(human)
    return lease.expires_at


def end_presence(*, human: Human, actor: Actor, now: datetime) -> None:
    """End the lease, and void open challenges that would begin one, in every session."""
    asked = Challenge.objects.filter(purpose=Challenge.Purpose.PRESENCE, human=human)
    with transaction.atomic():
        void(asked, now=now)
        presence_leases.end(human=human, actor=actor, now=now)


def _ceremony(human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.PRESENCE, session_key, human)
