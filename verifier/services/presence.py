"""Presence: a human says "I'm here" with a passkey and stays so while a visible page keeps renewing it."""

import uuid
from datetime import datetime, timedelta

from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import F

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.services import Actor, record
from registry.models import Human
from verifier.models import PresenceLease

LEASE = timedelta(seconds=60)


def begin(*, human: Human, session_key: str, actor: Actor, now: datetime) -> PresenceLease:
    """Begin a lease of 60 s for `human` in the browser session `session_key`; the caller has proved the passkey.

    There is one lease per human: the session that began last holds it. Raises InvalidStateError if the session
    is not a living one (docs/protocol.md section 3, `requires_human_online`).
    """
    with transaction.atomic():
        if not Session.objects.filter(pk=session_key, expire_date__gt=now).exists():
            raise InvalidStateError("Sign in again, then say that you are here.")
        lease, _ = PresenceLease.objects.update_or_create(
            human=human,
            defaults={
                "session_id": session_key,
                "session_epoch": human.session_epoch,
                "began_at": now,
                "expires_at": now + LEASE,
            },
        )
        record(kind=kinds.PRESENCE_BEGUN, actor=actor, at=now, human_id=human.pk)
    return lease


def renew(*, human: Human, session_key: str, now: datetime) -> datetime:
    """Carry the lease of this session on for 60 s from `now`; returns its new end.

    Raises InvalidStateError if it has ended: only a passkey begins it again. A renewal is no event, since it
    changes nothing that was not already so.
    """
    until = now + LEASE
    with transaction.atomic():
        own = PresenceLease.objects.filter(human=human, session_id=session_key)
        # Whoever ends it just now comes first: the condition below looks through a join, at what was true before the wait.
        own.select_for_update().first()
        if not own.current(now).update(expires_at=until):
            raise InvalidStateError("Your presence has ended. Say again that you are here.")
    return until


def end(*, human: Human, actor: Actor, now: datetime) -> None:
    """End the lease now, whichever session holds it; nothing happens if there is none."""
    with transaction.atomic():
        running = PresenceLease.objects.filter(human=human, expires_at__gt=now)
        # Ended by the clock, not deleted: a renewal already on its way then finds no current lease; and for as long as it
        # was one, since a call that began before and waits is judged by the time at which it began.
        if running.update(expires_at=F("began_at")):
            record(kind=kinds.PRESENCE_ENDED, actor=actor, at=now, human_id=human.pk)


def is_online(human_id: uuid.UUID, now: datetime) -> bool:
    """Does this human keep a lease at `now`? Compared with the clock at each use, never cached."""
    return PresenceLease.objects.current(now).filter(human_id=human_id).exists()
